"""The host's end of the network port, against a fake guest and real servers on the loopback."""

from __future__ import annotations

import errno
import gc
import hashlib
import ipaddress
import os
import socket
import threading
from typing import TYPE_CHECKING

import pytest
from net_guest import descriptors, guest
from servers import echo, free_port, serving
from tcp_peer import Segment, segment
from test_net_airlock0 import record
from test_server import no_descriptors

from airlock_runner.config.network_model import (
    NetworkConfig,
    RuleConfig,
)
from airlock_runner.net import connection as connection_module
from airlock_runner.net import packet
from airlock_runner.net.connection import Connection, StreamEnd, Target
from airlock_runner.net.resolver import NO_NAME

if TYPE_CHECKING:
    from pathlib import Path

    from airlock_runner.net.addresses import Address

MEGABYTE = 1 << 20


LOCAL = NetworkConfig(hosts={"web.test": "127.0.0.1"})


def test_a_connection_from_its_call_to_its_end(tmp_path: Path) -> None:
    with serving(echo) as port, guest(LOCAL, tmp_path) as sandbox:
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

    with serving(handle) as port, guest(LOCAL, tmp_path) as sandbox:
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

    with serving(echo) as port, guest(LOCAL, tmp_path) as sandbox:
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
        assert sandbox.answered(sandbox.connect(free_port(), "web.test")).error == "ECONNREFUSED"
        assert sandbox.records[-1]["state"] == "failed"
        assert sandbox.answered(sandbox.connect(443, "nowhere.test")).error == "EHOSTUNREACH"
        assert sandbox.records[-1]["rule"] == "no address"
        assert sandbox.answered(sandbox.connect(0, "web.test")).error == "ECONNREFUSED"
        assert sandbox.records[-1]["rule"] == "port 0"


def test_the_next_address_is_tried_where_one_refuses(tmp_path: Path) -> None:
    config = NetworkConfig(hosts={"web.test": ("127.9.9.9", "127.0.0.1")})
    with serving(echo) as port, guest(config, tmp_path) as sandbox:
        assert sandbox.answered(sandbox.connect(port, "web.test")).error is None
        assert sandbox.records[-1]["address"] == "127.0.0.1"


def test_of_several_addresses_only_those_that_may_be_are_dialled(tmp_path: Path) -> None:
    config = NetworkConfig(rules={"r": RuleConfig(allow=("127.0.0.1",))})

    def look_up(_name: str) -> tuple[Address, ...]:
        return tuple(ipaddress.ip_address(each) for each in ("127.9.9.9", "127.0.0.1"))

    def handle(connected: socket.socket) -> None:
        connected.sendall(connected.getsockname()[0].encode())

    with serving(handle, ("0.0.0.0", 0)) as port, guest(config, tmp_path, look_up) as sandbox:
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


@pytest.mark.parametrize("number", [socket.EAI_AGAIN, socket.EAI_FAIL])
def test_a_denied_name_whose_lookup_fails_is_no_permission(tmp_path: Path, number: int) -> None:
    outcomes: list[OSError | tuple[Address, ...]] = [
        socket.gaierror(number, "failed"), OSError("failed"), (ipaddress.ip_address("127.0.0.1"),)
    ]  # fmt: skip

    def look_up(_name: str) -> tuple[Address, ...]:
        outcome = outcomes.pop(0)
        if isinstance(outcome, OSError):
            raise outcome
        return outcome

    rules = {"r": RuleConfig(allow=("127.0.0.1",), deny=("evil.test",))}
    with serving(echo) as port, guest(NetworkConfig(rules=rules), tmp_path, look_up) as sandbox:
        for _ in range(2):
            assert sandbox.answered(sandbox.connect(port, None, "127.0.0.1")).error == "EHOSTUNREACH"
            assert sandbox.records[-1]["rule"] == "evil.test is denied, and could not be looked up"
        # That is not believed for a minute.
        assert sandbox.answered(sandbox.connect(port, None, "127.0.0.1")).error == "ECONNREFUSED"
        assert sandbox.records[-1]["rule"] == "r: deny evil.test"
        assert not sandbox.service.connections


@pytest.mark.parametrize("number", NO_NAME)
def test_a_denied_name_that_does_not_exist_denies_nothing(tmp_path: Path, number: int) -> None:
    def look_up(_name: str) -> tuple[Address, ...]:
        raise socket.gaierror(number, "no such name")

    rules = {"r": RuleConfig(allow=("127.0.0.1",), deny=("evil.test",))}
    with serving(echo) as port, guest(NetworkConfig(rules=rules), tmp_path, look_up) as sandbox:
        assert sandbox.answered(sandbox.connect(port, None, "127.0.0.1")).error is None


def test_a_name_whose_lookup_fails_is_told_from_one_that_does_not_exist(tmp_path: Path) -> None:
    def look_up(name: str) -> tuple[Address, ...]:
        raise socket.gaierror(socket.EAI_NONAME if name == "nowhere.test" else socket.EAI_AGAIN, "failed")

    with guest(NetworkConfig(), tmp_path, look_up) as sandbox:
        for name, rule in (("nowhere.test", "no address"), ("failing.test", "could not be looked up")):
            assert sandbox.answered(sandbox.connect(443, name)).error == "EHOSTUNREACH"
            assert sandbox.records[-1]["rule"] == rule


# ---- few descriptors


def test_a_name_is_asked_for_while_there_is_no_descriptor_left(tmp_path: Path) -> None:
    """Its connection fails, and no more than that."""
    with serving(echo) as port, guest(LOCAL, tmp_path, lambda _name: ()) as sandbox:
        client, number, stream = sandbox._client(), sandbox.number, sandbox.stream
        with no_descriptors():
            sandbox.service._begin(
                Target("tcp", "unknown.test", ipaddress.ip_address("10.2.0.1"), port),
                lambda made: StreamEnd(sandbox.service.link, number, stream, made.on_done),
            )
            assert sandbox.answered(client).error == "EHOSTUNREACH"
        assert sandbox.answered(sandbox.connect(port, "web.test")).error is None


def test_a_syn_that_there_is_no_descriptor_for_is_answered_by_a_reset(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_connection: Connection) -> None:
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(Connection, "start", fail)
    with guest(LOCAL, tmp_path) as sandbox:
        sandbox.wire.sendall(record(segment(packet.SYN, 5000)))
        sandbox.until(lambda: sandbox.records)
        sandbox.service.airlock0.wire.flush()
        assert Segment(sandbox.wire.recv(1000)).flags & packet.RST
        wanted = {"state": "failed", "error": "ECONNREFUSED", "rule": "Too many open files"}
        assert {key: sandbox.records[-1][key] for key in wanted} == wanted
        assert not sandbox.service.connections
        assert not sandbox.service.airlock0._relays
        assert not sandbox.closed


# ---- many


def test_a_thousand_connections_at_once(tmp_path: Path) -> None:
    release = threading.Event()

    def handle(connected: socket.socket) -> None:
        connected.sendall(connected.recv(10))
        release.wait(60)

    with serving(handle) as port, guest(LOCAL, tmp_path) as sandbox:
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

    with serving(handle) as port, guest(LOCAL, tmp_path) as sandbox:
        clients = [sandbox.connect(port, "web.test") for _ in range(280)]
        sandbox.until(lambda: all(client.answer for client in clients))
        # The port is not read while the servers go on.
        sandbox.loop.on_readable(sandbox.link._fd, None)
        most = 0
        calm = threading.Event()
        sandbox.loop.call_later(0.5, calm.set)

        def measure() -> bool:
            nonlocal most
            most = max(most, sandbox.service.link.mux.output.size)
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
    with serving(lambda connected: None) as port, guest(LOCAL, tmp_path) as sandbox:
        service, missing = sandbox.service, free_port()

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
