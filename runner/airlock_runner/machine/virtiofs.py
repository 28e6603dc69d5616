"""virtiofsd, the host's helper for shares over virtio-fs: found, judged, and started beside a machine.

Two programs bear the name: QEMU's own up to 7.2, in C, which needs root; and its successor in Rust, which does not. How
each is made to keep no more than host and guest agree on is in docs/performance.md.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from airlock_store.errors import MachineError

if TYPE_CHECKING:
    from collections.abc import Callable

_SAID = 1000
"""Bytes of the last that one wrote that are kept, for the case that it ends."""
_DESCRIPTIONS = (Path("/etc/qemu/vhost-user"), Path("/usr/share/qemu/vhost-user"))
_PLACES = (Path("/usr/libexec/virtiofsd"), Path("/usr/lib/virtiofsd"), Path("/usr/lib/qemu/virtiofsd"))


@dataclass(frozen=True, slots=True)
class Daemon:
    """A virtiofsd that can be used here. `rust`: which of the two it is."""

    program: Path
    rust: bool


def choose_daemon(share: str, *, cold: bool) -> Daemon | None:
    """Who serves shares where `[vm] share` says "auto", "9p" or "virtiofs"; None for QEMU itself, by 9p.

    "auto": a restored machine is worth more than a faster share, and cannot have one; where the machine is booted
    `cold` anyway, it gets one, if the user is root: without the right to be others, virtiofsd makes files for no user
    of the sandbox but root. Raises MachineError where there is none that was asked for.
    """
    if share == "9p" or (share == "auto" and (not cold or os.geteuid() != 0)):
        return None
    try:
        return find_daemon()
    except MachineError:
        if share == "auto":
            return None
        raise


def find_daemon() -> Daemon:
    """The first virtiofsd that fits, of $PATH, of QEMU's descriptions of helpers, and of the usual places.

    Raises MachineError that says what is wrong with those that are there. Source of the descriptions: QEMU
    docs/interop/vhost-user.json.
    """
    wrong = []
    if sys.platform.startswith("linux"):
        for program in dict.fromkeys(_candidates()):
            problem = _judge(program)
            if isinstance(problem, Daemon):
                return problem
            wrong.append(f"{program} {problem}")
    hint = 'install the package virtiofsd (1.11 or newer), or use [vm] share = "9p"'
    raise MachineError("; ".join(wrong) or "this host has no virtiofsd", hint=hint)


def daemon_argv(daemon: Daemon, source: Path, fd: int) -> list[str]:
    """The command line that shares `source` with who connects to the listening socket `fd`.

    In namespaces of its own whose root is the share, so no symlink leads out of it. The guest revalidates what it has
    cached at every use, or caches nothing, so that both sides see each other's finished writes.
    """
    if daemon.rust:
        return [
            os.fspath(daemon.program),
            f"--fd={fd}",
            f"--shared-dir={source}",
            *("--sandbox=namespace", "--cache=never", "--allow-mmap"),
            *("--modcaps=-mknod", "--log-level=error"),
        ]
    escaped = os.fspath(source).replace("\\", "\\\\").replace(",", "\\,")
    options = f"source={escaped},sandbox=namespace,cache=auto,timeout=0,modcaps=-mknod,log_level=err"
    return [os.fspath(daemon.program), f"--fd={fd}", "-f", "-o", options]


class Helper:
    """One running virtiofsd. `connection` is for QEMU to inherit; `forget` closes ours once it has."""

    def __init__(self, daemon: Daemon, source: Path, prepare: Callable[[], None] | None) -> None:
        """Start it; `prepare` runs in the child before it is executed. Raises MachineError."""
        import tempfile

        with (
            tempfile.TemporaryDirectory(prefix="airlock-") as directory,
            socket.socket(socket.AF_UNIX) as listener,
        ):
            path = f"{directory}/s"
            listener.bind(path)
            listener.listen(1)
            # Connected before it is served, and the path is gone before anybody could find it.
            self.connection = socket.socket(socket.AF_UNIX)
            self.connection.connect(path)
            try:
                self._process = subprocess.Popen(
                    daemon_argv(daemon, source, listener.fileno()),
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.STDOUT,
                    pass_fds=[listener.fileno()],
                    process_group=0,
                    preexec_fn=prepare,  # noqa: PLW1509
                )
            except OSError as error:
                self.connection.close()
                raise MachineError(f"{daemon.program} cannot be started: {error.strerror}") from error
        self._said = b""
        self._listener = threading.Thread(target=self._listen, name="virtiofsd-says", daemon=True)
        self._listener.start()

    def _listen(self) -> None:
        """It writes a line for each request that it does not understand, and a guest can make any number of them."""
        assert self._process.stdout is not None
        while data := os.read(self._process.stdout.fileno(), 65536):
            self._said = (self._said + data)[-_SAID:]

    def forget(self) -> None:
        """Close our copy of the connection."""
        self.connection.close()

    def said(self) -> str:
        """The last that it wrote; all of that once it has ended."""
        self._listener.join(0 if self._process.poll() is None else 2)
        return self._said.decode("utf-8", "replace").strip()

    def close(self) -> None:
        """End it. What the guest wrote is in the host's files: it keeps nothing back."""
        self.connection.close()
        self._process.terminate()
        try:
            self._process.wait(2)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


def _candidates() -> list[Path]:
    import shutil

    found = [Path(program)] if (program := shutil.which("virtiofsd")) else []
    for directory in _DESCRIPTIONS:
        for description in sorted(directory.glob("*.json")):
            with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
                values = json.loads(description.read_text())
                if values["type"] == "fs":
                    found.append(Path(values["binary"]))
    return [path for path in (*found, *_PLACES) if os.access(path, os.X_OK)]


def _judge(program: Path) -> Daemon | str:
    """The program as one that can be used, or why it cannot."""
    try:
        asked = subprocess.run([program, "--help"], capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"does not run: {error}"
    if "--allow-mmap" in asked.stdout:
        return Daemon(program, rust=True)
    if "-o timeout=" not in asked.stdout:
        return "is older than 1.11, which cannot map files that it does not cache"
    return Daemon(program, rust=False) if os.geteuid() == 0 else "is the old one of QEMU, which needs root"
