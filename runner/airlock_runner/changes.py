"""Tells the sandbox what the host changes where programs in there watch for changes. The session has one.

No file system that is shared with a guest carries inotify over. So airlockd says which directories are watched, here
they are watched too, and airlockd is told the names in them that were changed; it then makes an event of each. The
sandbox may name any path: only directories of its shares are opened, by no symlink, and it learns no more than names
that it can list itself. The sandbox's own changes come by here as well; airlockd knows them.
"""

from __future__ import annotations

import errno
import os
import stat
from contextlib import suppress
from typing import TYPE_CHECKING

from airlock_runner.mounts import PRIVATE
from airlockd.protocol.inotify import ATTRIB, CHANGES, IGNORED, Inotify

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from airlock_runner.control import Control
    from airlock_runner.machine.argv import Share
    from airlockd.protocol.frames import Header
    from airlockd.protocol.loop import Loop

DIRECTORIES = 4096
"""At most so many of a sandbox: each is one of the watches that the system allows a user."""
NAMES = 100
"""In one call: those of a directory that has more are not told one by one."""
PAUSE = 0.05
"""Seconds in which changes are collected: a file that is saved is changed several times."""
TIMES = 4096
"""Files whose time of change is remembered."""
PATH = 4096
"""Characters of a path, as Linux has it."""

Place = tuple[str, str]
"""The tag of a share, and the path of a directory in it, empty for its own."""


class Changes:
    """All of a session."""

    def __init__(self, loop: Loop, control: Control, shares: Sequence[Share]) -> None:
        self._loop, self._control = loop, control
        self._sources = {share.tag: share.source for share in shares}
        self._inotify: Inotify | None = None
        self._numbers: dict[Place, int] = {}
        self._places: dict[int, set[Place]] = {}
        """One directory may be in two shares."""
        self._changed: dict[Place, set[str]] = {}
        self._times: dict[tuple[Place, str], int] = {}
        """When files were changed, as of the last time that this was told."""
        self._waiting = False

    def watch(self, header: Header) -> None:
        """The sandbox watches a directory, or does no more."""
        tag, path, on = header.get("share"), header.get("path"), header.get("on")
        if (
            not isinstance(tag, str)
            or not isinstance(path, str)
            or tag not in self._sources
            or len(path) > PATH
        ):
            return
        place = tag, path
        if not on:
            self._forget(place)
        elif place not in self._numbers:
            try:
                self._add(place)
            except (OSError, ValueError):
                arguments = {"share": tag, "path": path}
                self._control.call("unwatched", arguments, lambda _header: None, lambda _header: None)

    def close(self) -> None:
        """Tell no more."""
        if self._inotify is not None:
            self._inotify.close()

    def _add(self, place: Place) -> None:
        if len(self._numbers) >= DIRECTORIES:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        if self._inotify is None:
            self._inotify = Inotify(self._loop, self._on_change)
        directory = open_below(os.fspath(self._sources[place[0]]), place[1])
        try:
            number = self._inotify.add(directory, CHANGES)
        finally:
            os.close(directory)
        self._numbers[place] = number
        self._places.setdefault(number, set()).add(place)

    def _forget(self, place: Place) -> None:
        number = self._numbers.pop(place, None)
        self._changed.pop(place, None)
        if number is None or self._inotify is None:
            return
        places = self._places[number]
        places.discard(place)
        if not places:
            del self._places[number]
            self._inotify.remove(number)

    def _on_change(self, number: int, mask: int, name: bytes) -> None:
        if number < 0:
            # The kernel lost count. Without a name, a directory is looked through by whoever watches it.
            for place in self._numbers:
                self._note(place, "")
            return
        places = self._places.get(number, ())
        if mask & IGNORED:
            # The directory is gone; the number is never used again.
            self._places.pop(number, None)
            for place in places:
                self._numbers.pop(place, None)
            return
        for place in places:
            known = os.fsdecode(name)
            if name and (not mask & ATTRIB or self._look_at(place, [known])):
                self._note(place, known)

    def _note(self, place: Place, name: str) -> None:
        names = self._changed.setdefault(place, set())
        names.add(name if len(names) < NAMES else "")
        if not self._waiting:
            self._waiting = True
            self._loop.call_later(PAUSE, self._tell)

    def _tell(self) -> None:
        """One call after the other: the sandbox sets the pace, and what comes meanwhile is collected."""
        self._waiting = False
        if not self._changed:
            return
        place = next(iter(self._changed))
        names = self._changed.pop(place)
        self._waiting = True
        self._look_at(place, names)
        arguments = {"share": place[0], "path": place[1], "names": sorted(names)}
        self._control.call("changed", arguments, lambda _header: self._tell(), lambda _header: self._tell())

    def _look_at(self, place: Place, names: Iterable[str]) -> bool:
        """Whether one of these files has another time of change than when it was told of last.

        What airlockd does so that others in the sandbox hear of a change must not come back as another one.
        """
        if len(self._times) >= TIMES:
            self._times.clear()
        news = False
        with suppress(OSError, ValueError):
            directory = open_below(os.fspath(self._sources[place[0]]), place[1])
            try:
                for name in names:
                    with suppress(OSError):
                        status = os.stat(name, dir_fd=directory, follow_symlinks=False)
                        if not stat.S_ISDIR(status.st_mode):
                            before = self._times.get((place, name))
                            self._times[place, name] = status.st_mtime_ns
                            news = news or before != status.st_mtime_ns
            finally:
                os.close(directory)
        return news


def open_below(root: str, path: str) -> int:
    """A directory of a share, reached by no symlink. Raises OSError and ValueError; the path is the sandbox's word."""
    current = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    for part in path.split("/") if path else ():
        if part in ("", ".", "..", PRIVATE):
            os.close(current)
            raise ValueError(path)
        try:
            following = os.open(
                part, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=current
            )
        finally:
            os.close(current)
        current = following
    return current
