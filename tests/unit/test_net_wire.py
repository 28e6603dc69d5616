"""The host's end of the port for packets: records cut anywhere, a guest that does not read, and one that breaks off."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airlock_runner.net import wire as wire_module
from airlock_runner.net.wire import MAX_OUTPUT, Wire
from airlockd.protocol.loop import Loop
from airlockd.protocol.output import BACKLOG
from airlockd.protocol.packets import HEADER, LENGTH, MAX_RECORD

if TYPE_CHECKING:
    from collections.abc import Iterator


class Ends:
    """A wire in a loop of its own, and the guest's end of it."""

    def __init__(self) -> None:
        self.loop = Loop()
        ours, self.guest = socket.socketpair()
        self.guest.setblocking(False)
        self.packets: list[bytes] = []
        self.pauses = 0
        self.closed: list[str | None] = []
        self.wire = Wire(
            self.loop,
            ours.detach(),
            lambda data: self.packets.append(bytes(data)),
            self._pause,
            self.closed.append,
        )

    def _pause(self) -> None:
        self.pauses += 1

    def round(self) -> None:
        """Let the loop do what there is to do."""
        self.loop.call_later(0, lambda: None)
        self.loop._round()

    def close(self) -> None:
        self.wire.close()
        self.guest.close()
        self.loop.close()


@pytest.fixture
def ends() -> Iterator[Ends]:
    made = Ends()
    yield made
    made.close()


@given(
    st.lists(st.binary(min_size=1, max_size=3000), max_size=8), st.lists(st.integers(1, 4000), max_size=20)
)
def test_records_arrive_whole_however_they_are_cut(packets: list[bytes], cuts: list[int]) -> None:
    ends = Ends()
    data = b"".join(LENGTH.pack(HEADER + len(each)) + bytes(HEADER) + each for each in packets)
    for size in [*cuts, len(data)]:
        part, data = data[:size], data[size:]
        if part:
            ends.guest.sendall(part)
            ends.round()
    while data:
        data = data[ends.guest.send(data) :]
        ends.round()
    assert ends.packets == packets
    ends.guest.close()
    ends.round()
    assert ends.closed == [None]
    ends.close()


@pytest.mark.parametrize("size", [0, HEADER, MAX_RECORD + 1, 0xFFFFFFFF])
def test_a_length_that_cannot_be_ends_it(ends: Ends, size: int) -> None:
    ends.guest.send(LENGTH.pack(size) + bytes(100))
    ends.round()
    assert ends.closed == [f"protocol error: a packet of {size} bytes"]
    assert ends.packets == []


def test_those_that_came_together_are_told_together(ends: Ends) -> None:
    record = LENGTH.pack(HEADER + 1) + bytes(HEADER) + b"x"
    ends.guest.send(record * 3 + record[:7])
    ends.round()
    assert (ends.packets, ends.pauses) == ([b"x"] * 3, 1)


def test_a_guest_that_does_not_read_makes_packets_lost_and_no_heap(ends: Ends) -> None:
    order: list[str] = []
    record = bytes(64 * 1024)
    while not ends.wire.output.congested:
        ends.wire.put([record])
        ends.round()
    assert ends.wire.output.size < BACKLOG + 2 * len(record)
    ends.wire.output.when_clear(lambda: order.append("first"))
    ends.wire.output.when_clear(lambda: order.append("second"))
    for _ in range(1000):
        ends.wire.put([record])
    assert ends.wire.output.size <= MAX_OUTPUT + len(record)
    assert order == []
    received = 0
    while ends.wire.output.size:
        received += len(ends.guest.recv(1 << 20))
        ends.round()
    assert order == ["first", "second"]
    assert not ends.wire.output.congested
    assert received > MAX_OUTPUT - (1 << 20)


def test_nothing_is_sent_on_a_wire_that_is_closed(ends: Ends) -> None:
    ends.wire.close("enough")
    ends.wire.put([b"x"])
    ends.round()
    assert ends.closed == ["enough"]
    assert ends.guest.recv(100) == b""


def test_memory_is_taken_with_the_first_packet(ends: Ends) -> None:
    """Many sandboxes use no network."""
    assert ends.wire._space is None
    assert wire_module.READ_SIZE > MAX_RECORD
    ends.guest.send(b"\0")
    ends.round()
    assert ends.wire._space is not None
