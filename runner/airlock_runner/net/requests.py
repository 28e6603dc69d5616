"""What a guest says on its network port, checked before anything is done with it. Pure.

Everything is hostile: what no airlockd would send is a breach of the protocol, which closes the link.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, NamedTuple

from airlock_runner.net.addresses import parse_address
from airlockd.protocol.frames import ProtocolError

if TYPE_CHECKING:
    from airlock_runner.net.addresses import Address
    from airlockd.protocol.frames import Header

MAX_ID = 2**53
MAX_TEXT = 1024
ERRNOS = ("ECONNREFUSED", "EHOSTUNREACH", "ENETUNREACH", "ETIMEDOUT", "ECONNRESET", "EACCES")
"""What a failed connection may be called, both ways."""


class Connect(NamedTuple):
    """A program wants to be connected. `address` is set for `tcp`, `name` there if it came from DNS.

    For `port`, `port` is the guest's localhost port; for `socket`, `name` is that of a forwarded socket.
    """

    id: int
    stream: int
    kind: Literal["tcp", "port", "socket"]
    name: str | None
    address: Address | None
    port: int


class NameQuery(NamedTuple):
    """Whether a name may be looked up at all."""

    id: int
    name: str


class Answer(NamedTuple):
    """To a call of ours; `errno` is None where it succeeded."""

    id: int
    errno: str | None


def parse(header: Header) -> Connect | NameQuery | Answer:
    """The request in a frame that belongs to no stream. Raises ProtocolError."""
    number = _integer(header, "id", 0, MAX_ID)
    kind = header["t"]
    if kind == "reply":
        return Answer(number, None)
    if kind == "error":
        errno = header.get("errno")
        return Answer(number, errno if errno in ERRNOS else "ECONNREFUSED")
    op = header.get("op")
    if kind != "call" or op not in ("connect", "name"):
        raise ProtocolError(f"unexpected {kind} {op!r:.40}")
    if op == "name":
        return NameQuery(number, _text(header, "name"))
    stream = _integer(header, "stream", 1, MAX_ID)
    if not stream % 2:
        raise ProtocolError(f"stream {stream} is not the guest's to open")
    match header.get("kind"):
        case "tcp":
            # Port 0 is no breach: any program may try it.
            name = None if header.get("name") is None else _text(header, "name")
            return Connect(number, stream, "tcp", name, _address(header), _integer(header, "port", 0, 65535))
        case "port":
            return Connect(number, stream, "port", None, None, _integer(header, "port", 1, 65535))
        case "socket":
            return Connect(number, stream, "socket", _text(header, "name"), None, 0)
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


def _address(header: Header) -> Address:
    text = _text(header, "address")
    try:
        return parse_address(text)
    except ValueError:
        raise ProtocolError(f"bad address {text!r:.60}") from None
