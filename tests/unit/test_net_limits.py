"""What bounds a sandbox's network: the figures of docs/network.md, and what happens where one is reached."""

from __future__ import annotations

import errno
import ipaddress
import socket
import threading
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from net_guest import guest
from servers import echo, free_port, serving
from tcp_peer import Segment, segment
from test_net_airlock0 import record

from airlock_runner.config.network_model import NetworkConfig, PortPair, PortsConfig, RuleConfig
from airlock_runner.net import (
    airlock0,
    connection,
    dns,
    dns_server,
    forwards,
    journal,
    packet,
    refusals,
    service,
    synthetic,
    tcp,
)
from airlock_runner.net.dns_server import DnsConnection
from airlockd.protocol.loop import Loop

if TYPE_CHECKING:
    from airlock_runner.net.addresses import Address

MANUAL = " ".join((Path(__file__).parents[2] / "docs/network.md").read_text().split())
LOCAL = NetworkConfig(hosts={"web.test": "127.0.0.1"})


@pytest.mark.parametrize(
    "figure",
    [
        f"{service.MAX_CONNECTIONS:,} connections may be open at once",
        f"more than {service.MAX_CONNECTIONS:,} connections at once",
        f"a window of {tcp.WINDOW >> 10} kB each way, and up to {airlock0.MAX_LENT} one of"
        f" {round(tcp.LARGE_WINDOW / 2**20)} MB after their first {tcp.WINDOW >> 10} kB",
        f"for {dns.TTL} seconds",
        f"when all {synthetic.LAST - synthetic.FIRST + 1:,} are taken",
        f"looks up at most {connection.MAX_DENIED_NAMES} such names",
        f"cannot be looked up within {connection.RESOLVE_SECONDS:.0f} seconds",
        f"up to {journal.LIMIT * (1 + len(journal.OLDER)) >> 20} MB",
        f"more than {refusals.BURST} lines at once and one a second",
        f"more than {refusals.KNOWN} destinations",
    ],
)
def test_the_manual_has_this_figure(figure: str) -> None:
    assert refusals.PERIOD == 1
    assert figure in MANUAL


def test_where_there_are_as_many_connections_as_may_be(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever kind they are: one each is open here. The next one is refused at once, and not logged."""
    monkeypatch.setattr(service, "MAX_CONNECTIONS", 2)
    into = free_port()
    ports = PortsConfig(host=(PortPair(free_port(), 3000),), guest=(PortPair(into, 4000),))
    # Should the packet below be judged, nobody is dialled for it.
    config = replace(LOCAL, ports={"p": ports}, rules={"r": RuleConfig(deny=("93.184.216.34",))})
    with serving(echo) as port, guest(config, tmp_path) as sandbox:
        first = sandbox.answered(sandbox.connect(port, "web.test"))
        with socket.create_connection(("127.0.0.1", into)):
            # It counts from the moment in which the guest is asked.
            sandbox.until(lambda: sandbox.dials)
            before = len(sandbox.records)
            assert sandbox.answered(sandbox.ask({"kind": "port", "port": 3000})).error == "ECONNREFUSED"
            sandbox.wire.sendall(record(segment(packet.SYN, 5000)))
            sandbox.wire.setblocking(False)
            answers: list[bytes] = []

            def answered() -> bool:
                try:
                    answers.append(sandbox.wire.recv(1000))
                except BlockingIOError:
                    return False
                return True

            sandbox.until(answered)
            assert Segment(answers[0]).flags & packet.RST
            with socket.create_connection(("127.0.0.1", into)) as client:
                client.setblocking(False)
                broken: list[int] = []

                def reset() -> bool:
                    try:
                        broken.append(len(client.recv(1)))
                    except BlockingIOError:
                        return False
                    except ConnectionResetError as error:
                        broken.append(error.errno)
                    return True

                sandbox.until(reset)
                assert broken == [errno.ECONNRESET]
            assert len(sandbox.dials) == 1
            assert len(sandbox.records) == before
            assert first.error is None


def test_a_guest_that_does_not_answer_is_not_waited_for_for_ever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(forwards, "DIAL_SECONDS", 0.0)
    into = free_port()
    config = NetworkConfig(ports={"p": PortsConfig(guest=(PortPair(into, 4000),))})
    with guest(config, tmp_path) as sandbox, socket.create_connection(("127.0.0.1", into)) as client:
        sandbox.until(lambda: sandbox.records)
        assert (sandbox.records[0]["state"], sandbox.records[0]["error"]) == ("failed", "ETIMEDOUT")
        with pytest.raises(ConnectionResetError):
            client.recv(1)


def test_no_more_names_are_looked_up_for_an_address_than_may_be(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "MAX_DENIED_NAMES", 3)
    asked: list[str] = []

    def look_up(name: str) -> tuple[Address, ...]:
        asked.append(name)
        return ()

    names = tuple(f"evil-{number}.test" for number in range(5))
    rules = {"r": RuleConfig(allow=("127.0.0.1",), deny=names)}
    with serving(echo) as port, guest(NetworkConfig(rules=rules), tmp_path, look_up) as sandbox:
        assert sandbox.answered(sandbox.connect(port, None, "127.0.0.1")).error is None
    assert sorted(asked) == list(names[:3])


def test_the_policy_that_counts_is_that_of_the_moment_in_which_is_dialled(tmp_path: Path) -> None:
    """A name is denied while it is looked up; by its address alone it would be allowed."""
    going_on = threading.Event()

    def look_up(_name: str) -> tuple[Address, ...]:
        going_on.wait(60)
        return (ipaddress.ip_address("127.0.0.1"),)

    rules = {"r": RuleConfig(allow=("127.0.0.0/8",))}
    with serving(echo) as port, guest(NetworkConfig(rules=rules), tmp_path, look_up) as sandbox:
        client = sandbox.connect(port, "slow.test")
        sandbox.until(lambda: sandbox.service.connections)
        assert client.answer is None
        sandbox.service.policy = replace(sandbox.service.policy, mode="deny-by-default")
        going_on.set()
        assert sandbox.answered(client).error == "ECONNREFUSED"
        assert sandbox.records[-1]["rule"] == "policy deny-by-default"


def test_a_port_of_the_guest_leads_to_a_server_that_has_ipv6_alone(tmp_path: Path) -> None:
    with socket.create_server(("::1", 0), family=socket.AF_INET6) as server:
        port = server.getsockname()[1]
        config = NetworkConfig(ports={"p": PortsConfig(host=(PortPair(port, 3000),))})
        with guest(config, tmp_path) as sandbox:
            assert sandbox.answered(sandbox.ask({"kind": "port", "port": 3000})).error is None
            assert sandbox.records[-1]["address"] == "::1"


# ---- DNS over TCP


def test_a_client_of_dns_that_takes_no_answers_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dns_server, "MAX_WAITING", 10_000)
    loop = Loop()
    ours, theirs = socket.socketpair()
    with theirs:
        served = DnsConnection(loop, ours, lambda _query: bytes(1000))
        theirs.setblocking(False)
        sent = 0
        try:
            while served._open:
                sent += theirs.send(b"\0\1x" * 1000)
                served._read()
        except (BlockingIOError, BrokenPipeError):
            pass
        assert not served._open
        assert len(served._output) < 12_000
    loop.close()


def test_a_client_of_dns_that_says_nothing_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dns_server, "IDLE_SECONDS", 0.0)
    loop = Loop()
    ours, theirs = socket.socketpair()
    with theirs:
        DnsConnection(loop, ours, lambda _query: None)
        loop.call_later(0.0, loop.stop)
        loop.run()
        theirs.setblocking(False)
        assert theirs.recv(1) == b""
    loop.close()
