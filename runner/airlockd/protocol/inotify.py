"""inotify(7) by descriptors of directories, in a loop. Linux alone has it."""

from __future__ import annotations

import ctypes
import errno
import os
import struct
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from airlockd.protocol.loop import Loop

# linux/inotify.h
MODIFY, ATTRIB, CLOSE_WRITE = 0x2, 0x4, 0x8
MOVED_FROM, MOVED_TO, CREATE, DELETE = 0x40, 0x80, 0x100, 0x200
CHANGES = MODIFY | ATTRIB | MOVED_FROM | MOVED_TO | CREATE | DELETE
IGNORED = 0x8000
_EVENT = struct.Struct("iIII")
_MOST, _ROUNDS = 65536, 64
"""Bytes at once, and so often: the kernel queues 16,384 events by default, of up to 272 bytes."""


class Inotify:
    """Calls back for each change with the number of the watch, what happened, and the name in the directory.

    A number below 0 means that the kernel lost count: anything may have changed.
    """

    def __init__(self, loop: Loop, on_change: Callable[[int, int, bytes], None]) -> None:
        """Raises OSError where there is none, or the user has too many."""
        if not sys.platform.startswith("linux"):
            raise OSError(errno.ENOSYS, "no inotify")
        self._loop, self._on_change = loop, on_change
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._fd = self._check(self._libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC))
        loop.on_readable(self._fd, self.read)

    def add(self, directory: int, mask: int) -> int:
        """Watch the directory of this descriptor; gives its number, the same for the same directory. Raises OSError."""
        path = b"/proc/self/fd/%d" % directory
        return self._check(self._libc.inotify_add_watch(self._fd, path, mask))

    def remove(self, number: int) -> None:
        """Watch it no more. What it has told already may still come."""
        self._libc.inotify_rm_watch(self._fd, number)

    def read(self) -> None:
        """Call back for all that has happened until now."""
        # Not for ever, however fast somebody goes on.
        for _ in range(_ROUNDS):
            try:
                data = os.read(self._fd, _MOST)
            except BlockingIOError:
                return
            position = 0
            while position < len(data):
                number, mask, _cookie, length = _EVENT.unpack_from(data, position)
                position += _EVENT.size
                name = data[position : position + length].rstrip(b"\0")
                position += length
                self._on_change(number, mask, name)
                if self._fd < 0:
                    return

    def close(self) -> None:
        """Call back no more."""
        if self._fd >= 0:
            self._loop.forget(self._fd)
            os.close(self._fd)
            self._fd = -1

    def _check(self, result: int) -> int:
        if result < 0:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number), "inotify")
        return result
