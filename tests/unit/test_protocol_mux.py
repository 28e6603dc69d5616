"""Streams on one connection: two ends against a simple model, and every breach of the rules refused."""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from airlockd.protocol.frames import ProtocolError, encode
from airlockd.protocol.mux import (
    MAX_LENT,
    MAX_STREAMS,
    NETWORK_WINDOW,
    WINDOW,
    Credit,
    Data,
    End,
    Event,
    Message,
    Mux,
    Reset,
)


def take(mux: Mux) -> bytes:
    """Everything that is queued, as a perfect wire would carry it."""
    wire = b"".join(bytes(part) for part in mux.output.buffers)
    mux.output.written(len(wire))
    return wire


def deliver(source: Mux, target: Mux) -> list[Event]:
    return list(target.receive(take(source)))


def pair(*streams: int) -> tuple[Mux, Mux]:
    first, second = Mux(), Mux()
    for stream in streams:
        first.open(stream)
        second.open(stream)
    return first, second


def feed(mux: Mux, header: dict[str, object], payload: bytes = b"") -> list[Event]:
    return list(mux.receive(b"".join(bytes(part) for part in encode(header, payload))))


def test_data_arrives_in_order_and_is_credited_in_portions() -> None:
    here, there = pair(1)
    here.send_data(1, b"abc")
    assert deliver(here, there) == [Data(1, b"abc")]
    there.consumed(1, 3)
    assert there.output.size == 0
    here.send_data(1, bytes(WINDOW // 4))
    received = sum(len(event.data) for event in deliver(here, there) if isinstance(event, Data))
    there.consumed(1, received)
    assert deliver(there, here) == [Credit(1, WINDOW // 4 + 3)]
    assert here.credit(1) == WINDOW


def test_a_message_has_its_payload() -> None:
    here, there = pair()
    here.send({"t": "call", "op": "configure"}, b"seed")
    assert deliver(here, there) == [Message({"t": "call", "op": "configure"}, b"seed")]


def test_a_stream_closes_when_both_ends_ended() -> None:
    here, there = pair(1)
    here.send_end(1)
    assert deliver(here, there) == [End(1)]
    assert there.is_open(1)
    there.send_data(1, b"still")
    there.send_end(1)
    assert deliver(there, here) == [Data(1, b"still"), End(1)]
    assert not here.is_open(1)
    assert not there.is_open(1)


def test_frames_for_a_stream_that_was_reset_are_dropped_in_silence() -> None:
    here, there = pair(1)
    here.send_data(1, b"late")
    late = take(here)
    there.reset(1)
    assert list(there.receive(late)) == []
    assert deliver(there, here) == [Reset(1)]
    assert here.credit(1) == 0


def test_a_call_may_open_the_stream_of_the_next_frame() -> None:
    here, there = pair()
    here.open(7)
    here.send({"t": "call", "op": "spawn"})
    here.send_data(7, b"input")
    events = []
    for event in there.receive(take(here)):
        if isinstance(event, Message):
            there.open(7)
        events.append(event)
    assert events[1] == Data(7, b"input")


@pytest.mark.parametrize(
    ("header", "payload", "reason"),
    [
        ({"t": "data", "s": 9}, b"x", "unknown stream"),
        ({"t": "data", "s": "1"}, b"x", "unknown stream"),
        ({"t": "data", "s": None}, b"x", "unknown stream"),
        ({"t": "nonsense", "s": 1}, b"", "unknown frame type"),
        ({"t": "receive", "s": 1}, b"", "unknown frame type"),
        ({"t": "credit", "s": 1, "n": 1}, b"", "beyond the window"),
        ({"t": "credit", "s": 1, "n": 0}, b"", "bad credit"),
        ({"t": "credit", "s": 1, "n": -5}, b"", "bad credit"),
        ({"t": "credit", "s": 1, "n": True}, b"", "bad credit"),
        ({"t": "credit", "s": 1, "n": "9"}, b"", "bad credit"),
        ({"t": "credit", "s": 1}, b"", "bad credit"),
        ({"t": "end", "s": 1}, b"x", "carries a payload"),
        ({"t": "data", "s": 1}, b"", "no data"),
    ],
)
def test_a_breach_is_refused(header: dict[str, object], payload: bytes, reason: str) -> None:
    mux = Mux()
    mux.open(1)
    with pytest.raises(ProtocolError, match=reason):
        feed(mux, header, payload)


def test_no_frame_without_data_is_sent() -> None:
    here, there = pair(1)
    here.send_data(1, b"")
    assert deliver(here, there) == []


def test_more_than_the_window_is_refused() -> None:
    mux = Mux()
    mux.open(1)
    portion = bytes(256 * 1024)
    for _ in range(WINDOW // len(portion)):
        feed(mux, {"t": "data", "s": 1}, portion)
    with pytest.raises(ProtocolError, match="more than its window"):
        feed(mux, {"t": "data", "s": 1}, b"x")


def test_a_few_streams_that_carry_much_have_a_larger_window() -> None:
    here, there = Mux(NETWORK_WINDOW), Mux(NETWORK_WINDOW)

    def carry(stream: int) -> int:
        """A megabyte; gives the credit that is there after it."""
        here.open(stream)
        there.open(stream)
        assert here.credit(stream) == NETWORK_WINDOW
        for _ in range(WINDOW // NETWORK_WINDOW):
            here.send_data(stream, bytes(NETWORK_WINDOW))
            deliver(here, there)
            there.consumed(stream, NETWORK_WINDOW)
            deliver(there, here)
        return here.credit(stream)

    assert {carry(stream) for stream in range(1, MAX_LENT + 1)} == {WINDOW}
    assert carry(100) == NETWORK_WINDOW
    # It is another's once nothing of it is kept any more, and not with its end on the wire.
    here.reset(1)
    deliver(here, there)
    assert carry(101) == NETWORK_WINDOW
    there.finished(1)
    assert carry(102) == WINDOW
    here.send_data(102, bytes(WINDOW))
    deliver(here, there)
    with pytest.raises(ProtocolError, match="more than its window"):
        feed(there, {"t": "data", "s": 102}, b"x")


def test_nothing_follows_an_end() -> None:
    for follower, payload in (({"t": "data", "s": 1}, b"x"), ({"t": "end", "s": 1}, b"")):
        mux = Mux()
        mux.open(1)
        feed(mux, {"t": "end", "s": 1})
        with pytest.raises(ProtocolError):
            feed(mux, follower, payload)


def test_streams_are_bounded_and_numbers_checked() -> None:
    mux = Mux()
    for stream in range(1, MAX_STREAMS + 1):
        mux.open(stream)
    with pytest.raises(ProtocolError, match="too many"):
        mux.open(MAX_STREAMS + 1)
    for bad in (0, -1, 2**60, True, "1", None):
        with pytest.raises(ProtocolError, match="bad stream number"):
            Mux().open(bad)  # type: ignore[arg-type]
    with pytest.raises(ProtocolError, match="already open"):
        mux.open(1)


class TwoEnds(RuleBasedStateMachine):
    """Random use of both ends over a wire that delivers late: bytes arrive whole, in order, within the window."""

    def __init__(self) -> None:
        super().__init__()
        self.ends = pair(1)
        self.sent: list[bytearray] = [bytearray(), bytearray()]
        self.received: list[bytearray] = [bytearray(), bytearray()]
        self.unconsumed = [0, 0]
        self.ended = [False, False]
        self.saw_end = [False, False]
        self.next = 0

    @rule(side=st.integers(0, 1), size=st.integers(0, WINDOW))
    def send(self, side: int, size: int) -> None:
        size = min(size, self.ends[side].credit(1))
        if size and not self.ended[side]:
            self.next = (self.next + 1) % 251
            data = bytes([self.next]) * size
            self.ends[side].send_data(1, data)
            self.sent[side] += data

    @rule(side=st.integers(0, 1))
    def deliver(self, side: int) -> None:
        for event in deliver(self.ends[side], self.ends[1 - side]):
            if isinstance(event, Data):
                self.received[side] += event.data
                self.unconsumed[1 - side] += len(event.data)
            elif isinstance(event, End):
                self.saw_end[side] = True

    @rule(side=st.integers(0, 1), part=st.floats(0, 1))
    def consume(self, side: int, part: float) -> None:
        count = int(self.unconsumed[side] * part)
        self.unconsumed[side] -= count
        self.ends[side].consumed(1, count)

    @precondition(lambda self: not all(self.ended))
    @rule(side=st.integers(0, 1))
    def end(self, side: int) -> None:
        self.ends[side].send_end(1)
        self.ended[side] = True

    @invariant()
    def nothing_is_lost_or_beyond_the_window(self) -> None:
        for side in (0, 1):
            assert self.sent[side].startswith(self.received[side])
            assert self.unconsumed[side] <= WINDOW

    def teardown(self) -> None:
        for _ in range(4):
            for side in (0, 1):
                self.deliver(side)
        for side in (0, 1):
            assert self.received[side] == self.sent[side]
            assert self.saw_end[side] == self.ended[side]


TestTwoEnds = TwoEnds.TestCase
TestTwoEnds.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
