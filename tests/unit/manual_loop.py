"""A loop whose callbacks the test calls."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable


class ManualLoop:
    """What is asked of `airlockd.protocol.loop.Loop`, kept."""

    def __init__(self) -> None:
        self.readable: dict[int, Callable[[], None]] = {}
        self.due: list[Callable[[], None]] = []

    def on_readable(self, fd: int, callback: Callable[[], None]) -> None:
        self.readable[fd] = callback

    def forget(self, fd: int) -> None:
        del self.readable[fd]

    def call_later(self, _seconds: float, callback: Callable[[], None]) -> object:
        self.due.append(callback)
        return object()

    def time_passes(self) -> None:
        """All timers are due."""
        due, self.due = self.due, []
        for callback in due:
            callback()
