"""The host's end of TCP against a small model of the guest's: whatever gets lost, both have what the other sent."""

from __future__ import annotations

import os
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tcp_peer import TUPLE, Peer, Segment, segment
from test_net_packet import reference

from airlock_runner.net import packet, tcp
from airlock_runner.net.tcp import LARGE_WINDOW, SEGMENT, WINDOW, Tcp

FIRST = 0xFFFFFF00
"""The guest's numbers pass zero soon."""


class Ends:
    """Both, and what is under way between them. Airlock sends `data`; what it receives is in `received`."""

    def __init__(self, peer: Peer, data: bytes = b"") -> None:
        self.peer, self.data = peer, data
        self.records: list[Segment] = []
        self.received = bytearray()
        self.lent = 0
        self.tcp = Tcp(memoryview(peer.output.pop(0)), self.put, self.lend)
        self.tcp.accept()

    def put(self, buffers: list[bytes]) -> None:
        self.records.append(Segment(b"".join(buffers)))

    def lend(self) -> bool:
        self.lent += 1
        return self.lent == 1

    def to_airlock(self, *, lost: bool = False) -> None:
        """One packet of the guest arrives, or does not."""
        if self.peer.output:
            self.give(self.peer.output.pop(0), lost=lost)

    def give(self, data: bytes, *, lost: bool = False) -> None:
        taken = None if lost else self.tcp.receive(memoryview(data))
        if taken is not None:
            self.received += taken
            self.tcp.consumed(len(taken))
        self.tcp.acknowledge()

    def to_peer(self, *, lost: bool = False) -> None:
        if self.records:
            found = self.records.pop(0)
            if not lost:
                self.peer.take(found)

    def send(self, most: int = SEGMENT) -> None:
        """Airlock sends what it may."""
        room = min(self.tcp.room(), most)
        if self.data and room:
            self.tcp.send(self.data[:room])
            self.data = self.data[room:]
        elif not self.data:
            self.tcp.finish()

    def settle(self) -> None:
        """Nothing gets lost any more, and everybody tries until all is said."""
        self.peer.closing = True
        for _ in range(3000):
            while self.records or self.peer.output:
                self.to_peer()
                self.to_airlock()
            if self.peer.done and self.tcp.finished:
                return
            self.send()
            self.peer.send(3000)
            self.tcp.tick()
        raise AssertionError("it never ends")


STEPS = st.lists(
    st.tuples(
        st.sampled_from(["to_airlock", "to_peer", "send", "peer", "tick", "again", "window"]),
        st.booleans(),
        st.integers(0, 3000),
    ),
    max_size=60,
)


@given(STEPS, st.integers(0, 9000), st.integers(0, 9000), st.sampled_from([0, FIRST, 0x7FFFFFFF]))
def test_both_have_what_the_other_sent(
    steps: list[tuple[str, bool, int]], there: int, back: int, first: int
) -> None:
    up, down = os.urandom(there), os.urandom(back)
    ends = Ends(Peer(first, up), down)
    if there % 2:
        ends.to_peer()
        ends.to_airlock()
    for step, flag, number in steps:
        match step:
            case "to_airlock":
                ends.to_airlock(lost=flag)
            case "to_peer":
                ends.to_peer(lost=flag)
            case "send":
                ends.send(max(1, number))
            case "peer":
                ends.peer.send(number, skip=number if flag else 0)
            case "tick":
                ends.tcp.tick()
            case "window":
                ends.peer.window = number * 20 if flag else 0
                ends.peer.acknowledge()
            case _ if ends.peer.output:
                ends.peer.output.append(ends.peer.output[0])
    ends.peer.window = 65535
    ends.peer.acknowledge()
    ends.settle()
    assert ends.received == up
    assert ends.peer.received == down
    assert ends.tcp.ended
    assert not ends.tcp.broken


def connected(window: int = 65535) -> Ends:
    ends = Ends(Peer(FIRST, b"", window))
    ends.to_peer()
    ends.to_airlock()
    assert not ends.records
    return ends


@pytest.mark.parametrize(
    ("segments", "received"),
    [
        ([(0, b"abc"), (3, b"def")], b"abcdef"),
        ([(3, b"def")], b""),
        ([(3, b"def"), (0, b"abc")], b"abc"),
        ([(0, b"abc"), (0, b"abc")], b"abc"),
        ([(0, b"abc"), (1, b"bcdef")], b"abcdef"),
        ([(0, b"abc"), (1, b"b")], b"abc"),
        ([(0, b"abc"), (3 - (1 << 31), b"def")], b"abc"),
    ],
)
def test_data_is_taken_in_order_and_once(segments: list[tuple[int, bytes]], received: bytes) -> None:
    ends = connected()
    for at, data in segments:
        ends.give(segment(packet.ACK, FIRST + 1 + at, ends.peer.expected or 0, data))
        # Each of them is answered, so that the guest knows what to send again.
        assert ends.records.pop().flags == packet.ACK
    assert ends.received == received
    ends.tcp.probe()
    assert ends.records[-1].acknowledged == (FIRST + 1 + len(received)) & 0xFFFFFFFF


# ---- what a segment looks like


@given(st.binary(min_size=1, max_size=400), st.integers(0, 9))
def test_sums_are_right_once_the_kernel_has_added_the_rest(data: bytes, count: int) -> None:
    """As for every packet with VIRTIO_NET_HDR_F_NEEDS_CSUM."""
    ends = connected()
    ends.peer.data = bytes(count)
    ends.peer.send(count)
    ends.to_airlock()
    ends.tcp.send(data)
    for found in ends.records:
        assert found.virtio[:1] == b"\1"
        assert struct.unpack_from("<2H", found.virtio, 6) == (20, 16)
        head, text = found.packet[:20], found.packet[20:]
        assert reference(head) == 0xFFFF
        assert struct.unpack_from(">H", head, 2)[0] == len(found.packet)
        total = 0xFFFF - reference(text)
        whole = text[:16] + struct.pack(">H", total) + text[18:]
        pseudo = head[12:20] + struct.pack(">HH", packet.TCP, len(text))
        assert reference(pseudo + whole) == 0xFFFF


def test_the_answer_to_a_syn() -> None:
    ends = Ends(Peer(FIRST, b""))
    (found,) = ends.records
    assert found.flags == packet.SYN | packet.ACK
    assert found.acknowledged == FIRST + 1
    assert packet.tuple_of(found.packet) == TUPLE[4:8] + TUPLE[:4] + TUPLE[10:12] + TUPLE[8:10]
    assert found.options == b"\2\4" + SEGMENT.to_bytes(2, "big") + b"\1\3\3\4"
    assert found.virtio[1] == 0


def test_a_guest_without_options_has_a_plain_connection() -> None:
    records: list[Segment] = []
    made = Tcp(
        memoryview(segment(packet.SYN, 5, window=1000)),
        lambda buffers: records.append(Segment(b"".join(buffers))),
        lambda: True,
    )
    made.accept()
    assert records[0].options == b"\2\4" + SEGMENT.to_bytes(2, "big")
    assert records[0].window == 65535
    # The SYN counts until it is acknowledged.
    assert made.room() == 999
    made.send(bytes(999))
    # It cuts what its kernel would have to; the scale is not used.
    assert records[1].virtio[1] == 1
    assert struct.unpack_from("<2H", records[1].virtio, 2) == (40, 536)
    assert records[1].window == 65535


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (b"", (536, None)),
        (b"\2\4\5\xb4", (1460, None)),
        (b"\1\1\3\3\7\0\2\4", (536, 7)),
        (b"\2\4\0\1", (64, None)),
        (b"\3\3\xff\1", (536, 14)),
        (b"\2\0\5\xb4", (536, None)),
        (b"\2\4\5", (536, None)),
        (b"\x08\x0a" + bytes(8) + b"\3\3\2", (536, 2)),
        (b"\2", (536, None)),
    ],
)
def test_options(options: bytes, expected: tuple[int, int | None]) -> None:
    assert tcp._options(options) == expected


# ---- windows


def test_a_guest_that_sends_more_than_it_may_is_cut_off() -> None:
    ends = connected()
    number = FIRST + 1
    known = ends.peer.expected or 0
    while ends.tcp.receive(memoryview(segment(packet.ACK, number, known, bytes(60_000)))) is not None:
        number += 60_000
        assert number - FIRST <= WINDOW + 60_000
    ends.tcp.acknowledge()
    assert ends.records[-1].window == 0
    assert ends.records[-1].acknowledged == (FIRST + 1 + WINDOW) & 0xFFFFFFFF
    ends.tcp.consumed(WINDOW // 4)
    assert not ends.tcp.is_due
    ends.tcp.consumed(WINDOW // 4)
    assert ends.tcp.is_due


def test_a_connection_that_carries_much_has_a_larger_window_once() -> None:
    ends = connected()
    for _ in range(40):
        ends.peer.data += bytes(50_000)
        ends.peer.send(50_000)
        ends.to_airlock()
        ends.to_peer()
    assert ends.tcp.is_large
    assert ends.lent == 1
    assert ends.peer.theirs == LARGE_WINDOW


def test_a_full_window_is_asked_about_until_it_opens() -> None:
    ends = connected(window=0)
    ends.peer.acknowledge()
    ends.to_airlock()
    assert ends.tcp.room() == 0
    assert [ends.tcp.tick() for _ in range(3)] == [True] * 3
    assert [each.data for each in ends.records] == [b""]
    ends.peer.window = 5000
    ends.to_peer()
    ends.to_airlock()
    assert ends.tcp.room() == 5000
    assert not ends.tcp.tick()


def test_crumbs_wait_for_an_acknowledgement() -> None:
    """A window that opens by little is no reason for many small segments."""
    ends = connected(window=10_000)
    ends.peer.acknowledge()
    ends.to_airlock()
    ends.tcp.send(bytes(ends.tcp.room() - 100))
    assert ends.tcp.room() == 0
    for _ in range(tcp.MAX_SEGMENTS):
        ends.to_peer()
        ends.to_airlock()
    assert ends.tcp.room() == 10_000


def test_what_is_not_acknowledged_is_bounded_in_number() -> None:
    ends = connected()
    for _ in range(tcp.MAX_SEGMENTS):
        assert ends.tcp.room()
        ends.tcp.send(b"x")
    assert ends.tcp.room() == 0


# ---- the end


def test_what_is_lost_is_sent_again_and_a_guest_that_says_nothing_is_given_up() -> None:
    ends = connected()
    ends.tcp.send(b"data")
    times = 0
    while ends.tcp.tick():
        times += 1
        assert times < 2000
    assert ends.tcp.broken
    assert [each.data for each in ends.records] == [b"data"] * (tcp.GIVE_UP + 1) + [b""]
    assert ends.records[-1].flags & packet.RST


def test_several_that_are_lost_are_sent_again_one_after_the_other() -> None:
    ends = connected()
    for number in range(6):
        ends.tcp.send(b"%d" % number)
    ends.to_peer(lost=True)
    ends.to_peer(lost=True)
    while ends.records:
        ends.to_peer()
        ends.to_airlock()
        ends.to_airlock()
    # Three that say the same are as good as time.
    assert ends.peer.received.startswith(b"01")


@pytest.mark.parametrize("ahead", [-1, 0, 5, WINDOW, WINDOW + 1])
def test_a_reset_counts_within_the_window(ahead: int) -> None:
    ends = connected()
    ends.give(segment(packet.RST, FIRST + 1 + ahead))
    assert ends.tcp.broken == (0 <= ahead <= WINDOW)


def test_nothing_is_sent_once_it_is_broken() -> None:
    ends = connected()
    ends.tcp.reset()
    assert ends.records.pop().flags & packet.RST
    ends.tcp.reset()
    ends.tcp.probe()
    ends.tcp.acknowledge()
    assert not ends.tcp.tick()
    assert not ends.records


def test_a_guest_that_asks_whether_we_are_there_is_answered() -> None:
    ends = connected()
    for data in (b"", b"x"):
        ends.give(segment(packet.ACK, FIRST, ends.peer.expected or 0, data))
        assert ends.records.pop().flags == packet.ACK
    assert ends.received == b""


@given(
    st.lists(
        st.tuples(
            st.sampled_from([FIRST, FIRST + 1, 0, 7, 1 << 31, 0xFFFFFFFF]) | st.integers(0, 0xFFFFFFFF),
            st.sampled_from([0, 1, 1 << 31]) | st.integers(0, 0xFFFFFFFF),
            st.integers(0, 255),
            st.integers(0, 65535),
            st.binary(max_size=40),
            st.integers(5, 15),
        ),
        max_size=30,
    )
)
def test_hostile_segments_raise_nothing(
    segments: list[tuple[int, int, int, int, bytes, int]],
) -> None:
    ends = connected()
    for number, acknowledged, flags, window, data, offset in segments:
        text = bytearray(segment(flags, number, acknowledged, bytes(40) + data, window=window))
        text[32] = offset << 4
        assert packet.is_whole_tcp(text)
        ends.give(bytes(text))
        ends.tcp.tick()
        room = ends.tcp.room()
        assert 0 <= room <= SEGMENT
        if room and not ends.tcp.broken and not ends.tcp.finished:
            ends.tcp.send(b"x")
    assert len(ends.tcp._flight) <= tcp.MAX_SEGMENTS
    assert len(ends.records) <= 4 * len(segments) + 1
