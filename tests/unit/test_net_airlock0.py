"""The host's end of airlock0, packet by packet: connections that begin and end in unusual ways, and DNS."""

from __future__ import annotations

import ipaddress
import socket
import struct
from contextlib import closing
from typing import TYPE_CHECKING

import pytest
from net_guest import guest
from tcp_peer import TUPLE, Peer, Segment, segment
from test_net_dns import query

from airlock_runner.config.network_model import NetworkConfig
from airlock_runner.net import airlock0 as module
from airlock_runner.net import packet
from airlock_runner.net.airlock0 import Airlock0
from airlock_runner.net.connection import Connection, Target
from airlock_runner.net.tcp_relay import TcpRelay
from airlockd.protocol.loop import Loop
from airlockd.protocol.output import BACKLOG
from airlockd.protocol.packets import HEADER, LENGTH

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

FIRST = 5000
PATIENCE = 10.0
"""Seconds after which a server has waited in vain."""


class Ends:
    """One in a loop of its own, and the guest's end of its wire. Connections that are asked for wait in `asked`."""

    def __init__(self) -> None:
        self.loop = Loop()
        ours, self.guest = socket.socketpair()
        self.guest.setblocking(False)
        self.asked: list[TcpRelay] = []
        self.done = 0
        self.end = Airlock0(
            self.loop, ours.detach(), on_syn=self._on_syn, allows=lambda name: "evil" not in name,
            number=lambda: "s-1", log=lambda _record: None, on_close=lambda _reason: None,
        )  # fmt: skip

    def _on_syn(self, syn: memoryview) -> None:
        self.asked.append(TcpRelay(self.end, syn, self._on_done))

    def _on_done(self) -> None:
        self.done += 1

    def say(self, *packets: bytes) -> list[bytes]:
        """Packets of the guest; gives the records of the answers."""
        data = b"".join(map(record, packets))
        answers = []
        while data:
            data = data[self.guest.send(data) :]
            answers += self.rounds()
        return answers + self.rounds()

    def rounds(self) -> list[bytes]:
        """Let the loop do what there is to do; gives what the guest is sent."""
        said = b""
        for _ in range(4):
            self.loop.call_later(0, lambda: None)
            self.loop._round()
            try:
                said += self.guest.recv(1 << 20)
            except BlockingIOError:
                pass
        records = []
        while said:
            end = LENGTH.size + LENGTH.unpack_from(said)[0]
            records.append(said[:end])
            said = said[end:]
        return records

    def connect(self, peer: Peer) -> socket.socket:
        """Have the peer connected; gives the server's end."""
        self.say(*peer.output)
        peer.output.clear()
        ours, theirs = socket.socketpair()
        theirs.settimeout(PATIENCE)
        self.asked[-1].accept(ours)
        self.exchange(peer)
        return theirs

    def exchange(self, peer: Peer) -> None:
        """Let both say all that they have to say."""
        answers = self.rounds()
        while answers or peer.output:
            for each in answers:
                peer.take(Segment(each))
            packets, peer.output = peer.output, []
            answers = self.say(*packets)

    def close(self) -> None:
        self.end.close()
        self.guest.close()
        self.loop.close()


def record(data: bytes) -> bytes:
    """A packet of the guest as it is on the wire."""
    return LENGTH.pack(HEADER + len(data)) + bytes(HEADER) + data


@pytest.fixture
def ends() -> Iterator[Ends]:
    with closing(Ends()) as made:
        yield made


def flags(records: list[bytes]) -> list[int]:
    return [Segment(each).flags for each in records]


def test_a_connection_from_its_syn_to_its_end(ends: Ends) -> None:
    peer = Peer(FIRST, b"question")
    with ends.connect(peer) as server:
        peer.closing = True
        peer.send(100)
        server.sendall(b"answer")
        ends.exchange(peer)
        assert server.recv(100) == b"question"
        assert server.recv(100) == b""
        server.shutdown(socket.SHUT_WR)
        ends.exchange(peer)
    assert peer.received == b"answer"
    assert peer.done
    (relay,) = ends.asked
    assert (relay.done, relay.broken, relay.sent, relay.received, ends.done) == (True, False, 6, 8, 1)
    assert not ends.end._relays


def test_what_a_program_sent_to_its_end_arrives_though_the_guest_knows_nothing_of_it_any_more(
    ends: Ends,
) -> None:
    """A server that reads late: by then the guest's kernel has forgotten, and answers with a reset."""
    peer = Peer(FIRST, bytes(400_000))
    with ends.connect(peer) as server:
        server.setblocking(False)
        peer.closing = True
        for _ in range(20):
            peer.send(50_000)
            ends.exchange(peer)
        # All of it is there, and the end, and the server has read none.
        assert peer.acknowledged - FIRST == len(peer.data) + 2
        assert ends.asked[0]._pending
        ends.say(segment(packet.RST, peer.acknowledged))
        assert not ends.end._relays
        assert not ends.done
        received = 0
        for _ in range(100):
            received += len(server.recv(50_000))
            ends.rounds()
            if received == len(peer.data):
                break
        assert server.recv(1) == b""
    assert received == len(peer.data)
    assert ends.done == 1
    # Nobody would give back what is lent to it now.
    assert ends.end._lent == 0


def test_what_still_waits_for_a_slow_server_ends_with_the_network(tmp_path: Path) -> None:
    """The guest has left it alone already: it is in the service's hands only."""
    with guest(NetworkConfig(), tmp_path) as sandbox:
        service = sandbox.service
        relays: list[TcpRelay] = []

        def make_end(made: Connection) -> TcpRelay:
            syn = memoryview(segment(packet.SYN, FIRST))
            relays.append(TcpRelay(service.airlock0, syn, made.on_done))
            return relays[0]

        connection = Connection(service, Target("tcp", None, ipaddress.ip_address("192.0.2.1"), 80), make_end)
        service.connections.add(connection)
        ours, theirs = socket.socketpair()
        theirs.settimeout(PATIENCE)
        with theirs:
            connection._answer(ours)
            relays[0].tcp.ended = True
            relays[0]._pending += b"rest"
            relays[0].give_up()
            assert service.connections == {connection}
            assert not service.airlock0._relays
            service.close()
            assert theirs.recv(1) == b""
        assert not service.connections
        assert sandbox.records[-1]["state"] == "reset"


def test_a_reset_of_either_side_is_one_of_the_other(ends: Ends) -> None:
    peer = Peer(FIRST, b"")
    with ends.connect(peer) as server:
        ends.say(segment(packet.RST, FIRST + 1))
        assert server.recv(1) == b""
    assert ends.asked[0].broken
    with ends.connect(Peer(FIRST + 9, b"")):
        ends.asked[1].abort()
        (reset,) = ends.rounds()
        assert Segment(reset).flags & packet.RST
    assert ends.done == 2


def test_a_syn_is_asked_about_once(ends: Ends) -> None:
    peer = Peer(FIRST, b"")
    peer.syn()
    assert ends.say(*peer.output) == []
    assert len(ends.asked) == 1
    # Another from the same port: the program has given up.
    assert ends.say(segment(packet.SYN, FIRST + 77)) == []
    assert len(ends.asked) == 2
    assert [each.done for each in ends.asked] == [True, False]


@pytest.mark.parametrize(
    ("error", "protocol", "code"),
    [
        ("ECONNREFUSED", packet.TCP, None), ("ETIMEDOUT", None, None), ("EEK", packet.TCP, None),
        # Of ICMP's "destination unreachable" (RFC 792, 1812): host, network, prohibited.
        ("EHOSTUNREACH", packet.ICMP, 1), ("ENETUNREACH", packet.ICMP, 0), ("EACCES", packet.ICMP, 13),
    ],
)  # fmt: skip
def test_refusals(ends: Ends, error: str, protocol: int | None, code: int | None) -> None:
    syn = segment(packet.SYN, FIRST)
    ends.say(syn)
    ends.asked[0].refuse(error, "")
    packets = [each[LENGTH.size + HEADER :] for each in ends.rounds()]
    assert [each[9] for each in packets] == ([] if protocol is None else [protocol])
    if code is not None:
        assert bytes(packets[0][20:22]) == bytes((3, code))
    assert ends.done == 1
    # Where nobody answered, nobody does, nor is asked again; but for another connection.
    ends.say(syn)
    assert len(ends.asked) == (1 if protocol is None else 2)
    ends.say(segment(packet.SYN, FIRST + 1))
    assert len(ends.asked) == (2 if protocol is None else 3)


def test_who_is_silent_is_asked_and_given_up(ends: Ends, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "KEEPALIVE", 1e9)
    peer = Peer(FIRST, b"")
    with ends.connect(peer):
        ends.end._look_for_silent_ones()
        assert ends.rounds() == []
        ends.end._look_for_silent_ones()
        ends.exchange(peer)
        for _ in range(module.KEEPALIVE_PROBES + 1):
            ends.end._look_for_silent_ones()
            assert not ends.done
        assert flags(ends.rounds()) == [packet.ACK] * module.KEEPALIVE_PROBES
        ends.end._look_for_silent_ones()
        assert ends.done == 1


def test_what_is_lost_on_the_wire_is_sent_again_in_time(ends: Ends, monkeypatch: pytest.MonkeyPatch) -> None:
    """DNS and all others alike: whoever waits is ticked, and nobody else."""
    peer = Peer(FIRST, b"")
    with ends.connect(peer) as server:
        ends.end._tick()
        assert not ends.end._busy
        server.sendall(b"lost")
        assert [Segment(each).data for each in ends.rounds()] == [b"lost"]
        monkeypatch.setattr(module, "TICK_SECONDS", 0.0)
        for _ in range(3):
            ends.end._tick()
        found = [Segment(each) for each in ends.rounds()]
        assert b"lost" in [each.data for each in found]
        peer.take(found[0])
        ends.exchange(peer)
        assert not ends.end._busy
    assert peer.received == b"lost"


def test_large_windows_are_lent_and_come_back(ends: Ends, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_LENT", 1)
    peer = Peer(FIRST, bytes(700_000))
    with ends.connect(peer) as server:
        server.setblocking(False)
        for _ in range(40):
            peer.send(60_000)
            ends.exchange(peer)
            try:
                server.recv(1 << 20)
            except BlockingIOError:
                pass
            ends.exchange(peer)
        assert ends.asked[0].tcp.is_large
        assert not ends.end.lend()
        ends.asked[0].abort()
    assert ends.end._lent == 0


def test_a_connection_waits_for_the_wire_once(ends: Ends) -> None:
    """Whatever the guest says meanwhile; and one that is over does not."""
    peer = Peer(FIRST, b"")
    with ends.connect(peer) as server:
        output = ends.end.wire.output
        output.add([bytes(BACKLOG + (1 << 20))])
        server.sendall(b"waits for the wire")
        at, known = peer.acknowledged, peer.expected
        assert known is not None
        for _ in range(50):
            ends.guest.sendall(record(segment(packet.ACK, at, known)))
            ends.loop.call_later(0, lambda: None)
            ends.loop._round()
        assert output.congested
        assert len(output._held) == 1
        ends.asked[0].abort()
        assert not output._held


# ---- DNS


def ask(name: str, kind: int = 1, port: int = 53) -> bytes:
    text = query(name, kind)
    return packet.ip_packet(
        TUPLE[:4], TUPLE[4:8], packet.UDP, struct.pack(">4H", 5000, port, 8 + len(text), 0) + text
    )


def answer(ends: Ends, question: bytes) -> tuple[int, bytes]:
    """RCODE and the last four bytes."""
    (found,) = ends.say(question)
    payload = packet.udp_payload(found[LENGTH.size + HEADER :])
    assert payload is not None
    return payload[3] & 15, payload[-4:]


def test_names_have_addresses_and_connections_to_these_have_names(ends: Ends) -> None:
    assert answer(ends, ask("web.test")) == (0, bytes((10, 2, 0, 1)))
    assert ends.end.names.use(bytes((10, 2, 0, 1))) == "web.test"


def test_names_that_the_policy_denies_do_not_exist(ends: Ends) -> None:
    assert answer(ends, ask("evil.test"))[0] == 3
    assert answer(ends, ask("a.test"))[0] == 0


def test_dns_over_tcp_at_any_address_and_a_bounded_number_of_them(
    ends: Ends, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MAX_DNS_CONNECTIONS", 1)

    def dns(flags: int, number: int, acknowledged: int = 0, data: bytes = b"", source: int = 40000) -> bytes:
        text = bytearray(segment(flags, number, acknowledged, data))
        text[20:24] = struct.pack(">HH", source, 53)
        return bytes(text)

    (opened,) = ends.say(dns(packet.SYN, FIRST))
    known = Segment(opened).number + 1
    (refused,) = ends.say(dns(packet.SYN, FIRST, source=40001))
    assert Segment(refused).flags & packet.RST
    text = query("web.test")
    said = ends.say(dns(packet.ACK, FIRST + 1, known, len(text).to_bytes(2, "big") + text))
    data = b"".join(Segment(each).data for each in said)
    assert data[-4:] == bytes((10, 2, 0, 1))
    assert int.from_bytes(data[:2], "big") == len(data) - 2
    ends.say(dns(packet.RST, FIRST + 3 + len(text)))
    assert flags(ends.say(dns(packet.SYN, FIRST, source=40001))) == [packet.SYN | packet.ACK]
