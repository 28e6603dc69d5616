"""Turns: of a user's machines, no more come up at once than the host has processors.

Ten that were restored at once on two processors took a quarter more processor time than two by two, and all were late.
"""

from __future__ import annotations

import fcntl
import os
import threading
from contextlib import suppress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from airlockd.protocol.loop import Loop, Timer

MAX_SECONDS = 5.0
"""After which a machine comes up without a turn: whoever has it may have been stopped."""

MAX_WAITED_FOR = 8
"""Places, of which each takes a thread: with more of them than that, one is free again soon."""


def processors() -> int:
    """Those that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class Turn:
    """A lock on one of the files `places`, from `begin` on until `end`, or for as long as this process lives."""

    def __init__(self, loop: Loop, places: Sequence[Path], begin: Callable[[], None]) -> None:
        self._loop, self._places, self._begin = loop, places, begin
        self._guard = threading.Lock()
        self._lock: int | None = None
        self._wanted = True
        self._timer: Timer | None = None
        self._pipe: tuple[int, int] | None = None
        """Read and write end, while one of the places is waited for."""

    def take(self) -> None:
        """Call `begin`: now if there is a place, or else from the loop, once there is one or after MAX_SECONDS."""
        try:
            self._places[0].parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            for place in self._places:
                self._lock = _locked(place, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if self._lock is not None:
                    break
            else:
                self._wait()
                return
        except OSError:
            # A store that cannot be written, or no descriptors: without a turn, then.
            pass
        self._begin()

    def end(self) -> None:
        """Let the next one begin. Harmless when that was done."""
        with self._guard:
            self._wanted = False
            if self._lock is not None:
                os.close(self._lock)
                self._lock = None
        self._forget()

    def _wait(self) -> None:
        """For any of the places, and for the time: threads wait, because no poll tells of locks."""
        self._pipe = read, _ = os.pipe()

        def late() -> None:
            self.end()
            self._begin()

        def mine() -> None:
            self._forget()
            self._begin()

        self._loop.on_readable(read, mine)
        self._timer = self._loop.call_later(MAX_SECONDS, late)
        first = os.getpid() % len(self._places)
        # Where there are no more threads to be had, it is the time that is waited for.
        with suppress(RuntimeError):
            for place in [*self._places[first:], *self._places[:first]][:MAX_WAITED_FOR]:
                # A daemon: it may wait for as long as somebody else is stopped.
                threading.Thread(target=self._lock_one, args=(place,), name="turn", daemon=True).start()

    def _lock_one(self, place: Path) -> None:
        with suppress(OSError):
            fd = _locked(place, fcntl.LOCK_EX)
            with self._guard:
                if self._wanted and self._lock is None:
                    assert self._pipe is not None
                    self._lock = fd
                    os.write(self._pipe[1], b"y")
                elif fd is not None:
                    os.close(fd)

    def _forget(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        if self._pipe is not None:
            self._loop.forget(self._pipe[0])
            for fd in self._pipe:
                os.close(fd)
            self._pipe = None


def _locked(place: Path, how: int) -> int | None:
    """A descriptor that has the lock, or None if that would have to wait. Raises OSError."""
    fd = os.open(place, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, how)
    except BlockingIOError:
        os.close(fd)
        return None
    except OSError:
        os.close(fd)
        raise
    return fd
