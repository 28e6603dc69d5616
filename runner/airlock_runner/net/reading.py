"""What net.log says, for people: `airlock net log` and `airlock net learn`. The journal writes it.

A guest may have written in it too: nothing in it is trusted.
"""

from __future__ import annotations

import json
import os
import time
from dataclasses import dataclass, fields
from typing import IO, TYPE_CHECKING, Any

from airlock_runner.net.addresses import number_address, parse_address
from airlock_runner.net.journal import NAME, OLDER
from airlock_runner.net.names import canonical
from airlock_runner.net.record import Record

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from airlock_runner.net.addresses import Address
    from airlock_runner.project import Project

MAX_LINE = 16 * 1024
MAX_TEXT = 2000
"""Characters of one value."""
MAX_NUMBER = 2**63
"""Of bytes, seconds or packets. Python's own go on, and some cannot be printed."""
POLL_SECONDS = 0.2
REACHED = ("open", "closed", "reset")


@dataclass(frozen=True, slots=True)
class Entry:
    """One line: when, and the connection as it was then. Text in it may be anything."""

    time: str
    record: Record

    def values(self) -> dict[str, Any]:
        """As JSON has it."""
        return {"time": self.time, **self.record.values()}


def connections(project: Project) -> list[Entry]:
    """Every connection that is still known, once, in the order in which they were decided, with the latest word on it.

    `time` is that of the decision.
    """
    found: dict[str, Entry] = {}
    for name in (*reversed(OLDER), NAME):
        file = _open(project, name)
        if file is None:
            continue
        with file:
            for entry in _entries(file):
                first = found.get(entry.record.id)
                found[entry.record.id] = Entry(first.time if first else entry.time, entry.record)
    return list(found.values())


class Tail:
    """What is written to the log from now on: iterate over it, for ever."""

    def __init__(self, project: Project) -> None:
        self._project = project
        self._file = _open(project, NAME)
        if self._file is not None:
            self._file.seek(0, os.SEEK_END)

    def __iter__(self) -> Iterator[Entry]:
        while True:
            if self._file is None:
                self._file = _open(self._project, NAME)
            if self._file is None:
                time.sleep(POLL_SECONDS)
                continue
            yield from _entries(self._file)
            if _is_current(self._project, self._file):
                time.sleep(POLL_SECONDS)
                continue
            # What was written to it before it was put away.
            yield from _entries(self._file)
            self.close()

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()
            self._file = None


def learned(entries: Iterable[Entry], *, denied: bool = False) -> list[str]:
    """Patterns for what was reached over TCP, and with `denied` for what was refused by the policy too; sorted."""
    patterns: set[str] = set()
    for entry in entries:
        record = entry.record
        if record.kind == "tcp" and (record.state in REACHED or (denied and record.state == "denied")):
            pattern = _pattern(record)
            if pattern is not None:
                patterns.add(pattern)
    return sorted(patterns)


def _pattern(record: Record) -> str | None:
    if not record.port or not 1 <= record.port <= 65535:
        return None
    address: Address | None
    try:
        if record.name is not None and ":" not in record.name:
            name = canonical(record.name)
            address = number_address(name)
            if address is None:
                return f"{name}:{record.port}"
        else:
            address = parse_address(record.name or record.address or "")
    except ValueError:
        return None
    assert address is not None
    return f"[{address}]:{record.port}" if address.version == 6 else f"{address}:{record.port}"


def _open(project: Project, name: str) -> IO[bytes] | None:
    try:
        return open(project.open_reading(name), "rb")
    except FileNotFoundError:
        return None


def _entries(file: IO[bytes]) -> Iterator[Entry]:
    """The lines from here to the end; a last one that is not complete yet is left for the next time."""
    while True:
        at = file.tell()
        line = file.readline(MAX_LINE)
        if not line:
            return
        if not line.endswith(b"\n"):
            if len(line) < MAX_LINE:
                file.seek(at)
                return
            continue
        entry = _parse(line)
        if entry is not None:
            yield entry


def _parse(line: bytes) -> Entry | None:
    try:
        values = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(values, dict) or not isinstance(values.get("time"), str):
        return None
    record: dict[str, Any] = {}
    for each in fields(Record):
        # Lines of earlier versions have no such keys.
        value = values.get(each.name, each.default if each.name in ("protocol", "count") else None)
        if not _fits(value, _TYPES[each.name]):
            return None
        record[each.name] = value
    return Entry(values["time"][:40], Record(**record))


def _fits(value: object, kinds: tuple[type, ...]) -> bool:
    if isinstance(value, str):
        return str in kinds and len(value) <= MAX_TEXT
    # NaN is on neither side of anything.
    return type(value) in kinds and (not isinstance(value, int | float) or 0 <= value <= MAX_NUMBER)


_TYPES: dict[str, tuple[type, ...]] = {
    "id": (str,), "kind": (str,), "name": (str, type(None)), "address": (str, type(None)),
    "port": (int, type(None)), "verdict": (str,), "rule": (str,), "state": (str,), "error": (str, type(None)),
    "sent": (int,), "received": (int,), "seconds": (float, int), "protocol": (str,), "count": (int,),
}  # fmt: skip


def _is_current(project: Project, file: IO[bytes]) -> bool:
    """Whether the open file still has the name of the log."""
    try:
        fd = project.open_reading(NAME)
    except FileNotFoundError:
        return False
    try:
        return os.path.samestat(os.fstat(fd), os.fstat(file.fileno()))
    finally:
        os.close(fd)
