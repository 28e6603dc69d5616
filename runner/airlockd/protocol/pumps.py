"""Pumps between descriptors and streams, with back pressure both ways; the same on host and guest."""

from __future__ import annotations

import os
import select
import stat
from collections import deque
from typing import TYPE_CHECKING

from airlockd.protocol.output import keep

if TYPE_CHECKING:
    from collections.abc import Callable

    from airlockd.protocol.link import Link

READ_SIZE = 256 * 1024


def _nothing() -> None:
    pass


def _silence(_error: OSError) -> None:
    pass


class Source:
    """Reads a descriptor into a stream while the stream has credit; closes it at its end."""

    def __init__(self, link: Link, fd: int, stream: int, on_done: Callable[[], None] = _nothing) -> None:
        self._link, self._fd, self._stream, self._on_done = link, fd, stream, on_done
        self._draining = False
        self.done = False
        link.open(stream, self)
        self._watch()

    def drain(self) -> None:
        """The writer is gone: take what is there already, then end, though others may hold the far side open.

        For non-blocking descriptors only.
        """
        self._draining = True
        if not self.done and self._link.mux.credit(self._stream):
            self._read()

    def stop(self) -> None:
        """End the stream now."""
        self._finish()

    def on_data(self, data: bytes | memoryview) -> None:
        """Nobody sends on this stream in our direction; give the credit back and drop it."""
        self._link.mux.consumed(self._stream, len(data))

    def on_end(self) -> None:
        """The other direction was never used."""

    def on_credit(self, amount: int) -> None:
        """Read again."""
        if self._draining:
            self.drain()
        elif not self.done:
            self._watch()

    def on_reset(self) -> None:
        """Nobody wants the rest: close, so that the writer gets SIGPIPE."""
        self._finish()

    def _watch(self) -> None:
        self._link.loop.on_readable(self._fd, self._read)

    def _read(self) -> None:
        mux = self._link.mux
        while not self.done:
            credit = mux.credit(self._stream)
            if not credit:
                self._link.loop.on_readable(self._fd, None)
                return
            try:
                data = os.read(self._fd, min(READ_SIZE, credit))
            except BlockingIOError:
                if self._draining:
                    self._finish()
                return
            except OSError:
                # EIO is how a pseudo-terminal says that its last user is gone.
                data = b""
            if not data:
                self._finish()
                return
            mux.send_data(self._stream, data)
            if not self._draining:
                return

    def _finish(self) -> None:
        if self.done:
            return
        self.done = True
        self._link.loop.forget(self._fd)
        os.close(self._fd)
        self._link.mux.send_end(self._stream)
        self._on_done()


class Sink:
    """Writes a stream to a descriptor and gives credit for what was written; closes it at the stream's end.

    `on_error` hears why it cannot be written any more.
    """

    def __init__(
        self,
        link: Link,
        fd: int,
        stream: int,
        on_done: Callable[[], None] = _nothing,
        on_error: Callable[[OSError], None] = _silence,
    ) -> None:
        self._link, self._fd, self._stream, self._on_done = link, fd, stream, on_done
        self._on_error = on_error
        self._pending: deque[memoryview] = deque()
        self._ended = False
        self._waiting = False
        self.done = False
        # A blocking descriptor, which is shared with other processes and must stay so, takes this much
        # without blocking once it polls writable (POSIX: PIPE_BUF).
        shared = os.get_blocking(fd) and not stat.S_ISREG(os.fstat(fd).st_mode)
        self._chunk = select.PIPE_BUF if shared else 1 << 30
        self._one_at_a_time = shared
        link.open(stream, self)

    def on_data(self, data: bytes | memoryview) -> None:
        """Write, or keep until the descriptor takes it; bounded by the stream's window."""
        if self.done:
            self._link.mux.consumed(self._stream, len(data))
            return
        keep(self._pending, data)
        if not self._waiting:
            if self._one_at_a_time:
                self._wait()
            else:
                self._write()

    def on_end(self) -> None:
        """Close once everything is written."""
        self._ended = True
        if not self._pending:
            self._finish()

    def on_credit(self, amount: int) -> None:
        """Nothing is sent from here."""

    def on_reset(self) -> None:
        """Write what came before, then close."""
        self.on_end()

    def stop(self) -> None:
        """Close now; what is pending is lost."""
        self._pending.clear()
        self._finish()

    def _wait(self) -> None:
        self._waiting = True
        self._link.loop.on_writable(self._fd, self._write)

    def _write(self) -> None:
        pending = self._pending
        try:
            while pending:
                count = os.write(self._fd, pending[0][: self._chunk])
                self._link.mux.consumed(self._stream, count)
                if count == len(pending[0]):
                    pending.popleft()
                else:
                    pending[0] = pending[0][count:]
                if self._one_at_a_time:
                    break
        except BlockingIOError:
            pass
        except OSError as error:
            # Nobody reads any more: tell the sender, whose writer then gets SIGPIPE.
            self._on_error(error)
            self._link.mux.reset(self._stream)
            self.stop()
            return
        if pending:
            if not self._waiting:
                self._wait()
            return
        if self._waiting:
            self._waiting = False
            self._link.loop.on_writable(self._fd, None)
        if self._ended:
            self._finish()

    def _finish(self) -> None:
        if self.done:
            return
        self.done = True
        self._link.loop.forget(self._fd)
        os.close(self._fd)
        self._link.mux.send_end(self._stream)
        self._on_done()
