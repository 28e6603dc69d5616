"""A real registry of images on the host's loopback, by TLS, and a large image in it."""

from __future__ import annotations

import hashlib
import http.client
import io
import json
import os
import ssl
import subprocess
import tarfile
from contextlib import contextmanager
from dataclasses import dataclass
from threading import Thread
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from servers import free_port

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

NAME = "registry.test"
MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
CONFIG = "application/vnd.docker.container.image.v1+json"
LAYER = "application/vnd.docker.image.rootfs.diff.tar.gzip"
"""Docker sees for itself that a layer is not compressed; there is no name for such a one."""


@dataclass(frozen=True)
class Registry:
    """Where it is, and the certificate of the authority that vouches for `NAME`."""

    port: int
    authority: Path

    def ask(self, method: str, target: str, body: bytes = b"", kind: str = "") -> http.client.HTTPResponse:
        """One request to its API, in plain form; an answer that is no success is an error."""
        context = ssl.create_default_context(cafile=os.fspath(self.authority))
        context.check_hostname = False
        connection = http.client.HTTPSConnection("127.0.0.1", self.port, context=context)
        connection.request(method, target, body, {"Content-Type": kind or "application/octet-stream"})
        answer = connection.getresponse()
        said = answer.read()
        assert answer.status < 300, said
        return answer

    def blob(self, repository: str, data: bytes) -> str:
        """Put a blob there; gives its digest."""
        digest = f"sha256:{hashlib.sha256(data).hexdigest()}"
        upload = urlsplit(self.ask("POST", f"/v2/{repository}/blobs/uploads/").headers["Location"])
        self.ask("PUT", f"{upload.path}?{upload.query}&digest={digest}", data)
        return digest

    def image(self, repository: str, content: bytes) -> str:
        """Put an image there, of one layer with one file `/content`; gives the digest of its manifest."""
        packed = io.BytesIO()
        with tarfile.open(fileobj=packed, mode="w") as tar:
            entry = tarfile.TarInfo("content")
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))
        layer = self.blob(repository, packed.getvalue())
        config = json.dumps(
            {"architecture": "amd64", "os": "linux", "rootfs": {"type": "layers", "diff_ids": [layer]}}
        ).encode()
        manifest = json.dumps(
            {
                "schemaVersion": 2,
                "mediaType": MANIFEST,
                "config": {"mediaType": CONFIG, "size": len(config), "digest": self.blob(repository, config)},
                "layers": [{"mediaType": LAYER, "size": len(packed.getvalue()), "digest": layer}],
            }
        ).encode()
        answer = self.ask("PUT", f"/v2/{repository}/manifests/latest", manifest, MANIFEST)
        return answer.headers["Docker-Content-Digest"]


@contextmanager
def serving_registry(directory: Path, need: Callable[[str], Path]) -> Iterator[Registry]:
    """A registry that keeps its images below `directory`, for a block."""
    port = free_port()
    certificate, key = directory / "ca.crt", directory / "key.pem"
    subprocess.run(
        [
            need("openssl"), "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes",
            "-days", "2", "-subj", f"/CN={NAME}", "-addext", f"subjectAltName=DNS:{NAME}",
            "-keyout", key, "-out", certificate,
        ],
        check=True, capture_output=True,
    )  # fmt: skip
    # JSON is YAML.
    (directory / "config.yml").write_text(
        json.dumps(
            {
                "version": 0.1,
                "log": {"level": "info"},
                "storage": {"filesystem": {"rootdirectory": os.fspath(directory / "images")}},
                "http": {
                    "addr": f"127.0.0.1:{port}",
                    "tls": {"certificate": os.fspath(certificate), "key": os.fspath(key)},
                },
            }
        )
    )
    with subprocess.Popen(
        [need("docker-registry"), "serve", directory / "config.yml"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            assert process.stderr is not None
            said = []
            for line in process.stderr:
                said.append(line)
                if "listening on" in line:
                    break
            else:
                raise AssertionError(f"the registry ended: {said}")
            Thread(target=process.stderr.read, daemon=True).start()
            yield Registry(port, certificate)
        finally:
            process.terminate()
