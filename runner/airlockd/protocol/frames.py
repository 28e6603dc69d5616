"""Frames: the bytes on every airlock wire (control and network ports, cli.sock).

A frame is two big-endian u32 (header length, payload length), a JSON object, and the payload as it is.
Both ends treat the other as hostile: lengths are checked before anything is kept or parsed.
"""

from __future__ import annotations

import json
import struct
from typing import Any, NamedTuple

PREFIX = struct.Struct(">II")
MAX_HEADER = 256 * 1024
"""Bytes of JSON in one frame: room for an environment or an argv of a size that Linux would still execute."""
MAX_PAYLOAD = 256 * 1024
"""Bytes of raw data in one frame."""
MAX_DEPTH = 16
JOIN = 4096
"""A payload up to here is copied behind its header: on a virtio port each buffer costs an exit of the VM."""

Header = dict[str, Any]

_encode_json = json.JSONEncoder(separators=(",", ":"), ensure_ascii=False).encode


class ProtocolError(Exception):
    """The other end broke the protocol. The only answer is to close the connection and say why."""


class Frame(NamedTuple):
    """One frame: its JSON object and its raw payload."""

    header: Header
    payload: bytes | memoryview


def encode(header: Header, payload: bytes | memoryview = b"") -> list[bytes | memoryview]:
    """The frame as buffers to write in order; the payload is not copied.

    Raises ProtocolError where the frame would be refused by the other end.
    """
    try:
        text = _encode_json(header).encode("utf-8", "surrogateescape")
    except UnicodeEncodeError as error:
        # Half of a pair, which JSON can express and no text has.
        raise ProtocolError(f"frame has a text that is none: {error.reason}") from None
    return pack(text, payload)


def pack(text: bytes, payload: bytes | memoryview = b"") -> list[bytes | memoryview]:
    """The same of a header that is JSON already."""
    if len(text) > MAX_HEADER or len(payload) > MAX_PAYLOAD:
        raise ProtocolError(f"frame too large: header of {len(text)} bytes, payload of {len(payload)} bytes")
    head = PREFIX.pack(len(text), len(payload)) + text
    if len(payload) <= JOIN:
        return [head + payload]
    return [head, payload]


class Decoder:
    """Turns bytes, cut anywhere, into frames. Never holds more than one frame and one read.

    With `parts`, only frames of type `data` may carry a payload, and it is not gathered: each piece that arrives is a
    frame with the same header, and a view of what was fed, to be used before that is overwritten.
    """

    def __init__(self, *, parts: bool = False) -> None:
        self._buffer = bytearray()
        self._parts = parts
        self._header: Header = {}
        self._left = 0
        """Bytes of payload that are still to come with `_header`, where there are parts."""

    def feed(self, data: bytes | memoryview) -> list[Frame]:
        """The frames that these bytes complete. Raises ProtocolError on the first bad one."""
        frames: list[Frame] = []
        source = memoryview(data)
        if self._left:
            source = self._take(source, frames)
        if self._buffer:
            self._buffer += source
            source = memoryview(self._buffer)
        position, available = 0, len(source)
        while available - position >= PREFIX.size:
            header_size, payload_size = PREFIX.unpack_from(source, position)
            if header_size > MAX_HEADER or payload_size > MAX_PAYLOAD:
                raise ProtocolError(
                    f"oversized frame: header of {header_size} bytes, payload of {payload_size} bytes"
                )
            start = position + PREFIX.size
            middle = start + header_size
            end = middle if self._parts else middle + payload_size
            if end > available:
                break
            header = _parse(bytes(source[start:middle]))
            position = end
            if not self._parts:
                frames.append(Frame(header, bytes(source[middle:end])))
            elif not payload_size:
                frames.append(Frame(header, b""))
            elif header["t"] != "data":
                raise ProtocolError(f"{header['t']!r:.40} carries a payload")
            else:
                self._header, self._left = header, payload_size
                position = available - len(self._take(source[middle:], frames))
        if position or not self._buffer:
            # Another buffer: frames may have views of this one.
            self._buffer = bytearray(source[position:])
        return frames

    def _take(self, source: memoryview, frames: list[Frame]) -> memoryview:
        """Make a frame of what is there of a payload; gives the rest."""
        part = source[: self._left]
        if part:
            frames.append(Frame(self._header, part))
            self._left -= len(part)
        return source[len(part) :]

    @property
    def pending(self) -> int:
        """Bytes of an unfinished frame; not 0 at the end of the connection means that it was cut off."""
        return len(self._buffer)


def _parse(text: bytes) -> Header:
    try:
        # Depth first: the C scanner recurses per bracket, and a hostile header could exhaust the stack.
        if text.count(b"{") + text.count(b"[") > MAX_DEPTH and _depth(text) > MAX_DEPTH:
            raise ProtocolError("header is nested too deeply")
        characters = text.decode("utf-8", "surrogateescape")
        # Not `decode`, which looks for blanks around it, where no airlock writes any: two searches for each header.
        header, end = _decode_json(characters)
        if end != len(characters):
            raise ProtocolError("header is not JSON: something follows it")
    except (ValueError, RecursionError) as error:
        raise ProtocolError(f"header is not JSON: {error}") from None
    if not isinstance(header, dict) or not isinstance(header.get("t"), str):
        raise ProtocolError("header is not an object with a type")
    return header


def _depth(text: bytes) -> int:
    """The deepest nesting, counting brackets outside strings."""
    deepest = depth = 0
    quoted = escaped = False
    for byte in text:
        if quoted:
            if escaped:
                escaped = False
            elif byte == 0x5C:
                escaped = True
            elif byte == 0x22:
                quoted = False
        elif byte == 0x22:
            quoted = True
        elif byte in b"{[":
            depth += 1
            deepest = max(deepest, depth)
        elif byte in b"}]":
            depth -= 1
    return deepest


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not allowed")


_decode_json = json.JSONDecoder(parse_constant=_refuse_constant).raw_decode
