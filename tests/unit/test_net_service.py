"""The host's end of the network port, against a fake guest and real servers on the loopback."""

from __future__ import annotations

import gc
import hashlib
import ipaddress
import os
import socket
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from net_guest import descriptors, guest

from airlock_runner.config.network_model import (
    NetworkConfig,
    PortPair,
    PortsConfig,
    RuleConfig,
    SocketConfig,
    SocketPair,
)
from airlock_runner.net import connection as connection_module
from airlock_runner.net.requests import Answer, Connect, NameQuery, parse
from airlock_runner.net.resolver import is_own
from airlockd.protocol.frames import ProtocolError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from airlock_runner.net.addresses import Address

MEGABYTE = 1 << 20


@contextmanager
def server(handle: Callable[[socket.socket], None], where: Any = ("127.0.0.1", 0)) -> Iterator[int]:
    """A server at a free port of the loopback, or at a path; each connection in a thread."""
    family = socket.AF_UNIX if isinstance(where, str) else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind(where)
    listener.listen(4096)

    def serve(connected: socket.socket) -> None:
        with connected:
            handle(connected)

    def accept() -> None:
        while True:
            try:
                connected, _ = listener.accept()
            except OSError:
                return
            threading.Thread(target=serve, args=(connected,), daemon=True).start()

    thread = threading.Thread(target=accept, daemon=True)
    thread.start()
    try:
        yield listener.getsockname()[1] if family == socket.AF_INET else 0
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join()


def echo(connected: socket.socket) -> None:
    """Says what it is told, and ends when the other side does."""
    try:
        while data := connected.recv(65536):
            connected.sendall(data)
    except OSError:
        pass


def closed_port() -> int:
    """A port at which nobody listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


LOCAL = NetworkConfig(hosts={"web.test": "127.0.0.1"})


def test_a_connection_from_its_call_to_its_end(tmp_path: Path) -> None:
    with server(echo) as port, guest(LOCAL, tmp_path) as sandbox:
        client = sandbox.answered(sandbox.connect(port, "WEB.test."))
        assert client.answer == {"t": "reply", "id": 1}
        client.mine.sendall(b"hello")
        client.mine.shutdown(socket.SHUT_WR)
        sandbox.until(lambda: client.relay.done)
        assert client.mine.recv(100) == b"hello"
        assert client.mine.recv(100) == b""
        sandbox.until(lambda: len(sandbox.records) == 2)
        begun, ended = sandbox.records
        assert (begun["state"], ended["state"]) == ("open", "closed")
        wanted = {"kind": "tcp", "name": "web.test", "address": "127.0.0.1", "port": port, "verdict": "allow",
                  "rule": "hosts", "sent": 5, "received": 5, "error": None}  # fmt: skip
        assert {key: ended[key] for key in wanted} == wanted
        assert begun["id"] == ended["id"]
        assert not sandbox.service.connections


@pytest.mark.parametrize("direction", ["up", "down"])
def test_much_data_arrives_as_it_was_sent(tmp_path: Path, direction: str) -> None:
    data = os.urandom(MEGABYTE) * 20
    digest = hashlib.sha256(data).hexdigest()
    seen: list[str] = []

    def handle(connected: socket.socket) -> None:
        if direction == "down":
            connected.sendall(data)
            return
        received = hashlib.sha256()
        while part := connected.recv(65536):
            received.update(part)
        seen.append(received.hexdigest())
        connected.sendall(b"done")

    def client_side(mine: socket.socket) -> None:
        if direction == "up":
            mine.sendall(data)
            mine.shutdown(socket.SHUT_WR)
            mine.recv(4)
            return
        received = hashlib.sha256()
        while part := mine.recv(65536):
            received.update(part)
        mine.shutdown(socket.SHUT_WR)
        seen.append(received.hexdigest())

    with server(handle) as port, guest(LOCAL, tmp_path) as sandbox:
        client = sandbox.answered(sandbox.connect(port, "web.test"))
        program = threading.Thread(target=client_side, args=(client.mine,))
        program.start()
        sandbox.until(lambda: client.relay.done and not sandbox.service.connections)
        program.join()
    assert seen == [digest]
    assert sandbox.records[-1]["sent" if direction == "up" else "received"] == len(data)


REFUSED = [
    ("raw address of the loopback", None, "127.0.0.1", "internal address (loopback)"),
    ("the metadata address", None, "169.254.169.254", "internal address (link-local)"),
    ("a made-up synthetic address", None, "10.2.77.7", "internal address (private)"),
    ("IPv4 in IPv6", None, "::ffff:127.0.0.1", "internal address (loopback)"),
    ("an address as a name", "127.0.0.1", "10.2.0.1", "internal address (loopback)"),
    ("a decimal address", "2130706433", "10.2.0.1", "internal address (loopback)"),
    ("an octal address", "0177.0.0.1", "10.2.0.1", "internal address (loopback)"),
    ("a hexadecimal address", "0x7f.1", "10.2.0.1", "internal address (loopback)"),
    ("IPv4 in IPv6 as a name", "::ffff:7f00:1", "10.2.0.1", "internal address (loopback)"),
    ("a name that DNS maps to the loopback", "rebind.test", "10.2.0.1", "internal address (loopback)"),
    ("a denied name", "evil.test", "10.2.0.1", "r: deny evil.test"),
    ("upper case", "EVIL.test", "10.2.0.1", "r: deny evil.test"),
    ("a trailing dot", "evil.test.", "10.2.0.1", "r: deny evil.test"),
    ("below a denied suffix", "a.b.bad.test", "10.2.0.1", "r: deny *.bad.test"),
    ("the address of a denied name", None, "93.184.216.34", "r: deny evil.test"),
    ("the address of a denied name, in decimal", "1572395042", "10.2.0.1", "r: deny evil.test"),
    ("a name that DNS maps to a denied address", "alias.test", "10.2.0.1", "r: deny 93.184.216.99"),
    ("NUL", "web.test\0.evil.test", "10.2.0.1", "'web.test\\x00.evil.test' is not a host name"),
    ("a blank", "web.test evil.test", "10.2.0.1", "'web.test evil.test' is not a host name"),
    ("no name", "", "10.2.0.1", "'' is not a host name"),
    ("nearly an address", "1.2.3.4.5", "10.2.0.1", "'1.2.3.4.5' is neither a name nor an address"),
    ("a scope", "fe80::1%lo", "10.2.0.1", "'fe80::1%lo' has a scope"),
]


def fake_dns(name: str) -> tuple[Address, ...]:
    addresses = {"evil.test": "93.184.216.34", "rebind.test": "127.0.0.1", "alias.test": "93.184.216.99"}
    if name not in addresses:
        raise OSError(f"no {name}")
    return (ipaddress.ip_address(addresses[name]),)


def test_ways_around_the_policy_are_refused_and_logged(tmp_path: Path) -> None:
    rules = {"r": RuleConfig(allow=("*",), deny=("evil.test", "*.bad.test", "93.184.216.99"))}
    with guest(NetworkConfig(rules=rules), tmp_path, fake_dns) as sandbox:
        for what, name, address, rule in REFUSED:
            client = sandbox.answered(sandbox.connect(443, name, address))
            assert client.error == "ECONNREFUSED", what
            record = sandbox.records[-1]
            assert (record["verdict"], record["state"], record["rule"]) == ("deny", "denied", rule), what
        assert len(sandbox.records) == len(REFUSED)
        assert not sandbox.service.connections
        assert not sandbox.closed


def test_dns_over_tls_is_a_connection_like_any_other(tmp_path: Path) -> None:
    """A resolver's address is on the internet: a rule, or a policy that denies the rest, is what closes it."""
    rules = {"r": RuleConfig(allow=("*",), deny=("*:853", "dns.test"))}
    for config, rule in (
        (NetworkConfig(rules=rules), "r: deny *:853"),
        (NetworkConfig(policy="deny-by-default"), "policy deny-by-default"),
    ):
        with guest(config, tmp_path, fake_dns) as sandbox:
            for name, address in ((None, "9.9.9.9"), (None, "2620:fe::fe"), ("resolver.test", "10.2.0.1")):
                assert sandbox.answered(sandbox.connect(853, name, address)).error == "ECONNREFUSED"
            assert [each["rule"] for each in sandbox.records] == [rule] * 3


def test_a_name_that_is_denied_is_never_looked_up(tmp_path: Path) -> None:
    asked: list[str] = []

    def look_up(name: str) -> tuple[Address, ...]:
        asked.append(name)
        return (ipaddress.ip_address("127.0.0.1"),)

    rules = {"r": RuleConfig(allow=("good.test:443", "10.0.0.0/8"))}
    with guest(NetworkConfig(policy="deny-by-default", rules=rules), tmp_path, look_up) as sandbox:
        for name, port in (("secret.exfil.test", 443), ("good.test", 80)):
            assert sandbox.answered(sandbox.connect(port, name)).error == "ECONNREFUSED"
        assert asked == []
        # This one names an internal address, as its own rule allows; nobody is there.
        assert sandbox.answered(sandbox.connect(443, "good.test")).error == "ECONNREFUSED"
        assert asked == ["good.test"]
        assert sandbox.records[-1]["verdict"] == "allow"


def test_the_policy_changes_with_the_next_connection(tmp_path: Path) -> None:
    from dataclasses import replace

    with server(echo) as port, guest(LOCAL, tmp_path) as sandbox:
        first = sandbox.answered(sandbox.connect(port, "web.test"))
        assert first.error is None
        sandbox.service.policy = replace(sandbox.service.policy, mode="deny-always")
        assert sandbox.answered(sandbox.connect(port, "web.test")).error == "ECONNREFUSED"
        first.mine.sendall(b"still here")
        first.mine.shutdown(socket.SHUT_WR)
        sandbox.until(lambda: first.relay.done)
        assert first.mine.recv(100) == b"still here"


def test_a_connection_fails_as_it_did_on_the_host(tmp_path: Path) -> None:
    with guest(LOCAL, tmp_path) as sandbox:
        assert sandbox.answered(sandbox.connect(closed_port(), "web.test")).error == "ECONNREFUSED"
        assert sandbox.records[-1]["state"] == "failed"
        assert sandbox.answered(sandbox.connect(443, "nowhere.test")).error == "EHOSTUNREACH"
        assert sandbox.records[-1]["rule"] == "no address"
        assert sandbox.answered(sandbox.connect(0, "web.test")).error == "ECONNREFUSED"


def test_the_next_address_is_tried_where_one_refuses(tmp_path: Path) -> None:
    config = NetworkConfig(hosts={"web.test": ("127.9.9.9", "127.0.0.1")})
    with server(echo) as port, guest(config, tmp_path) as sandbox:
        assert sandbox.answered(sandbox.connect(port, "web.test")).error is None
        assert sandbox.records[-1]["address"] == "127.0.0.1"


def test_of_several_addresses_only_those_that_may_be_are_dialled(tmp_path: Path) -> None:
    config = NetworkConfig(rules={"r": RuleConfig(allow=("127.0.0.1",))})

    def look_up(_name: str) -> tuple[Address, ...]:
        return tuple(ipaddress.ip_address(each) for each in ("127.9.9.9", "127.0.0.1"))

    def handle(connected: socket.socket) -> None:
        connected.sendall(connected.getsockname()[0].encode())

    with server(handle, ("0.0.0.0", 0)) as port, guest(config, tmp_path, look_up) as sandbox:
        client = sandbox.answered(sandbox.connect(port, "web.test"))
        assert client.error is None
        sandbox.until(lambda: client.relay.sent or client.relay.received)
        assert client.mine.recv(100) == b"127.0.0.1"


def test_a_program_that_gives_up_while_its_name_is_looked_up(tmp_path: Path) -> None:
    going_on = threading.Event()

    def look_up(_name: str) -> tuple[Address, ...]:
        going_on.wait(60)
        return (ipaddress.ip_address("127.0.0.1"),)

    with guest(NetworkConfig(), tmp_path, look_up) as sandbox:
        client = sandbox.connect(80, "slow.test")
        sandbox.until(lambda: sandbox.service.connections)
        client.relay.abort()
        sandbox.until(lambda: not sandbox.service.connections)
        assert sandbox.records[-1]["state"] == "failed"
        going_on.set()


def test_a_name_that_is_not_found_in_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection_module, "RESOLVE_SECONDS", 0.0)
    going_on = threading.Event()

    def look_up(_name: str) -> tuple[Address, ...]:
        going_on.wait(60)
        return ()

    rules = {"r": RuleConfig(deny=("evil.test",))}
    with guest(NetworkConfig(rules=rules), tmp_path, look_up) as sandbox:
        assert sandbox.answered(sandbox.connect(80, "slow.test")).error == "EHOSTUNREACH"
        assert sandbox.records[-1]["rule"] == "not looked up in time"
        # Whether an address is a denied name's could not be told: that is no permission.
        assert sandbox.answered(sandbox.connect(80, None, "93.184.216.34")).error == "EHOSTUNREACH"
        assert sandbox.records[-1]["rule"] == "evil.test is denied, and could not be looked up"
        going_on.set()


def test_whether_a_name_is_allowed_is_told_without_a_lookup(tmp_path: Path) -> None:
    rules = {"r": RuleConfig(deny=("evil.test",))}
    with guest(NetworkConfig(rules=rules), tmp_path) as sandbox:
        names = {"good.test": True, "Evil.Test.": False, "a b": False, "x" * 300: False}
        calls = {sandbox.call({"op": "name", "name": name}): allowed for name, allowed in names.items()}
        sandbox.until(lambda: len(sandbox.replies) == len(names))
        assert {number: reply["allowed"] for number, reply in sandbox.replies.items()} == calls


# ---- ports and sockets


def forwarding(port: int) -> NetworkConfig:
    return NetworkConfig(ports={"db": PortsConfig(host=(PortPair(port, 3000),))})


def test_a_port_of_the_guest_leads_to_one_of_the_host(tmp_path: Path) -> None:
    with server(echo) as port, guest(forwarding(port), tmp_path) as sandbox:
        client = sandbox.answered(sandbox.ask({"kind": "port", "port": 3000}))
        client.mine.sendall(b"hello")
        client.mine.shutdown(socket.SHUT_WR)
        sandbox.until(lambda: client.relay.done)
        assert client.mine.recv(100) == b"hello"
        record = sandbox.records[0]
        assert (record["kind"], record["rule"], record["port"]) == ("port", "ports.db", 3000)


def test_a_forwarded_port_without_a_server_refuses(tmp_path: Path) -> None:
    with guest(forwarding(closed_port()), tmp_path) as sandbox:
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
        with server(echo, f"/proc/self/fd/{here}/x.sock"):
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
    paths = {"a": root / "link.sock", "b": root / "way/x.sock", "c": outside / "good.sock"}
    config = NetworkConfig(
        sockets={name: SocketConfig(SocketPair(str(path), f"/run/{name}")) for name, path in paths.items()}
    )
    with server(echo, str(outside / "x.sock")), guest(config, root) as sandbox:
        errors = [sandbox.answered(sandbox.ask({"kind": "socket", "name": name})).error for name in paths]
        assert errors == ["ECONNREFUSED", "ECONNREFUSED", None]


def test_deny_always_closes_ports_and_sockets_of_the_host(tmp_path: Path) -> None:
    with server(echo) as port, server(echo, f"{tmp_path}/x"):
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
    port = closed_port()
    config = NetworkConfig(policy="deny-always", ports={"web": PortsConfig(guest=(PortPair(port, 4000),))})
    with server(echo) as inside, guest(config, tmp_path) as sandbox:

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
        assert client.recv(100) == b"hello"
        client.close()
        assert sandbox.dials[0]["port"] == 4000
        assert sandbox.dials[0]["stream"] % 2 == 0
        ended = sandbox.records[-1]
        assert (ended["kind"], ended["state"], ended["sent"], ended["received"]) == (
            "forward",
            "closed",
            5,
            5,
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


# ---- many


def test_a_thousand_connections_at_once(tmp_path: Path) -> None:
    release = threading.Event()

    def handle(connected: socket.socket) -> None:
        connected.sendall(connected.recv(10))
        release.wait(60)

    with server(handle) as port, guest(LOCAL, tmp_path) as sandbox:
        clients = [sandbox.connect(port, "web.test") for _ in range(1000)]
        sandbox.until(lambda: all(client.answer for client in clients))
        assert not any(client.error for client in clients)
        for client in clients:
            client.mine.sendall(b"%d" % client.relay._stream)
        sandbox.until(lambda: all(client.relay.received >= 1 for client in clients) or sandbox.closed)
        for client in clients:
            sandbox.until(lambda c=client: c.relay.received == len(b"%d" % c.relay._stream))
            assert client.mine.recv(10) == b"%d" % client.relay._stream
        # One that does not read holds up nobody.
        release.set()
        for client in clients:
            client.mine.close()
        sandbox.until(lambda: not sandbox.service.connections)


def test_a_guest_that_is_slow_to_read_the_port_loses_nothing(tmp_path: Path) -> None:
    """What waits for the port is bounded, however many connections have something to say."""
    each = 262_144

    def handle(connected: socket.socket) -> None:
        connected.sendall(bytes(each))

    with server(handle) as port, guest(LOCAL, tmp_path) as sandbox:
        clients = [sandbox.connect(port, "web.test") for _ in range(280)]
        sandbox.until(lambda: all(client.answer for client in clients))
        # The port is not read while the servers go on.
        sandbox.loop.on_readable(sandbox.link._fd, None)
        most = 0
        calm = threading.Event()
        sandbox.loop.call_later(0.5, calm.set)

        def measure() -> bool:
            nonlocal most
            most = max(most, sandbox.service.link.mux.output_size)
            return calm.is_set()

        sandbox.until(measure)
        sandbox.loop.on_readable(sandbox.link._fd, sandbox.link._read)
        received = dict.fromkeys(range(len(clients)), 0)
        for client in clients:
            client.mine.setblocking(False)

        def read() -> bool:
            for number, client in enumerate(clients):
                try:
                    received[number] += len(client.mine.recv(MEGABYTE))
                except BlockingIOError:
                    continue
            return all(count == each for count in received.values()) or bool(sandbox.closed)

        sandbox.until(read)
        assert not sandbox.closed
        assert most < 8 * MEGABYTE
        for client in clients:
            client.mine.close()


def test_ten_thousand_connections_in_a_row_leave_nothing(tmp_path: Path) -> None:
    with server(lambda connected: None) as port, guest(LOCAL, tmp_path) as sandbox:
        service, missing = sandbox.service, closed_port()

        def some(count: int) -> None:
            for number in range(count // 100):
                clients = [
                    sandbox.connect(port if each % 4 else missing, "web.test" if each % 5 else "evil test")
                    for each in range(number, number + 100)
                ]
                for client in clients:
                    client.mine.shutdown(socket.SHUT_WR)
                sandbox.until(lambda: not service.connections and not sandbox.clients)
                for client in clients:
                    client.mine.close()
                    client.relay.abort()
            sandbox.until(lambda: not sandbox.link._handlers and not service.link._handlers)
            sandbox.records.clear()
            sandbox.replies.clear()
            gc.collect()

        some(500)
        before, objects = descriptors(), len(gc.get_objects())
        some(10_000)
        assert descriptors() <= before
        assert len(gc.get_objects()) < objects + 1000
        assert not service._waiting
        assert not service.link.mux._streams
        assert len([timer for timer in service.loop._timers if timer.callback]) <= 1


# ---- a hostile guest

BAD = [
    {
        "t": "call",
        "op": "connect",
        "id": 1,
        "stream": 2,
        "kind": "tcp",
        "name": None,
        "address": "1.1.1.1",
        "port": 1,
    },
    {
        "t": "call",
        "op": "connect",
        "id": 1,
        "stream": 1,
        "kind": "tcp",
        "name": None,
        "address": "x",
        "port": 1,
    },
    {
        "t": "call",
        "op": "connect",
        "id": 1,
        "stream": 1,
        "kind": "tcp",
        "name": 7,
        "address": "1.1.1.1",
        "port": 1,
    },
    {
        "t": "call",
        "op": "connect",
        "id": 1,
        "stream": 1,
        "kind": "tcp",
        "name": None,
        "address": "1.1.1.1",
        "port": -1,
    },
    {
        "t": "call",
        "op": "connect",
        "id": 1,
        "stream": 1,
        "kind": "tcp",
        "name": None,
        "address": "1.1.1.1",
        "port": "1",
    },
    {
        "t": "call",
        "op": "connect",
        "id": 1,
        "stream": 1,
        "kind": "udp",
        "name": None,
        "address": "1.1.1.1",
        "port": 1,
    },
    {"t": "call", "op": "connect", "id": 1, "stream": 1, "kind": "port", "port": 22},
    {"t": "call", "op": "connect", "id": 1, "stream": 1, "kind": "socket", "name": "docker"},
    {"t": "call", "op": "connect", "id": True, "stream": 1, "kind": "port", "port": 22},
    {"t": "call", "op": "connect", "id": -1, "stream": 1, "kind": "port", "port": 22},
    {"t": "call", "op": "name", "id": 1, "name": "x" * 2000},
    {"t": "call", "op": "name", "id": 1},
    {"t": "call", "op": "spawn", "id": 1, "argv": ["sh"]},
    {"t": "reply", "id": 1},
    {"t": "error", "id": 99, "errno": "EEK"},
    {"t": "event", "name": "exit"},
    {"t": "data", "s": 7},
]


@pytest.mark.parametrize("frame", BAD, ids=str)
def test_a_breach_closes_the_link_with_a_reason(tmp_path: Path, frame: dict[str, Any]) -> None:
    with guest(NetworkConfig(), tmp_path) as sandbox:
        sandbox.link.mux.send(frame)
        sandbox.until(lambda: sandbox.closed)
        assert str(sandbox.closed[0]).startswith("protocol error: ")
        assert not sandbox.service.connections


def test_a_number_that_is_in_use_is_a_breach(tmp_path: Path) -> None:
    for again in ({"id": 1, "stream": 3}, {"id": 9, "stream": 1}):
        with server(echo) as port, guest(LOCAL, tmp_path) as sandbox:
            sandbox.answered(sandbox.connect(port, "web.test"))
            what = {"op": "connect", "kind": "tcp", "name": "web.test", "address": "10.2.0.1", "port": port}
            sandbox.link.mux.send({"t": "call", **what, **again})
            sandbox.until(lambda: sandbox.closed)
            assert "in use" in str(sandbox.closed[0])
            assert sandbox.records[-1]["state"] == "reset"


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-2, 2**54) | st.text(max_size=8), lambda each: st.lists(each, max_size=2)
)  # fmt: skip
KEYS = st.sampled_from(["id", "stream", "kind", "name", "address", "port", "op", "errno"])


@given(
    st.dictionaries(
        KEYS, JSON | st.sampled_from(["tcp", "port", "socket", "connect", "name", "1.1.1.1", 1, 3, 65536])
    ),
    st.sampled_from(["call", "reply", "error", "event"]),
)
def test_any_frame_is_a_request_or_a_breach(header: dict[str, Any], kind: str) -> None:
    try:
        request = parse({**header, "t": kind})
    except ProtocolError:
        return
    assert isinstance(request, Connect | NameQuery | Answer)
    if isinstance(request, Connect):
        assert request.stream % 2
        assert 0 <= request.port <= 65535
        assert (request.address is not None) == (request.kind == "tcp")


def test_the_host_knows_its_own_addresses() -> None:
    assert is_own(ipaddress.ip_address("127.0.0.1"))
    assert not is_own(ipaddress.ip_address("192.0.2.1"))
    assert not is_own(ipaddress.ip_address("2001:db8::1"))
