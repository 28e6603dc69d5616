"""Buffers that wait to be written, in order, and those who wait for room among them."""

from __future__ import annotations

import os
from collections import deque
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

BACKLOG = 2 * 1024 * 1024
"""Bytes that wait from which on it is `congested`: what more there is to send waits where it is."""
AT_ONCE = 64
"""Buffers in one `writev`."""
SMALL = 4096
"""Bytes up to which pieces that are kept are joined: each by itself costs as much as a few hundred bytes."""


def keep(pieces: deque[memoryview], data: bytes | memoryview) -> None:
    """Append what waits to be written. Large pieces are not copied."""
    if pieces and len(pieces[-1]) + len(data) <= SMALL:
        data = b"".join((pieces.pop(), data))
    pieces.append(memoryview(data))


class Output:
    """Takes buffers, and writes them. `size` is the number of bytes that wait."""

    __slots__ = ("_held", "buffers", "size")

    def __init__(self) -> None:
        self.buffers: deque[bytes | memoryview] = deque()
        self.size = 0
        self._held: deque[Callable[[], None]] = deque()

    def add(self, buffers: Iterable[bytes | memoryview]) -> None:
        """Queue these."""
        for each in buffers:
            self.buffers.append(each)
            self.size += len(each)

    @property
    def congested(self) -> bool:
        """Whether enough waits. Windows bound each stream or connection; this bounds a thousand of them."""
        return self.size > BACKLOG

    def when_clear(self, callback: Callable[[], None]) -> None:
        """Call back once there is room again; those that wait longest have their turn first."""
        self._held.append(callback)

    def write(self, fd: int) -> None:
        """Write all, and what those have that waited. Raises OSError; BlockingIOError where `fd` takes no more."""
        while self.size or self._held:
            while self._held and not self.congested:
                self._held.popleft()()
            # Those that waited may have had nothing to say after all.
            if self.size:
                buffers = self.buffers
                some = [buffers[number] for number in range(min(len(buffers), AT_ONCE))]
                self.written(os.writev(fd, some))

    def written(self, count: int) -> None:
        """Drop the first `count` bytes."""
        self.size -= count
        buffers = self.buffers
        while count:
            first = buffers[0]
            if len(first) <= count:
                count -= len(first)
                buffers.popleft()
            else:
                buffers[0] = memoryview(first)[count:]
                count = 0
