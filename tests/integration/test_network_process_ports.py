"""Forwarded ports and sockets at the guest's end, by airlockd's network process in a namespace of this host."""

from __future__ import annotations

import errno
import os
import socket
import stat
from typing import TYPE_CHECKING

import pytest
from network_process import pause_host, running
from servers import free_port

from airlock_runner.config.network_model import (
    NetworkConfig,
    PortPair,
    PortsConfig,
    SocketConfig,
    SocketPair,
)
from airlock_runner.net import forwards

if TYPE_CHECKING:
    from pathlib import Path


def test_when_the_host_goes_there_is_no_network(tmp_path: Path) -> None:
    """Whoever waits for a forwarded port is told, and airlock0 is gone with all its routes."""
    config = NetworkConfig(ports={"p": PortsConfig(host=(PortPair(free_port(), 3000),))})
    with running(config, tmp_path) as guest:
        pause_host(guest)
        client = guest.connect(3000, "127.0.0.1")
        guest.host.do(guest.host.link.close)
        with pytest.raises(ConnectionResetError):
            client.recv(1)
        client.close()

        def is_gone() -> bool:
            with guest.inside.socket() as client:
                client.setblocking(False)
                return client.connect_ex(("192.0.2.1", 80)) == errno.ENETUNREACH

        guest.until(is_gone)


def test_a_port_of_the_guest_and_nobody_at_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    port = free_port()
    dead = free_port()
    config = NetworkConfig(ports={"p": PortsConfig(guest=(PortPair(port, 4000), PortPair(dead, 4001)))})
    with running(config, tmp_path) as guest:

        def dial(port: int = port) -> socket.socket:
            return socket.create_connection(("127.0.0.1", port), timeout=60)

        with pytest.raises(ConnectionResetError), dial() as client:
            client.recv(1)
        assert [(each["state"], each["error"]) for each in guest.host.records] == [("failed", "ECONNREFUSED")]
        with guest.inside.socket() as server:
            server.bind(("127.0.0.1", 4000))
            server.listen()
            with dial() as client:
                accepted, _ = server.accept()
                accepted.sendall(b"hello")
                accepted.close()
                assert client.makefile("rb").read() == b"hello"
        # One whose backlog is full answers nothing. The host gives up, and later the guest; neither keeps anything.
        monkeypatch.setattr(forwards, "DIAL_SECONDS", 0.0)
        with guest.inside.socket() as full, guest.inside.socket() as waiting:
            full.bind(("127.0.0.1", 4001))
            full.listen(0)
            waiting.connect(("127.0.0.1", 4001))
            # The reset may come before `connect` has returned.
            with pytest.raises(ConnectionResetError), dial(dead) as client:
                client.recv(1)
            assert guest.host.records[-1]["error"] == "ETIMEDOUT"
        guest.until(lambda: not guest.host.service._calls)


def test_more_connections_into_the_guest_than_the_host_takes(tmp_path: Path) -> None:
    """The rest are broken off; neither end is harmed."""
    port = free_port()
    config = NetworkConfig(ports={"p": PortsConfig(guest=(PortPair(port, 4000),))})
    with running(config, tmp_path) as guest, guest.inside.socket() as server:
        server.bind(("127.0.0.1", 4000))
        server.listen(4096)
        clients, refused = [], 0
        for _ in range(2100):
            try:
                clients.append(socket.create_connection(("127.0.0.1", port), timeout=60))
            except ConnectionResetError:
                refused += 1
        accepted = [server.accept()[0] for _ in range(2000)]
        for each in accepted:
            each.sendall(b"x")
        for client in clients:
            try:
                refused += client.recv(1) != b"x"
            except ConnectionResetError:
                refused += 1
        assert refused == 100
        for each in (*clients, *accepted):
            each.close()
        guest.until(lambda: not guest.host.service.full)
        with socket.create_connection(("127.0.0.1", port), timeout=60) as client, server.accept()[0] as each:
            each.sendall(b"again")
            assert client.recv(5, socket.MSG_WAITALL) == b"again"


def test_a_socket_appears_with_its_parents_and_for_everybody(tmp_path: Path) -> None:
    here, there = tmp_path / "host.sock", tmp_path / "guest/deep/er.sock"
    config = NetworkConfig(sockets={"s": SocketConfig(SocketPair(str(here), str(there)))})
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(here))
    listener.listen()
    with listener, running(config, tmp_path), socket.socket(socket.AF_UNIX) as client:
        assert stat.S_IMODE(os.stat(there).st_mode) == 0o666
        client.settimeout(60)
        client.connect(str(there))
        client.sendall(b"half")
        client.shutdown(socket.SHUT_WR)
        accepted, _ = listener.accept()
        with accepted:
            assert accepted.makefile("rb").read() == b"half"
            accepted.sendall(b"answer")
        assert client.makefile("rb").read() == b"answer"
