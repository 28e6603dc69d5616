"""Tells of finished writes to files: by inotify on Linux, by looking now and then elsewhere.

Both sides use it for single files that are mounted.
"""

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

LOOK_SECONDS = 1.0
"""Between two looks where the kernel does not tell."""
_IN_CLOSE_WRITE, _IN_MOVED_TO = 0x8, 0x80  # linux/inotify.h
_EVENT = struct.Struct("iIII")


class Watch:
    """Calls back when a file may have got new content: its writer closed it, or another was renamed to its name.

    A call too many does no harm: whoever is called looks for himself.
    """

    def __init__(self, loop: Loop) -> None:
        self._loop = loop
        self._fd = -1
        self._by_directory: dict[int, list[tuple[bytes, Callable[[], None]]]] = {}
        self._looked_at: list[Callable[[], None]] = []
        self._closed = False

    def add(self, directory: int, name: str, callback: Callable[[], None]) -> None:
        """Watch `name` in the directory of this descriptor."""
        try:
            number = self._watch(directory)
        except OSError:
            # The kernel has none, or the user has too many: the system's limits are not ours to raise.
            if not self._looked_at:
                self._loop.call_later(LOOK_SECONDS, self._look)
            self._looked_at.append(callback)
            return
        self._by_directory.setdefault(number, []).append((os.fsencode(name), callback))

    def close(self) -> None:
        """Call back no more."""
        self._closed = True
        if self._fd >= 0:
            self._loop.forget(self._fd)
            os.close(self._fd)
            self._fd = -1

    def _watch(self, directory: int) -> int:
        if not sys.platform.startswith("linux"):
            raise OSError(errno.ENOSYS, "no inotify")
        libc = ctypes.CDLL(None, use_errno=True)
        if self._fd < 0:
            fd = libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
            if fd < 0:
                raise OSError(ctypes.get_errno(), "inotify_init1")
            self._fd = fd
            self._loop.on_readable(fd, self._read)
        path = f"/proc/self/fd/{directory}".encode()
        number: int = libc.inotify_add_watch(self._fd, path, _IN_CLOSE_WRITE | _IN_MOVED_TO)
        if number < 0:
            raise OSError(ctypes.get_errno(), "inotify_add_watch")
        return number

    def _read(self) -> None:
        data = os.read(self._fd, 65536)
        position = 0
        callbacks: dict[Callable[[], None], None] = {}
        while position < len(data):
            number, _mask, _cookie, length = _EVENT.unpack_from(data, position)
            position += _EVENT.size
            changed = data[position : position + length].rstrip(b"\0")
            position += length
            if number < 0:
                # The kernel lost count: all may have changed.
                callbacks |= dict.fromkeys(each for names in self._by_directory.values() for _, each in names)
            callbacks |= dict.fromkeys(
                each for name, each in self._by_directory.get(number, ()) if name == changed
            )
        for callback in callbacks:
            callback()

    def _look(self) -> None:
        if self._closed:
            return
        for callback in self._looked_at:
            callback()
        self._loop.call_later(LOOK_SECONDS, self._look)
