"""What a guest says on its network port, checked before anything is done with it. Pure.

Everything is hostile: what no airlockd would send is a breach of the protocol, which closes the link.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, NamedTuple

from airlock_runner.net.addresses import parse_address
from airlock_runner.net.names import canonical
from airlockd.protocol.frames import ProtocolError

if TYPE_CHECKING:
    from airlock_runner.net.addresses import Address
    from airlockd.protocol.frames import Header

MAX_ID = 2**53
MAX_TEXT = 1024
MAX_REFUSED = 64
"""Destinations in one report of what airlock0 refused."""
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


class Packets(NamedTuple):
    """`times` packets of an IP protocol to a destination, whose port is None where there is none."""

    protocol: int
    address: Address
    port: int | None
    times: int
    name: str | None


class Refused(NamedTuple):
    """What airlock0 refused since the last report, and how many packets are not among them."""

    packets: list[Packets]
    more: int


def parse(header: Header) -> Connect | NameQuery | Answer | Refused:
    """The request in a frame that belongs to no stream. Raises ProtocolError."""
    if header["t"] == "event":
        return _refused(header)
    number = _integer(header, "id", 0, MAX_ID)
    if header["t"] == "reply":
        return Answer(number, None)
    if header["t"] == "error":
        errno = header.get("errno")
        return Answer(number, errno if errno in ERRNOS else "ECONNREFUSED")
    return _call(header, number)


def _call(header: Header, number: int) -> Connect | NameQuery:
    kind, op = header["t"], header.get("op")
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


def _refused(header: Header) -> Refused:
    packets = header.get("packets")
    if (
        header.get("name") != "refused"
        or not isinstance(packets, list)
        or not 1 <= len(packets) <= MAX_REFUSED
    ):
        raise ProtocolError(f"unexpected event {header.get('name')!r:.40}")
    return Refused([_packets(each) for each in packets], _integer(header, "more", 0, MAX_ID))


def _packets(values: object) -> Packets:
    if not isinstance(values, list) or len(values) != 5:
        raise ProtocolError(f"bad packets {values!r:.40}")
    said = dict(zip(Packets._fields, values, strict=True))
    name = None
    if said["name"] is not None:
        try:
            name = canonical(_text(said, "name"))
        except ValueError:
            # It stood for an address in the guest; on the host there is none of this name.
            pass
    port = None if said["port"] is None else _integer(said, "port", 0, 65535)
    return Packets(
        _integer(said, "protocol", 0, 255), _address(said), port, _integer(said, "times", 1, MAX_ID), name
    )


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
