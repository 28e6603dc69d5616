"""DNS over TCP: queries with a length before them (RFC 1035, 4.2.2; RFC 7766). airlock0.py makes one per connection."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable

    from airlockd.protocol.loop import Loop

IDLE_SECONDS = 30.0
MAX_WAITING = 256 * 1024
"""Bytes of answers that nobody takes."""


class DnsConnection:
    """Serves one connection, and closes it. `resolve` gives the answer to a query, or None for none."""

    def __init__(
        self, loop: Loop, connected: socket.socket, resolve: Callable[[bytes], bytes | None]
    ) -> None:
        connected.setblocking(False)
        self._loop, self._socket, self._resolve = loop, connected, resolve
        self._input, self._output = bytearray(), bytearray()
        self._open, self._ended = True, False
        self._idle = loop.call_later(IDLE_SECONDS, self.close)
        loop.on_readable(connected.fileno(), self._read)

    def close(self) -> None:
        """Close it, whatever is under way."""
        if self._open:
            self._open = False
            self._idle.cancel()
            self._loop.forget(self._socket.fileno())
            self._socket.close()

    def _read(self) -> None:
        try:
            data = self._socket.recv(65536)
        except BlockingIOError:
            return
        except OSError:
            self.close()
            return
        if not data:
            # It may have ended its half alone, and wait for answers.
            self._ended = True
            self._loop.on_readable(self._socket.fileno(), None)
            self._write()
            return
        self._idle.cancel()
        self._idle = self._loop.call_later(IDLE_SECONDS, self.close)
        self._input += data
        while len(self._input) >= 2:
            size = int.from_bytes(self._input[:2], "big")
            if len(self._input) < 2 + size:
                break
            query = bytes(self._input[2 : 2 + size])
            del self._input[: 2 + size]
            answer = self._resolve(query)
            if answer is None or len(self._output) > MAX_WAITING:
                self.close()
                return
            self._output += len(answer).to_bytes(2, "big") + answer
        self._write()

    def _write(self) -> None:
        try:
            while self._output:
                del self._output[: self._socket.send(self._output)]
        except BlockingIOError:
            self._loop.on_writable(self._socket.fileno(), self._write)
            return
        except OSError:
            self.close()
            return
        self._loop.on_writable(self._socket.fileno(), None)
        if self._ended:
            self.close()
