"""What watches over a running sandbox: its clock by its answers, its silence by pings, its disks by QEMU's events."""

from __future__ import annotations

import json
import socket
import time
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airlock_runner.watch import CLOCK_TOLERANCE, DiskTrouble, Pulse, correction
from airlockd.protocol.loop import Loop

SECOND = 10**9
NOW = 1_790_000_000 * SECOND


@pytest.mark.parametrize(
    ("guest", "round_trip", "expected"),
    [
        (NOW, 0, None),
        (NOW + CLOCK_TOLERANCE, 0, None),
        (NOW + CLOCK_TOLERANCE + 1, 0, -CLOCK_TOLERANCE - 1),
        (NOW - 3600 * SECOND, 2 * SECOND, 3601 * SECOND),
        # So slow an answer may have come from a clock that is right.
        (NOW, 10 * SECOND, None),
        (0, 0, NOW),
        (-1, 0, None),
        (2**63, 0, None),
        ("now", 0, None),
        (None, 0, None),
        (True, 0, None),
        (1.5, 0, None),
    ],
)
def test_a_clock_is_set_by_what_it_surely_is_off(
    guest: object, round_trip: int, expected: int | None
) -> None:
    assert correction(NOW, guest, NOW + round_trip) == expected


@given(st.integers(0, 2**62), st.integers(0, 100 * SECOND), st.integers(0, 100 * SECOND))
def test_a_clock_that_is_right_is_left_alone(sent: int, there: int, back: int) -> None:
    assert correction(sent, sent + there, sent + there + back) is None


@given(st.integers(0, 2**62), st.integers(-(2**61), 2**61), st.integers(0, SECOND))
def test_a_correction_leaves_no_more_than_the_tolerance(sent: int, off: int, way: int) -> None:
    step = correction(sent, sent + way + off, sent + 2 * way)
    if sent + way + off >= 0 and abs(off) > CLOCK_TOLERANCE + way:
        assert step == -off
    else:
        assert step is None


class FakeControl:
    """Calls that are noted; `heard` goes up where the guest is to have answered."""

    def __init__(self) -> None:
        self.link = SimpleNamespace(closed=False)
        self.heard = 0
        self.calls: list[tuple[str, dict[str, Any]]] = []
        self.answer: dict[str, Any] | None = None

    def call(self, op: str, arguments: dict[str, Any], then: Any, failed: Any) -> None:
        self.calls.append((op, arguments))
        if self.answer is not None:
            self.heard += 1
            then({"t": "reply", **(self.answer if op == "ping" else {})})


def pulse(loop: Loop, control: FakeControl, notes: list[str]) -> Pulse:
    return Pulse(loop, control, 0.04, loop.stop, lambda _level, text: notes.append(text))  # type: ignore[arg-type]


def test_silence_ends_it_after_so_many_pings() -> None:
    loop, control = Loop(), FakeControl()
    pulse(loop, control, []).start()
    loop.run()
    assert [op for op, _ in control.calls] == ["ping"] * 4


def test_a_sleep_of_the_host_is_nobodys_silence() -> None:
    loop, control = Loop(), FakeControl()
    control.answer = {"time": time.time_ns()}
    beats = pulse(loop, control, [])
    beats.start()
    control.answer = None
    # As long as four pings, in which neither of both ran.
    time.sleep(0.05)
    ended: list[str] = []
    loop.call_later(0, lambda: (ended.append("slept"), loop.stop()))  # type: ignore[func-returns-value]
    loop.run()
    assert ended == ["slept"]
    assert len(control.calls) <= 3
    beats.close()


def test_a_wrong_clock_is_set_by_the_difference() -> None:
    loop, control, notes = Loop(), FakeControl(), []
    control.answer = {"time": time.time_ns() - 3600 * SECOND}
    beats = pulse(loop, control, notes)
    beats.start()
    beats.close()
    (_, (op, arguments)) = control.calls
    assert op == "clock"
    assert abs(arguments["step"] - 3600 * SECOND) < 60 * SECOND
    assert len(notes) == 1
    assert "clock was off by -3" in notes[0]


def event(**data: object) -> bytes:
    return json.dumps({"timestamp": {}, "event": "BLOCK_IO_ERROR", "data": data}).encode() + b"\n"


@pytest.mark.parametrize(
    ("reason", "expected"),
    [
        ("No space left on device", ("disk", "No space left on device", True)),
        ("Input/output\x1b error", ("disk", "Input/output\\x1b error", False)),
    ],
)
def test_the_first_failed_write_is_told_of(reason: str, expected: tuple[str, str, bool]) -> None:
    loop = Loop()
    ours, theirs = socket.socketpair()
    told: list[tuple[str, str, bool]] = []

    def tell(*values: Any) -> None:
        told.append(values)

    trouble = DiskTrouble(loop, ours, tell)
    assert json.loads(theirs.recv(4096))["execute"] == "qmp_capabilities"
    failed = event(**{"node-name": "disk", "reason": reason, "nospace": False})
    said = b'{"return": {}}\r\nnonsense "BLOCK_IO_ERROR"\n' + b"x" * 200_000 + b"\n" + failed + failed
    for start in range(0, len(said), 7777):
        theirs.sendall(said[start : start + 7777])
        trouble._read()
    assert told == [expected]
    theirs.close()
    trouble._read()
    assert ours.fileno() not in loop._watched
    ours.close()
    trouble.close()
