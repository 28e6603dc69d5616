"""Forwarded ports and sockets at the host's end, against a fake guest and real servers on the loopback."""

from __future__ import annotations

import os
import socket
from typing import TYPE_CHECKING, Any

import pytest
from net_guest import guest
from servers import echo, free_port, serving

from airlock_runner.config.network_model import (
    NetworkConfig,
    PortPair,
    PortsConfig,
    SocketConfig,
    SocketPair,
)

if TYPE_CHECKING:
    from pathlib import Path


def forwarding(port: int) -> NetworkConfig:
    return NetworkConfig(ports={"db": PortsConfig(host=(PortPair(port, 3000),))})


def test_a_port_of_the_guest_leads_to_one_of_the_host(tmp_path: Path) -> None:
    with serving(echo) as port, guest(forwarding(port), tmp_path) as sandbox:
        client = sandbox.answered(sandbox.ask({"kind": "port", "port": 3000}))
        client.mine.sendall(b"hello")
        client.mine.shutdown(socket.SHUT_WR)
        sandbox.until(lambda: client.relay.done)
        assert client.mine.recv(100) == b"hello"
        record = sandbox.records[0]
        assert (record["kind"], record["rule"], record["port"]) == ("port", "ports.db", 3000)


def test_a_forwarded_port_without_a_server_refuses(tmp_path: Path) -> None:
    with guest(forwarding(free_port()), tmp_path) as sandbox:
        assert sandbox.answered(sandbox.ask({"kind": "port", "port": 3000})).error == "ECONNREFUSED"


def test_a_socket_of_the_host_comes_and_goes(tmp_path: Path) -> None:
    path = f"{tmp_path}/{'deep/' * 30}x.sock"
    os.makedirs(os.path.dirname(path))
    config = NetworkConfig(sockets={"x": SocketConfig(SocketPair(path, "/run/x.sock"))})
    ask = {"kind": "socket", "name": "x"}
    here = os.open(os.path.dirname(path), os.O_RDONLY)
    with guest(config, tmp_path) as sandbox:
        assert "is not there" in sandbox.settled.warnings[0]
        assert sandbox.answered(sandbox.ask(ask)).error == "ECONNREFUSED"
        # The way through /proc is for the test: a path so deep is too long to bind to.
        with serving(echo, f"/proc/self/fd/{here}/x.sock"):
            client = sandbox.answered(sandbox.ask(ask))
            client.mine.sendall(b"x" * 100_000)
            client.mine.shutdown(socket.SHUT_WR)
            sandbox.until(lambda: sandbox.records[-1]["state"] == "closed")
            assert sandbox.records[-1]["received"] == 100_000
        assert sandbox.answered(sandbox.ask(ask)).error == "ECONNREFUSED"
        os.unlink(path)
        os.symlink("/dev/null", path)
        assert sandbox.answered(sandbox.ask(ask)).error == "ECONNREFUSED"
    os.close(here)


def test_a_symlink_that_the_sandbox_may_have_made_leads_to_no_socket(tmp_path: Path) -> None:
    root, outside = tmp_path / "project", tmp_path / "outside"
    root.mkdir()
    outside.mkdir()
    (root / "link.sock").symlink_to(outside / "x.sock")
    (root / "way").symlink_to(outside)
    (outside / "good.sock").symlink_to("x.sock")
    # However it is spelled, and wherever the user's own symlinks lead.
    (tmp_path / "alias").symlink_to(root)
    (outside / "into.sock").symlink_to(root / "link.sock")
    (outside / "back.sock").symlink_to(root / "way/../outside/x.sock")
    (root / "real").mkdir()
    (outside / "up.sock").symlink_to(root / "real/../../outside/x.sock")
    refused = [
        root / "link.sock", root / "way/x.sock", tmp_path / "alias/link.sock", tmp_path / "alias/way/x.sock",
        outside / "into.sock", outside / "back.sock", outside / "up.sock",
    ]  # fmt: skip
    paths = {f"s{number}": path for number, path in enumerate([*refused, outside / "good.sock"])}
    config = NetworkConfig(
        sockets={name: SocketConfig(SocketPair(str(path), f"/run/{name}")) for name, path in paths.items()}
    )
    with serving(echo, str(outside / "x.sock")), guest(config, root) as sandbox:
        errors = [sandbox.answered(sandbox.ask({"kind": "socket", "name": name})).error for name in paths]
        assert errors == ["ECONNREFUSED"] * len(refused) + [None]
        # Nor is the guest told what is there.
        up = [each.is_there for each in sandbox.settled.sockets.values()]
        assert up == [False] * len(refused) + [True]


def test_deny_always_closes_ports_and_sockets_of_the_host(tmp_path: Path) -> None:
    with serving(echo) as port, serving(echo, f"{tmp_path}/x"):
        config = NetworkConfig(
            policy="deny-always",
            ports={"db": PortsConfig(host=(PortPair(port, 3000),))},
            sockets={"x": SocketConfig(SocketPair(f"{tmp_path}/x", "/x"))},
        )
        with guest(config, tmp_path) as sandbox:
            for what in ({"kind": "port", "port": 3000}, {"kind": "socket", "name": "x"}):
                assert sandbox.answered(sandbox.ask(what)).error == "ECONNREFUSED"
                assert sandbox.records[-1]["rule"] == "policy deny-always"


def test_a_port_of_the_host_leads_into_the_guest(tmp_path: Path) -> None:
    port = free_port()
    config = NetworkConfig(policy="deny-always", ports={"web": PortsConfig(guest=(PortPair(port, 4000),))})

    def answer(connected: socket.socket) -> None:
        connected.recv(5, socket.MSG_WAITALL)
        connected.sendall(b"hi")

    with serving(answer) as inside, guest(config, tmp_path) as sandbox:

        def dial(header: dict[str, Any]) -> None:
            from airlockd.protocol.relay import Relay

            relay = Relay(sandbox.link, header["stream"], lambda _relay: None)
            relay.attach(socket.create_connection(("127.0.0.1", inside)))
            sandbox.link.mux.send({"t": "reply", "id": header["id"]})

        sandbox.on_dial = dial
        client = socket.create_connection(("127.0.0.1", port))
        client.sendall(b"hello")
        client.shutdown(socket.SHUT_WR)
        sandbox.until(lambda: len(sandbox.records) == 2)
        assert client.recv(100) == b"hi"
        client.close()
        assert sandbox.dials[0]["port"] == 4000
        assert sandbox.dials[0]["stream"] % 2 == 0
        ended = sandbox.records[-1]
        # As the program on the host counts them.
        assert (ended["kind"], ended["state"], ended["sent"], ended["received"]) == (
            "forward",
            "closed",
            5,
            2,
        )

        def refuse(header: dict[str, Any]) -> None:
            sandbox.link.refuse([header["stream"]])
            sandbox.link.mux.send({"t": "error", "id": header["id"], "errno": "ECONNREFUSED", "message": ""})

        sandbox.on_dial = refuse
        client = socket.create_connection(("127.0.0.1", port))
        sandbox.until(lambda: len(sandbox.records) == 3)
        with pytest.raises(ConnectionResetError):
            client.recv(1)
        client.close()
        assert sandbox.records[-1]["state"] == "failed"
        # Without a network in the guest nobody is let in.
        sandbox.link.close()
        sandbox.until(lambda: sandbox.closed)
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", port))
