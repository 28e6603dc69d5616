"""Virtual DNS: a query in, the answer out. Nothing is resolved here, and no query goes anywhere.

Pure. Every name has a synthetic address, whatever it is; it is resolved when a connection is made. Sources:
RFC 1035, 6761 (localhost), 6891 (a server without EDNS leaves OPT out), 8020.
"""

from __future__ import annotations

import re
import struct
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from airlock_runner.net.synthetic import Names

A, PTR, ANY = 1, 12, 255
TTL = 10
"""Seconds: short, for an address may stand for another name later."""
MAX_QUERY = 4096
NOERROR, FORMERR, NXDOMAIN, NOTIMP, SERVFAIL, REFUSED = 0, 1, 3, 4, 2, 5
_IN = 1
_HEADER = struct.Struct(">HHHHHH")
_RESPONSE, _OPCODE, _TRUNCATED, _RECURSION_DESIRED, _RECURSION_AVAILABLE = 0x8000, 0x7800, 0x200, 0x100, 0x80
_LABEL = re.compile(rb"[!-\-/-~]{1,63}")
"""Printable ASCII but the dot: what a name may have to be looked at. Others do not exist."""
_SYNTHETIC = re.compile(r"(\d{1,3})\.(\d{1,3})\.(\d{1,3})\.(\d{1,3})\.in-addr\.arpa")


class Question(NamedTuple):
    """One question. `name` is in lower case, without the last dot, None where it is no name that could exist."""

    number: int
    flags: int
    name: str | None
    kind: int
    section: bytes


def parse(query: bytes) -> Question | bytes | None:
    """The question of a query; or the answer to one that has none; or None for what gets no answer at all."""
    if len(query) < _HEADER.size:
        return None
    number, flags, questions, *_ = _HEADER.unpack_from(query)
    if flags & _RESPONSE:
        return None
    if flags & _OPCODE or questions != 1 or len(query) > MAX_QUERY:
        return _answer(number, flags, NOTIMP if flags & _OPCODE else FORMERR)
    try:
        labels, end = _labels(query)
        kind, domain = struct.unpack_from(">HH", query, end)
    except (ValueError, struct.error):
        return _answer(number, flags, FORMERR)
    section = query[_HEADER.size : end + 4]
    if domain not in (_IN, ANY):
        return _answer(number, flags, REFUSED, section)
    valid = labels and all(_LABEL.fullmatch(label) for label in labels)
    name = b".".join(labels).decode("ascii").lower() if valid else None
    return Question(number, flags, name, kind, section)


def _labels(query: bytes) -> tuple[list[bytes], int]:
    """The labels of the question's name, and where it ends. Raises ValueError."""
    labels: list[bytes] = []
    end = _HEADER.size
    while True:
        size = query[end] if end < len(query) else 64
        # A pointer has nothing to point at in a question.
        if size > 63 or end + 1 + size > len(query) or end - _HEADER.size + size > 254:
            raise ValueError("not a name")
        end += 1 + size
        if not size:
            return labels, end
        labels.append(query[end - size : end])


def respond(question: Question, names: Names, *, denied: bool = False) -> bytes:
    """The answer. `denied`: the policy does not have the name, and the user wants that told as NXDOMAIN."""
    number, flags, name, kind, section = question
    if name is None or denied:
        return _answer(number, flags, NXDOMAIN, section)
    if kind == PTR:
        reverse = _SYNTHETIC.fullmatch(name)
        octets = [int(part) for part in reverse.groups()[::-1]] if reverse else []
        known = names.name(bytes(octets)) if octets and max(octets) < 256 else None
        if known is None:
            return _answer(number, flags, NXDOMAIN, section)
        return _answer(number, flags, NOERROR, section, _record(PTR, _wire_name(known)))
    if kind not in (A, ANY):
        return _answer(number, flags, NOERROR, section)
    if name == "localhost" or name.endswith(".localhost"):
        address: bytes | None = b"\x7f\0\0\1"
    else:
        address = names.address(name)
    if address is None:
        return _answer(number, flags, SERVFAIL, section)
    return _answer(number, flags, NOERROR, section, _record(A, address))


def truncated(answer: bytes, limit: int) -> bytes:
    """An answer for UDP: cut to its question, with TC set, where it is longer than `limit`."""
    if len(answer) <= limit:
        return answer
    number, flags, *_ = _HEADER.unpack_from(answer)
    return _HEADER.pack(number, flags | _TRUNCATED, 0, 0, 0, 0)


def _answer(number: int, flags: int, code: int, section: bytes = b"", record: bytes = b"") -> bytes:
    flags = _RESPONSE | _RECURSION_AVAILABLE | flags & (_OPCODE | _RECURSION_DESIRED) | code
    return _HEADER.pack(number, flags, bool(section), bool(record), 0, 0) + section + record


def _record(kind: int, data: bytes) -> bytes:
    # The name is a pointer to that of the question.
    return struct.pack(">HHHIH", 0xC000 | _HEADER.size, kind, _IN, TTL, len(data)) + data


def _wire_name(name: str) -> bytes:
    labels = [label.encode("ascii") for label in name.split(".")]
    return b"".join(bytes((len(label),)) + label for label in labels) + b"\0"
