"""Both ends of the network against hostile bytes; `make fuzz` goes on where this ends."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

sys.path.insert(0, str(Path(__file__).parents[2] / "fuzz"))
import packets
from network import feed, one_input, seeds

_odd = st.sampled_from(
    [0, -1, 1, 3, 3000, 65536, 2**53, True, None, 1.5, "1", "\0", "\ud800", "a" * 300, "a" * 1100, [1], {"a": 1}, "tcp",
     "port", "socket", "s"]
)  # fmt: skip
_keys = st.sampled_from(["t", "s", "id", "stream", "kind", "name", "port", "errno"])
_start = {"t": "call", "op": "connect", "id": 1, "stream": 1, "kind": "socket", "name": "s", "port": 3000}
_headers = st.builds(
    lambda values, op: {**_start, "op": op, **values},
    st.dictionaries(_keys, _odd, max_size=3),
    st.sampled_from(["connect", "connect", "name", "dial"]),
)
_streams = st.builds(
    lambda kind, stream: {"t": kind, "s": stream, "n": 1}, st.sampled_from(["data", "end", "credit", "reset"]),
    st.sampled_from([1, 2, 3]),
)  # fmt: skip


def wire_of(header: dict[str, object], payload: bytes) -> bytes:
    # Not by `encode`, which does not send all that can be said.
    text = json.dumps(header).encode()
    return len(text).to_bytes(4, "big") + len(payload).to_bytes(4, "big") + text + payload


@settings(max_examples=400)
@given(st.lists(st.tuples(_headers | _streams, st.sampled_from([b"", b"", b"data"])), max_size=6))
def test_requests_with_odd_values_never_raise(said: list[tuple[dict[str, object], bytes]]) -> None:
    reason = feed(b"".join(wire_of(*each) for each in said))
    assert reason is None or reason.startswith("protocol error: ")


@given(st.sampled_from(seeds()), st.integers(0, 300), st.binary(max_size=4))
def test_requests_with_a_flaw_never_raise(seed: bytes, position: int, flaw: bytes) -> None:
    one_input(seed[:position] + flaw + seed[position + len(flaw) :])


def test_the_seeds_are_requests() -> None:
    assert feed(seeds()[0][1:]) is None
    assert feed(seeds()[2][1:]) == "protocol error: an answer to call 1, which was not made"


_packets = st.builds(
    lambda seed, position, flaw, cut: (seed[:position] + flaw + seed[position + len(flaw) :])[:cut],
    st.sampled_from([data for seed in packets.seeds() for kind, data in packets.steps(seed) if not kind]),
    st.integers(0, 60),
    st.binary(max_size=3),
    st.integers(0, 100),
)
_steps = st.tuples(st.just(0), _packets | st.binary(max_size=80)) | st.tuples(
    st.integers(1, len(packets.ANSWERS)), st.just(b"")
)


@settings(max_examples=300)
@given(st.lists(_steps, max_size=8))
def test_packets_with_a_flaw_never_raise(steps: list[tuple[int, bytes]]) -> None:
    packets.feed(steps)


@given(st.binary(max_size=200))
def test_any_bytes_are_packets(data: bytes) -> None:
    packets.one_input(data)


def test_the_seeds_are_packets() -> None:
    """SYN-ACK, hello, what acknowledges; an errno; silence; DNS over TCP; and all others have one answer."""
    said = [[len(each) for each in packets.feed(packets.steps(seed))] for seed in packets.seeds()]
    assert said == [
        [44, 45, 40, 40, 40], [40], [], [44, 40, 85], [40], [71], [28], [56], [56], [96], [],
    ]  # fmt: skip


def test_a_record_of_a_wrong_length_closes_the_wire() -> None:
    for size in (0, 10, 65546, 1 << 31):
        host = packets._Host()
        list(host.take(size.to_bytes(4, "big")))
        assert host.closed == [f"protocol error: a packet of {size} bytes"]
        host.close()
