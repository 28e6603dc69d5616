"""The wire's frames: what is encoded comes back however it is cut, and hostile bytes are refused early."""

from __future__ import annotations

import json
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airlockd.protocol.frames import JOIN, MAX_HEADER, MAX_PAYLOAD, Decoder, ProtocolError, encode

_json = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(max_size=40),
    lambda children: (
        st.lists(children, max_size=4) | st.dictionaries(st.text(max_size=8), children, max_size=4)
    ),
    max_leaves=8,
)
_headers = st.dictionaries(st.text(min_size=1, max_size=8), _json, max_size=5).map(
    lambda values: {**values, "t": "call"}
)


def raw(header: bytes, payload: bytes = b"") -> bytes:
    return struct.pack(">II", len(header), len(payload)) + header + payload


@given(st.lists(st.tuples(_headers, st.binary(max_size=3 * JOIN)), max_size=5), st.data())
def test_frames_survive_any_cut(frames: list[tuple[dict[str, object], bytes]], data: st.DataObject) -> None:
    wire = b"".join(bytes(part) for header, payload in frames for part in encode(header, payload))
    decoder, decoded = Decoder(), []
    while wire:
        size = data.draw(st.integers(1, len(wire)))
        decoded += decoder.feed(wire[:size])
        wire = wire[size:]
    assert [(frame.header, frame.payload) for frame in decoded] == frames
    assert decoder.pending == 0


@given(st.lists(st.tuples(st.integers(1, 3), st.binary(max_size=3 * JOIN)), max_size=5), st.data())
def test_payloads_in_parts_are_the_same_bytes(frames: list[tuple[int, bytes]], data: st.DataObject) -> None:
    """Whatever is not the payload of a data frame stays whole, and nothing of a payload is kept."""
    wire = bytearray()
    for stream, payload in frames:
        for part in (
            *encode({"t": "data", "s": stream}, payload),
            *encode({"t": "credit", "s": stream, "n": 1}),
        ):
            wire += part
    decoder, space = Decoder(parts=True), bytearray(len(wire) or 1)
    decoded: list[tuple[str, int, bytes]] = []
    while wire:
        size = data.draw(st.integers(1, len(wire)))
        # The same memory each time, as a link has it.
        space[:size] = wire[:size]
        del wire[:size]
        for header, payload in decoder.feed(memoryview(space)[:size]):
            before = decoded.pop()[2] if decoded and header["t"] == decoded[-1][0] == "data" else b""
            decoded.append((header["t"], header["s"], before + bytes(payload)))
        assert decoder.pending <= 100
    expected = [
        each for stream, payload in frames for each in (("data", stream, payload), ("credit", stream, b""))
    ]
    assert decoded == expected


def test_with_parts_only_data_has_a_payload() -> None:
    with pytest.raises(ProtocolError, match="'call' carries a payload"):
        Decoder(parts=True).feed(raw(b'{"t":"call"}', b"x"))


@given(st.binary(max_size=400))
def test_garbage_is_refused_or_waits_for_more(data: bytes) -> None:
    decoder = Decoder()
    try:
        decoder.feed(data)
    except ProtocolError:
        return
    assert decoder.pending <= len(data)


def test_names_that_are_not_utf8_pass_unchanged() -> None:
    header = {"t": "call", "argv": [b"caf\xe9".decode("utf-8", "surrogateescape")]}
    (part,) = encode(header)
    assert Decoder().feed(part)[0].header == header


@pytest.mark.parametrize(
    ("wire", "reason"),
    [
        (struct.pack(">II", MAX_HEADER + 1, 0), "oversized"),
        (struct.pack(">II", 2, MAX_PAYLOAD + 1), "oversized"),
        (struct.pack(">II", 0xFFFFFFFF, 0xFFFFFFFF), "oversized"),
        (raw(b""), "not JSON"),
        (raw(b"{"), "not JSON"),
        (raw(b' {"t":"x"}'), "not JSON"),
        (raw(b'{"t":"x"} '), "not JSON: something follows"),
        (raw(b'{"t":"x"}{}'), "not JSON: something follows"),
        (raw(b"[]"), "not an object"),
        (raw(b"{}"), "not an object with a type"),
        (raw(b'{"t":1}'), "not an object with a type"),
        (raw(b'{"t":"x","n":NaN}'), "NaN"),
        (raw(b'{"t":"x","n":Infinity}'), "Infinity"),
        (raw(b'{"t":"x","a":' + b"[" * 5000 + b"]" * 5000 + b"}"), "nested too deeply"),
        (raw(b"[" * 100_000), "nested too deeply"),
        (raw(b'{"t":"x","n":' + b"9" * 5000 + b"}"), "not JSON"),
    ],
)
def test_hostile_frames_are_refused(wire: bytes, reason: str) -> None:
    with pytest.raises(ProtocolError, match=reason):
        Decoder().feed(wire)


def test_brackets_in_strings_are_not_depth() -> None:
    header = {"t": "call", "argv": ["[{" * 100 + '\\"']}
    assert Decoder().feed(raw(json.dumps(header).encode()))[0].header == header


def test_an_oversized_frame_is_not_sent() -> None:
    with pytest.raises(ProtocolError, match="too large"):
        encode({"t": "call", "argv": ["x" * MAX_HEADER]})
    with pytest.raises(ProtocolError, match="too large"):
        encode({"t": "data"}, bytes(MAX_PAYLOAD + 1))


def test_a_decoder_keeps_no_more_than_one_frame() -> None:
    decoder = Decoder()
    decoder.feed(struct.pack(">II", MAX_HEADER, MAX_PAYLOAD) + b"x" * 1000)
    assert decoder.pending == 1008
