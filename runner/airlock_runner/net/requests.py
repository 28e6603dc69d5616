"""What a guest says on its network port, checked before anything is done with it. Pure.

Everything is hostile: what no airlockd would send is a breach of the protocol, which closes the link.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, NamedTuple

from airlockd.protocol.frames import ProtocolError

if TYPE_CHECKING:
    from airlockd.protocol.frames import Header

MAX_ID = 2**53
MAX_TEXT = 1024
ERRNOS = ("ECONNREFUSED", "EHOSTUNREACH", "ENETUNREACH", "ETIMEDOUT", "ECONNRESET", "EACCES")
"""What a failed connection may be called, both ways."""


class Connect(NamedTuple):
    """A program has connected to what is forwarded: for `port`, to `port` of its localhost; for `socket`, to `name`."""

    id: int
    stream: int
    kind: Literal["port", "socket"]
    name: str | None
    port: int


class Answer(NamedTuple):
    """To a call of ours; `errno` is None where it succeeded."""

    id: int
    errno: str | None


def parse(header: Header) -> Connect | Answer:
    """The request in a frame that belongs to no stream. Raises ProtocolError."""
    number = _integer(header, "id", 0, MAX_ID)
    if header["t"] == "reply":
        return Answer(number, None)
    if header["t"] == "error":
        errno = header.get("errno")
        return Answer(number, errno if errno in ERRNOS else "ECONNREFUSED")
    kind, op = header["t"], header.get("op")
    if kind != "call" or op != "connect":
        raise ProtocolError(f"unexpected {kind} {op!r:.40}")
    stream = _integer(header, "stream", 1, MAX_ID)
    if not stream % 2:
        raise ProtocolError(f"stream {stream} is not the guest's to open")
    match header.get("kind"):
        case "port":
            return Connect(number, stream, "port", None, _integer(header, "port", 1, 65535))
        case "socket":
            return Connect(number, stream, "socket", _text(header, "name"), 0)
        case other:
            raise ProtocolError(f"unknown kind of connection {other!r:.40}")


def _integer(header: Header, key: str, low: int, high: int) -> int:
    value = header.get(key)
    if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
        raise ProtocolError(f"bad {key} {value!r:.40}")
    return value


def _text(header: Header, key: str) -> str:
    value = header.get(key)
    if not isinstance(value, str) or len(value) > MAX_TEXT:
        raise ProtocolError(f"bad {key} {value!r:.40}")
    return value
