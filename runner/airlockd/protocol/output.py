"""Buffers that wait to be written, in order, and those who wait for room among them."""

from __future__ import annotations

import os
from collections import OrderedDict, deque
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
        self._held: OrderedDict[Callable[[], None], None] = OrderedDict()

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
        """Call back once there is room again, and once however often this is asked; who waits longest is first."""
        self._held[callback] = None

    def forget(self, callback: Callable[[], None]) -> None:
        """Do not call back; harmless where nobody asked for it."""
        self._held.pop(callback, None)

    def write(self, fd: int) -> None:
        """Write all, and what those have that waited. Raises OSError; BlockingIOError where `fd` takes no more."""
        while self.size or self._held:
            while self._held and not self.congested:
                self._held.popitem(last=False)[0]()
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
