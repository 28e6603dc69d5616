"""Writing newc cpio archives, the format of initrds: every header field given, so the bytes follow from the entries.

Called by the initrd step. The format: the kernel's Documentation/driver-api/early-userspace/buffer-format.rst.
"""

from __future__ import annotations

import stat
from dataclasses import dataclass
from typing import TYPE_CHECKING, BinaryIO

if TYPE_CHECKING:
    from collections.abc import Iterable

_MAX_SIZE = (1 << 32) - 1


@dataclass(frozen=True, slots=True)
class Entry:
    """A file, directory or link: `name` relative to the root, `mode` with the type, `data` (of a link: its target)."""

    name: str
    mode: int
    data: bytes = b""

    @classmethod
    def file(cls, name: str, data: bytes, *, executable: bool = False) -> Entry:
        return cls(name, stat.S_IFREG | (0o755 if executable else 0o644), data)

    @classmethod
    def directory(cls, name: str) -> Entry:
        return cls(name, stat.S_IFDIR | 0o755)

    @classmethod
    def link(cls, name: str, target: str) -> Entry:
        return cls(name, stat.S_IFLNK | 0o777, target.encode())


def write(entries: Iterable[Entry], output: BinaryIO) -> None:
    """Write an archive with `entries` and the directories above them, sorted, all of root and of the year 1970."""
    named = {entry.name: entry for entry in entries}
    for name in list(named):
        above = name.rpartition("/")[0]
        while above and above not in named:
            named[above] = Entry.directory(above)
            above = above.rpartition("/")[0]
    position = 0
    for number, name in enumerate(sorted(named), start=1):
        position += _member(output, named[name], number, position)
    position += _member(output, Entry("TRAILER!!!", 0), 0, position)
    output.write(bytes(-position % 512))


def _member(output: BinaryIO, entry: Entry, number: int, position: int) -> int:
    if len(entry.data) > _MAX_SIZE:
        raise ValueError(f"{entry.name} is too large for a cpio archive")
    name = entry.name.encode() + b"\0"
    links = 2 if stat.S_ISDIR(entry.mode) else 1
    fields = (number, entry.mode, 0, 0, links, 0, len(entry.data), 0, 0, 0, 0, len(name), 0)
    header = b"070701" + b"".join(b"%08X" % field for field in fields) + name
    header += bytes(-(position + len(header)) % 4)
    written = header + entry.data
    written += bytes(-(position + len(written)) % 4)
    return output.write(written)
