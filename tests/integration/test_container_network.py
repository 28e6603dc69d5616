"""Containers of a Docker daemon in the sandbox: their network is the sandbox's, whatever bridge they are on."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING

from containers import IMPORT, write_project
from sandboxes import running
from test_network import Handler, ThreadingHTTPServer, free_port, log_of, serving

if TYPE_CHECKING:
    from pathlib import Path


def test_containers_reach_what_the_policy_allows_and_are_reached(project: Path) -> None:
    into = free_port()
    with serving(ThreadingHTTPServer(("127.0.0.1", 0), Handler)) as web:
        write_project(
            project,
            '[network.hosts]\n"web.test" = "127.0.0.1"\n"evil.test" = "127.0.0.1"\n'
            '[network.rules.r]\ndeny = ["evil.test"]\n'
            f'[network.ports.p]\nguest = ["{into}:8000"]\n',
        )
        with running(project) as sandbox:
            sandbox.sh(IMPORT)
            serve = "mkdir /w; echo from a container >/w/index.html; exec httpd -f -h /w"
            # On Docker's own bridge, and on one of their own, where Docker answers for the names of containers.
            sandbox.sh("docker network create own")
            sandbox.sh(f"docker run -d --network own --name server -p 8000:80 box sh -c '{serve}'")
            denied = f"for bad in evil.test:{web} 169.254.169.254; do wget -qO- http://$bad/ 2>&1; done; true"
            for network, also in (("bridge", ""), ("own", "wget -qO- http://server/;")):
                asked = f"{also} wget -qO- http://web.test:{web}/; {denied}"
                said = sandbox.sh(f"docker run --rm --network {network} box sh -c '{asked}'").splitlines()
                if also:
                    assert said.pop(0) == "from a container"
                assert said[0] == "hello"
                assert [line.rpartition(": ")[2] for line in said[1:]] == ["Connection refused"] * 2
            # Published by a container in the sandbox, from there to the host.
            with socket.create_connection(("127.0.0.1", into)) as client:
                client.sendall(b"GET / HTTP/1.0\r\n\r\n")
                assert client.makefile().read().endswith("from a container\n")
    rules = [each["rule"] for each in log_of(project) if each["kind"] == "tcp"]
    assert rules == ["hosts", "r: deny evil.test", "internal address (link-local)"] * 2
