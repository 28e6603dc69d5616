"""A small event loop over poll(2): descriptors, timers, nothing else.

asyncio is not used because importing it in the guest costs half a second of boot under TCG (FACTS.md); `selectors`
because it does in Python, several times per connection, what `select.poll` and `select.epoll` do in C.
"""

from __future__ import annotations

import errno
import heapq
import select
import sys
import time
from collections.abc import Callable
from typing import Protocol

Callback = Callable[[], None]
NO_DESCRIPTORS = (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS)
"""What `accept` fails with while somebody goes on waiting: the listener stays readable, and a loop would spin."""
_SWEEP_AT = 128
"""Timers, at least, before those that are cancelled are thrown out."""
_IN, _OUT = 0x1, 0x4
"""POLLIN and POLLOUT, which are EPOLLIN and EPOLLOUT too. Anything else that is told concerns both directions."""


class Poller(Protocol):
    """`select.poll` and, where no regular file is watched, `select.epoll`."""

    def register(self, fd: int, mask: int, /) -> None:
        """Watch `fd`."""

    def modify(self, fd: int, mask: int, /) -> None:
        """Watch `fd` for something else."""

    def unregister(self, fd: int, /) -> None:
        """Watch `fd` no more."""

    def poll(self, timeout: float | None = None, /) -> list[tuple[int, int]]:
        """What happened, by descriptor; the timeout is in milliseconds for poll, in seconds for epoll."""


class _Watch:
    """What to call for a descriptor, for as long as it is watched: a number that is used again gets another."""

    __slots__ = ("readable", "writable")

    def __init__(self) -> None:
        self.readable: Callback | None = None
        self.writable: Callback | None = None


class Timer:
    """A callback that is due at a time; `cancel` makes it a no-op."""

    __slots__ = ("callback", "due")

    def __init__(self, due: float, callback: Callback) -> None:
        self.due = due
        self.callback: Callback | None = callback

    def cancel(self) -> None:
        """Never call it."""
        self.callback = None

    def __lt__(self, other: Timer) -> bool:
        return self.due < other.due


class Loop:
    """Runs callbacks for readable and writable descriptors and for timers until `stop`."""

    def __init__(self, *, many: bool = False) -> None:
        """`many` descriptors, none of them a regular file: what that takes does not grow with their number."""
        # poll, not epoll, by default: standard input may be a regular file, which epoll refuses.
        # macOS: poll cannot watch terminals, select can.
        epoll = many and sys.platform == "linux"
        self._poller: Poller = (
            select.epoll() if epoll else _Select() if sys.platform == "darwin" else select.poll()
        )
        self._unit = 1 if epoll else 1000
        self._watched: dict[int, _Watch] = {}
        self._timers: list[Timer] = []
        self._sweep_at = _SWEEP_AT
        self._running = False
        self._after: list[Callback] = []

    def on_readable(self, fd: int, callback: Callback | None) -> None:
        """Call back whenever `fd` can be read or is at its end; None stops that."""
        watch = self._watched.get(fd)
        self._watch(fd, callback, watch.writable if watch else None)

    def on_writable(self, fd: int, callback: Callback | None) -> None:
        """Call back whenever `fd` can be written or is broken; None stops that."""
        watch = self._watched.get(fd)
        self._watch(fd, watch.readable if watch else None, callback)

    def forget(self, fd: int) -> None:
        """Watch `fd` no more; call before closing it."""
        if self._watched.pop(fd, None) is not None:
            self._poller.unregister(fd)

    def after(self, callback: Callback) -> None:
        """Call `callback` at the end of every round: where output that a round produced is written."""
        self._after.append(callback)

    def call_later(self, seconds: float, callback: Callback) -> Timer:
        """Call back once, `seconds` from now on the monotonic clock."""
        timer = Timer(time.monotonic() + seconds, callback)
        if len(self._timers) >= self._sweep_at:
            # Those that were cancelled long before they are due would pile up.
            self._timers = [each for each in self._timers if each.callback is not None]
            heapq.heapify(self._timers)
            self._sweep_at = max(_SWEEP_AT, 2 * len(self._timers))
        heapq.heappush(self._timers, timer)
        return timer

    def run(self) -> None:
        """Serve until `stop` is called by a callback."""
        self._running = True
        for callback in self._after:
            callback()
        while self._running:
            self._round()

    def stop(self) -> None:
        """Make `run` return at the end of the round."""
        self._running = False

    def close(self) -> None:
        """Release the poller."""
        if sys.platform == "linux" and isinstance(self._poller, select.epoll):
            self._poller.close()

    def _round(self) -> None:
        watched = self._watched
        events = [
            (fd, told, watch, watch.readable, watch.writable)
            for fd, told in self._poller.poll(self._timeout())
            if (watch := watched.get(fd)) is not None
        ]
        for fd, told, watch, readable, writable in events:
            # An earlier callback of this round may have closed the descriptor, given its number to another, or asked
            # for another callback, which might find nothing to read any more.
            if (
                told & ~_OUT
                and readable is not None
                and watched.get(fd) is watch
                and watch.readable == readable
            ):
                readable()
            if (
                told & ~_IN
                and writable is not None
                and watched.get(fd) is watch
                and watch.writable == writable
            ):
                writable()
        now = time.monotonic()
        while self._timers and self._timers[0].due <= now:
            callback = heapq.heappop(self._timers).callback
            if callback is not None:
                callback()
        for after in self._after:
            after()

    def _timeout(self) -> float | None:
        while self._timers and self._timers[0].callback is None:
            heapq.heappop(self._timers)
        return max(0.0, self._timers[0].due - time.monotonic()) * self._unit if self._timers else None

    def _watch(self, fd: int, readable: Callback | None, writable: Callback | None) -> None:
        if readable is None and writable is None:
            self.forget(fd)
            return
        mask = (_IN if readable else 0) | (_OUT if writable else 0)
        watch = self._watched.get(fd)
        if watch is None:
            self._poller.register(fd, mask)
            self._watched[fd] = watch = _Watch()
        else:
            self._poller.modify(fd, mask)
        watch.readable, watch.writable = readable, writable


class _Select:
    """The same over select(2)."""

    def __init__(self) -> None:
        self._masks: dict[int, int] = {}

    def register(self, fd: int, mask: int) -> None:
        self._masks[fd] = mask

    modify = register

    def unregister(self, fd: int) -> None:
        del self._masks[fd]

    def poll(self, timeout: float | None = None) -> list[tuple[int, int]]:
        masks = self._masks
        readable, writable, _ = select.select(
            [fd for fd, mask in masks.items() if mask & _IN],
            [fd for fd, mask in masks.items() if mask & _OUT],
            [],
            None if timeout is None else timeout / 1000,
        )
        return [(fd, _IN) for fd in readable] + [(fd, _OUT) for fd in writable]
