"""A small event loop over `selectors`: descriptors, timers, nothing else.

asyncio is not used because importing it in the guest costs half a second of boot under TCG (FACTS.md).
"""

from __future__ import annotations

import heapq
import selectors
import sys
import time
from collections.abc import Callable

Callback = Callable[[], None]


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

    def __init__(self, selector: selectors.BaseSelector | None = None) -> None:
        # poll, not epoll: standard input may be a regular file, which epoll refuses.
        # macOS: poll cannot watch terminals, select can.
        self._selector = selector or (
            selectors.SelectSelector() if sys.platform == "darwin" else selectors.PollSelector()
        )
        self._timers: list[Timer] = []
        self._running = False
        self._after: list[Callback] = []

    def on_readable(self, fd: int, callback: Callback | None) -> None:
        """Call back whenever `fd` can be read or is at its end; None stops that."""
        self._watch(fd, selectors.EVENT_READ, callback)

    def on_writable(self, fd: int, callback: Callback | None) -> None:
        """Call back whenever `fd` can be written or is broken; None stops that."""
        self._watch(fd, selectors.EVENT_WRITE, callback)

    def forget(self, fd: int) -> None:
        """Watch `fd` no more; call before closing it."""
        if fd in self._selector.get_map():
            self._selector.unregister(fd)

    def after(self, callback: Callback) -> None:
        """Call `callback` at the end of every round: where output that a round produced is written."""
        self._after.append(callback)

    def call_later(self, seconds: float, callback: Callback) -> Timer:
        """Call back once, `seconds` from now on the monotonic clock."""
        timer = Timer(time.monotonic() + seconds, callback)
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
        """Release the selector."""
        self._selector.close()

    def _round(self) -> None:
        for key, ready in self._selector.select(self._timeout()):
            for event in (selectors.EVENT_READ, selectors.EVENT_WRITE):
                callback = key.data[event == selectors.EVENT_WRITE]
                # An earlier callback of this round may have closed the descriptor, or given its number to another.
                if ready & event and callback is not None and self._still(key.fd, event, callback):
                    callback()
        now = time.monotonic()
        while self._timers and self._timers[0].due <= now:
            callback = heapq.heappop(self._timers).callback
            if callback is not None:
                callback()
        for after in self._after:
            after()

    def _still(self, fd: int, event: int, callback: Callback) -> bool:
        key = self._selector.get_map().get(fd)
        return key is not None and key.data[event == selectors.EVENT_WRITE] == callback

    def _timeout(self) -> float | None:
        while self._timers and self._timers[0].callback is None:
            heapq.heappop(self._timers)
        return max(0.0, self._timers[0].due - time.monotonic()) if self._timers else None

    def _watch(self, fd: int, event: int, callback: Callback | None) -> None:
        key = self._selector.get_map().get(fd)
        readable, writable = key.data if key is not None else (None, None)
        if event == selectors.EVENT_READ:
            readable = callback
        else:
            writable = callback
        events = (selectors.EVENT_READ if readable else 0) | (selectors.EVENT_WRITE if writable else 0)
        if not events:
            self.forget(fd)
        elif key is None:
            self._selector.register(fd, events, (readable, writable))
        else:
            self._selector.modify(fd, events, (readable, writable))
