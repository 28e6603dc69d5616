"""Where in a share a path of a process lies: from /proc/PID/mountinfo, proc_pid_mountinfo(5)."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Container

Place = tuple[int, bytes]
"""The device of a share, and a path in it; that of the share itself is empty."""


class Mount(NamedTuple):
    """A line of it: what of a device, from `root` down, is at `target`."""

    device: int
    root: bytes
    target: bytes


def parse(table: bytes, devices: Container[int]) -> list[Mount]:
    """The mounts of these devices, in the table's order: the later are above the earlier."""
    found = []
    # What comes after the last end of a line was cut off.
    for line in table.split(b"\n")[:-1]:
        fields = line.split(b" ", 5)
        major, _, minor = fields[2].partition(b":")
        device = os.makedev(int(major), int(minor))
        if device in devices:
            found.append(Mount(device, _unescape(fields[3]), _unescape(fields[4])))
    return found


def _unescape(field: bytes) -> bytes:
    """Of blanks, line ends and backslashes there are octal numbers."""
    first, *rest = field.split(b"\\")
    return first + b"".join(bytes([int(part[:3], 8)]) + part[3:] for part in rest)


def locate(mounts: list[Mount], path: bytes) -> Place | None:
    """Where an absolute path is in a share; None where it is in none."""
    best: Mount | None = None
    for mount in mounts:
        below = mount.target.rstrip(b"/") + b"/"
        if (path + b"/").startswith(below) and (best is None or len(mount.target) >= len(best.target)):
            best = mount
    if best is None:
        return None
    rest = path[len(best.target.rstrip(b"/")) :]
    return best.device, (best.root.rstrip(b"/") + rest).strip(b"/")
