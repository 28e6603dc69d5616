"""A connection that lives on a descriptor: reads and writes it for a `Mux`, and routes what arrives.

Used by airlockd on its ports, by the session on both of its sides, and by `airlock exec`.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Protocol

from airlockd.protocol.frames import ProtocolError
from airlockd.protocol.mux import NETWORK_WINDOW, Credit, Data, End, Message, Mux, Reset

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from airlockd.protocol.loop import Loop

READ_SIZE = 256 * 1024
BULK_READ_SIZE = 512 * 1024
"""All that the queue of a virtio port holds: 128 pages (QEMU, hw/char/virtio-serial-bus.c)."""
_PAGE = 4096
MAX_OUTPUT = 64 * 1024 * 1024
"""Bytes waiting to be written, beyond a window for each open stream, at which the other end counts as stuck: it has us
answer and does not read."""


class StreamHandler(Protocol):
    """What serves one stream of a link."""

    def on_data(self, data: bytes | memoryview) -> None:
        """Bytes arrived; call `mux.consumed` once they are out. On a bulk link they are gone after this call."""

    def on_end(self) -> None:
        """No more will arrive."""

    def on_credit(self, amount: int) -> None:
        """There is room to send `amount` more bytes."""

    def on_reset(self) -> None:
        """The stream is gone, both ways, or the whole link is."""


class Link:
    """One connection: its descriptor (non-blocking, closed by `close`), its streams and who serves them."""

    def __init__(
        self,
        loop: Loop,
        fd: int,
        on_message: Callable[[Message], None],
        on_close: Callable[[str | None], None],
        *,
        bulk: bool = False,
    ) -> None:
        """`bulk`: as the port airlock.network has it, with small windows, data in parts, and much read at once."""
        self.loop = loop
        self.mux = Mux(NETWORK_WINDOW, parts=True) if bulk else Mux()
        self.closed = False
        self._fd = fd
        self._on_message = on_message
        self._on_close = on_close
        self._handlers: dict[int, StreamHandler] = {}
        self._space = memoryview(bytearray(BULK_READ_SIZE if bulk else READ_SIZE))
        self._pages = [self._space[start : start + _PAGE] for start in range(_PAGE, len(self._space), _PAGE)]
        self._waiting = False
        os.set_blocking(fd, False)
        loop.on_readable(fd, self._read)
        loop.after(self.flush)

    def open(self, stream: int, handler: StreamHandler) -> None:
        """Open an agreed stream and serve it with `handler`."""
        self.mux.open(stream)
        self._handlers[stream] = handler

    def refuse(self, streams: Iterable[int]) -> None:
        """Reset agreed streams that will not be served, opened or not; who serves one already hears of it."""
        for stream in streams:
            if not self.mux.is_open(stream):
                self.mux.open(stream)
            handler = self._handlers.pop(stream, None)
            self.mux.reset(stream)
            if handler is not None:
                handler.on_reset()

    def flush(self) -> None:
        """Write what is queued, as far as the descriptor takes it now."""
        mux, output = self.mux, self.mux.output
        if mux.gone:
            for stream in mux.gone:
                if not mux.is_open(stream):
                    self._handlers.pop(stream, None)
            mux.gone.clear()
        if self.closed:
            return
        if self._waiting:
            if output.size > MAX_OUTPUT + mux.windows:
                self.close("the other end does not read")
            return
        try:
            output.write(self._fd)
        except BlockingIOError:
            self._waiting = True
            self.loop.on_writable(self._fd, self._writable)
        except OSError as error:
            # It is gone. What it said before that, and whether it then ended, tells more than this error: two reads
            # have all that a socket holds, and its end.
            self._waiting = True
            self._read()
            self._read()
            self.close(error.strerror)

    def close(self, reason: str | None = None) -> None:
        """Close the descriptor, end every stream's handler, and report; harmless when closed."""
        if self.closed:
            return
        self.closed = True
        self.loop.forget(self._fd)
        os.close(self._fd)
        handlers, self._handlers = self._handlers, {}
        for handler in handlers.values():
            handler.on_reset()
        self._on_close(reason)

    def _writable(self) -> None:
        self._waiting = False
        self.loop.on_writable(self._fd, None)
        self.flush()

    def _read(self) -> None:
        if self.closed:
            return
        try:
            filled = self._fill()
        except BlockingIOError:
            return
        except OSError:
            filled = 0
        try:
            for event in self.mux.receive(self._space[:filled]):
                if self.closed:
                    return
                self._route(event)
        except ProtocolError as error:
            self.close(f"protocol error: {error}")
            return
        if not filled:
            self.close(None)

    def _fill(self) -> int:
        """Read what is there; 0 for the end. Raises OSError where there is nothing."""
        filled = os.readv(self._fd, [self._space])
        # Less than a page is all that there was: most frames are small, and a read in vain costs as much as theirs.
        if filled != _PAGE:
            return filled
        try:
            # A virtio port gives a page for each, in one call, and has the next by then. All that is there is gathered:
            # what a round of Python costs is more than what waits for it.
            while not filled % _PAGE and (more := os.readv(self._fd, self._pages[filled // _PAGE - 1 :])):
                filled += more
        except OSError:
            # Nothing, or the next read hears of it: what came before an error is not lost with it.
            pass
        return filled

    def _route(self, event: Message | Data | End | Credit | Reset) -> None:
        if isinstance(event, Message):
            self._on_message(event)
            return
        handler = self._handlers.get(event.stream)
        if handler is None:
            return
        if isinstance(event, Data):
            handler.on_data(event.data)
        elif isinstance(event, Credit):
            handler.on_credit(event.amount)
        elif isinstance(event, End):
            handler.on_end()
        else:
            handler.on_reset()
