"""A stream of a link and a connected socket, pumped both ways: half-close, reset and back pressure pass through.

The network uses it at both of its ends.
"""

from __future__ import annotations

import socket
import struct
from collections import deque
from typing import TYPE_CHECKING

from airlockd.protocol.output import keep

if TYPE_CHECKING:
    from collections.abc import Callable

    from airlockd.protocol.link import Link

READ_SIZE = 256 * 1024
"""As much as one frame carries, and a quarter of the window of a stream that carries much."""
_RESET_ON_CLOSE = struct.pack("ii", 1, 0)


def reset_on_close(connected: socket.socket) -> None:
    """Have its end seen as a break."""
    try:
        connected.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
    except OSError:
        # It is broken already.
        pass


def reset(connected: socket.socket) -> None:
    """Close it so that whoever is connected sees that it was broken off."""
    reset_on_close(connected)
    connected.close()


class Relay:
    """Opens `stream` at once and keeps what arrives, at most a window, until `attach` brings the socket.

    `on_done(relay)` is called once, when both directions are closed. `sent` and `received` count the bytes that went
    from the socket to the stream, and from the stream to the socket; `broken` says that it ended by a reset.
    """

    __slots__ = (
        "_ended", "_link", "_on_done", "_pending", "_reading", "_socket", "_stream", "_writing",
        "broken", "done", "received", "sent",
    )  # fmt: skip

    def __init__(self, link: Link, stream: int, on_done: Callable[[Relay], None]) -> None:
        self._link, self._stream, self._on_done = link, stream, on_done
        self._socket: socket.socket | None = None
        self._pending: deque[memoryview] = deque()
        self._ended = self._reading = self._writing = False
        self.done = self.broken = False
        self.sent = self.received = 0
        link.open(stream, self)

    def attach(self, connected: socket.socket) -> None:
        """Serve this socket, which the relay closes."""
        connected.setblocking(False)
        self._socket = connected
        self._read_on()
        self._write()

    def abort(self) -> None:
        """Reset both."""
        self._link.mux.reset(self._stream)
        self._break()

    # ---- the stream

    def on_data(self, data: bytes | memoryview) -> None:
        """Write, or keep until the socket takes it; bounded by the stream's window."""
        if self.done:
            self._link.mux.consumed(self._stream, len(data))
            return
        keep(self._pending, data)
        if self._socket is not None and not self._writing:
            self._write()
        if self._pending:
            # What is left of it: the link reads into the same memory again.
            self._pending[-1] = memoryview(bytes(self._pending[-1]))

    def on_end(self) -> None:
        """Shut the socket's writing side once everything is written."""
        self._ended = True
        if self._socket is not None and not self._writing and not self.done:
            self._write()

    def on_credit(self, _amount: int) -> None:
        """Read again."""
        if self._socket is not None and not self.done:
            self._read_on()

    def on_reset(self) -> None:
        """The other end broke off: so does this one."""
        self._break()

    # ---- the socket

    def _read_on(self) -> None:
        if not self._reading and self._link.mux.credit(self._stream):
            assert self._socket is not None
            self._reading = True
            self._link.loop.on_readable(self._socket.fileno(), self._read)

    def _read(self) -> None:
        assert self._socket is not None
        mux, stream = self._link.mux, self._stream
        if self._link.mux.output.congested:
            # It stays `_reading`, so that credit does not start it a second time.
            self._link.loop.on_readable(self._socket.fileno(), None)
            self._link.mux.output.when_clear(self._go_on)
            return
        try:
            data = self._socket.recv(min(READ_SIZE, mux.credit(stream)))
        except BlockingIOError:
            return
        except OSError:
            self.abort()
            return
        if data:
            mux.send_data(stream, data)
            self.sent += len(data)
            if mux.credit(stream):
                return
        else:
            mux.send_end(stream)
        self._reading = False
        self._link.loop.on_readable(self._socket.fileno(), None)
        self._finish()

    def _go_on(self) -> None:
        if not self.done:
            self._reading = False
            self._read_on()
            if self._reading:
                self._read()

    def _write(self) -> None:
        assert self._socket is not None
        pending, mux = self._pending, self._link.mux
        try:
            while pending:
                count = self._socket.send(pending[0])
                self.received += count
                mux.consumed(self._stream, count)
                if count == len(pending[0]):
                    pending.popleft()
                else:
                    pending[0] = pending[0][count:]
            if self._ended:
                self._socket.shutdown(socket.SHUT_WR)
        except BlockingIOError:
            if not self._writing:
                self._writing = True
                self._link.loop.on_writable(self._socket.fileno(), self._write)
            return
        except OSError:
            self.abort()
            return
        if self._writing:
            self._writing = False
            self._link.loop.on_writable(self._socket.fileno(), None)
        self._finish()

    def _finish(self) -> None:
        # The stream is forgotten once it has ended both ways.
        if not self.done and self._ended and not self._pending and not self._link.mux.is_open(self._stream):
            self._close()

    def _break(self) -> None:
        if self.done:
            return
        self.broken = True
        if self._socket is not None:
            reset_on_close(self._socket)
        self._close()

    def _close(self) -> None:
        self.done = True
        self._pending.clear()
        self._link.mux.finished(self._stream)
        self._link.mux.output.forget(self._go_on)
        if self._socket is not None:
            self._link.loop.forget(self._socket.fileno())
            self._socket.close()
        self._on_done(self)
