"""The host's end of the port airlock.packets: takes records apart, and writes what there is to write."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from airlockd.protocol.output import Output
from airlockd.protocol.packets import HEADER, LENGTH, MAX_RECORD

if TYPE_CHECKING:
    from collections.abc import Callable

    from airlockd.protocol.loop import Loop

READ_SIZE = 1024 * 1024
MAX_OUTPUT = 8 * 1024 * 1024
"""Bytes waiting to be written beyond which packets are lost."""


class Wire:
    """Serves `fd`, which it closes.

    `on_packet` gets each packet of the guest, a view that holds for the call; `on_pause` is called after the last of
    those that came together, and `on_close` in the end, with what was wrong.
    """

    def __init__(
        self,
        loop: Loop,
        fd: int,
        on_packet: Callable[[memoryview], None],
        on_pause: Callable[[], None],
        on_close: Callable[[str | None], None],
    ) -> None:
        self.closed = False
        self._loop, self._fd = loop, fd
        self._on_packet, self._on_pause, self._on_close = on_packet, on_pause, on_close
        self._space: memoryview | None = None
        self._filled = 0
        self.output = Output()
        self._waiting = False
        os.set_blocking(fd, False)
        loop.on_readable(fd, self._read)
        loop.after(self.flush)

    def put(self, buffers: list[bytes]) -> None:
        """Send these, which are one record; or lose them, as a wire may."""
        if self.output.size <= MAX_OUTPUT and not self.closed:
            self.output.add(buffers)

    def flush(self) -> None:
        """Write what is queued, as far as the descriptor takes it now."""
        if self.closed or self._waiting:
            return
        try:
            self.output.write(self._fd)
        except BlockingIOError:
            self._waiting = True
            self._loop.on_writable(self._fd, self._writable)
        except OSError as error:
            self.close(error.strerror)

    def close(self, reason: str | None = None) -> None:
        """Close the descriptor and report; harmless when closed."""
        if not self.closed:
            self.closed = True
            self._loop.forget(self._fd)
            os.close(self._fd)
            self.output = Output()
            self._on_close(reason)

    def _writable(self) -> None:
        self._waiting = False
        self._loop.on_writable(self._fd, None)
        self.flush()

    def _read(self) -> None:
        if self._space is None:
            # Not before there is anything to read: many sandboxes use no network.
            self._space = memoryview(bytearray(READ_SIZE + LENGTH.size + MAX_RECORD))
        space = self._space
        try:
            count = os.readv(self._fd, [space[self._filled :]])
        except BlockingIOError:
            return
        except OSError:
            count = 0
        if not count:
            self.close()
            return
        filled, at, head = self._filled + count, 0, LENGTH.size
        while filled - at >= head:
            size: int = LENGTH.unpack_from(space, at)[0]
            if not HEADER < size <= MAX_RECORD:
                self.close(f"protocol error: a packet of {size} bytes")
                return
            end = at + head + size
            if end > filled:
                break
            self._on_packet(space[at + head + HEADER : end])
            if self.closed:
                return
            at = end
        if at and filled > at:
            space[: filled - at] = bytes(space[at:filled])
        self._filled = filled - at
        self._on_pause()
