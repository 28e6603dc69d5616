"""The host's reader of the wire against hostile bytes: no exception, a reason where it ends, bounded memory."""

from __future__ import annotations

import json
import os
import socket
import sys
import tracemalloc
from contextlib import closing
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

sys.path.insert(0, str(Path(__file__).parents[2] / "fuzz"))
from wire import feed, frames, one_input, seeds

from airlockd.protocol.frames import encode
from airlockd.protocol.link import Link
from airlockd.protocol.loop import Loop
from airlockd.protocol.mux import MAX_STREAMS, Mux
from airlockd.protocol.pumps import Sink
from airlockd.protocol.relay import Relay

_odd = st.sampled_from(
    [0, -1, 1, 2, 3, 2**53, 2**64, True, None, 1.5, "1", [1], {"a": 1}, "\ud800", "\x1b[31m"]
)
_keys = st.sampled_from(
    ["t", "s", "n", "id", "name", "process", "code", "signal", "daemon", "state", "message", "x"]
)
_types = st.sampled_from(
    ["data", "end", "credit", "reset", "event", "reply", "error", "call", "_on_data", "receive"]
)
_names = st.sampled_from(["exit", "daemon", "log", "ready", "oom"])
_headers = st.builds(
    lambda values, kind, name: {**values, "t": kind, "name": name},
    st.dictionaries(_keys, _odd),
    _types,
    _names,
)


def wire_of(header: dict[str, object], payload: bytes) -> bytes:
    # Not by `encode`, which does not send all that can be said.
    text = json.dumps(header).encode()
    return len(text).to_bytes(4, "big") + len(payload).to_bytes(4, "big") + text + payload


@settings(max_examples=400)
@given(st.lists(st.tuples(_headers, st.binary(max_size=8)), max_size=6), st.binary(max_size=40))
def test_frames_with_odd_values_never_raise(said: list[tuple[dict[str, object], bytes]], rest: bytes) -> None:
    reason = feed(b"".join(wire_of(*each) for each in said) + rest)
    assert reason is None or reason.startswith("protocol error: ")


@given(st.binary(max_size=2000))
def test_bytes_never_raise(data: bytes) -> None:
    feed(data)
    feed(frames(data))


@given(st.sampled_from(seeds()), st.integers(0, 200), st.binary(max_size=4))
def test_frames_with_a_flaw_never_raise(seed: bytes, position: int, flaw: bytes) -> None:
    one_input(seed[:position] + flaw + seed[position + len(flaw) :])


def peak_of(wire: bytes) -> tuple[str | None, int]:
    """The reason of the close, and the bytes that reading took at most."""
    feed(b"")
    tracemalloc.start()
    try:
        reason = feed(wire)
        return reason, tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_what_is_kept_does_not_grow_with_what_is_sent() -> None:
    """Two megabytes of each, read in parts: less than a frame and a read stay, and what they were parsed to."""
    data = b"".join(bytes(part) for part in encode({"t": "data", "s": 1}, b"x" * 1000)) * 2000
    events = (
        b"".join(bytes(part) for part in encode({"t": "event", "name": "log", "text": "x" * 50})) * 20_000
    )
    limit = 12 << 20
    for wire, expected in (
        (data, None),
        (events, None),
        (b"".join(bytes(part) for part in encode({"t": "end", "s": 9})) * 50_000, "end for unknown stream 9"),
        ((2**32 - 1).to_bytes(4, "big") * 2, "oversized frame"),
    ):
        reason, peak = peak_of(wire)
        assert (reason is None) if expected is None else (expected in (reason or ""))
        assert peak < limit


@pytest.mark.parametrize("kind", ["sink", "relay"])
@pytest.mark.parametrize("size", [1, 100, 3000])
def test_what_waits_costs_little_more_than_its_bytes(kind: str, size: int) -> None:
    """However small the pieces in which it came; for a pipe that is full, or a connection that is not there yet."""
    loop = Loop()
    ours, theirs = socket.socketpair()
    read, write = os.pipe()
    os.set_blocking(write, False)
    os.write(write, bytes(1 << 20))
    pieces = [bytes((number % 256,)) * size for number in range(200_000 // size)]
    with closing(loop), theirs, open(read, "rb"), closing(Link(loop, ours.detach(), print, print)) as link:
        handler = Sink(link, write, 1) if kind == "sink" else Relay(link, 1, print)
        tracemalloc.start()
        try:
            for each in pieces:
                # A frame's own, in memory that is read into again.
                handler.on_data(bytes(bytearray(each)))
            kept = tracemalloc.get_traced_memory()[0]
        finally:
            tracemalloc.stop()
        assert b"".join(handler._pending) == b"".join(pieces)
        assert kept < 400_000


def test_many_streams_leave_no_more_than_the_last() -> None:
    mux = Mux()
    for number in range(1, 100_001):
        mux.open(number)
        mux.reset(number)
        mux.output.written(mux.output.size)
    assert len(mux._forgotten) == MAX_STREAMS
    assert not mux._streams
    # The last are still known, so that what was on its way for them is no breach.
    late = b"".join(bytes(part) for part in encode({"t": "end", "s": 100_000}))
    assert list(mux.receive(late)) == []
