"""Tells of finished writes to files: by inotify on Linux, by looking now and then elsewhere.

Both sides use it for single files that are mounted.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from airlockd.protocol.inotify import CLOSE_WRITE, MOVED_TO, Inotify

if TYPE_CHECKING:
    from collections.abc import Callable

    from airlockd.protocol.loop import Loop

LOOK_SECONDS = 1.0
"""Between two looks where the kernel does not tell."""


class Watch:
    """Calls back when a file may have got new content: its writer closed it, or another was renamed to its name.

    A call too many does no harm: whoever is called looks for himself.
    """

    def __init__(self, loop: Loop) -> None:
        self._loop = loop
        self._inotify: Inotify | None = None
        self._by_directory: dict[int, list[tuple[bytes, Callable[[], None]]]] = {}
        self._looked_at: list[Callable[[], None]] = []
        self._closed = False

    def add(self, directory: int, name: str, callback: Callable[[], None]) -> None:
        """Watch `name` in the directory of this descriptor."""
        try:
            if self._inotify is None:
                self._inotify = Inotify(self._loop, self._changed)
            number = self._inotify.add(directory, CLOSE_WRITE | MOVED_TO)
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
        if self._inotify is not None:
            self._inotify.close()

    def _changed(self, number: int, _mask: int, changed: bytes) -> None:
        lost = number < 0
        for watched in list(self._by_directory.values()) if lost else [self._by_directory.get(number, [])]:
            for name, callback in watched:
                if lost or name == changed:
                    callback()

    def _look(self) -> None:
        if self._closed:
            return
        for callback in self._looked_at:
            callback()
        self._loop.call_later(LOOK_SECONDS, self._look)
