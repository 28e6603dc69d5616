"""DNS over TCP: queries with a length before them (RFC 1035, 4.2.2; RFC 7766). service.py makes one per connection."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable

    from airlockd.net.service import Network

IDLE_SECONDS = 30.0
MAX_WAITING = 256 * 1024
"""Bytes of answers that nobody takes."""


class DnsConnection:
    """Serves one connection and closes it; `on_done` is called then."""

    def __init__(self, network: Network, connected: socket.socket, on_done: Callable[[], None]) -> None:
        connected.setblocking(False)
        self._network, self._socket, self._on_done = network, connected, on_done
        self._input, self._output = bytearray(), bytearray()
        self._asked = 0
        self._open, self._ended = True, False
        self._idle = network.loop.call_later(IDLE_SECONDS, self.close)
        network.loop.on_readable(connected.fileno(), self._read)

    def close(self) -> None:
        """Close it, whatever is under way."""
        if self._open:
            self._open = False
            self._idle.cancel()
            self._network.loop.forget(self._socket.fileno())
            self._socket.close()
            self._on_done()

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
            self._network.loop.on_readable(self._socket.fileno(), None)
            self._write()
            return
        self._idle.cancel()
        self._idle = self._network.loop.call_later(IDLE_SECONDS, self.close)
        self._input += data
        while self._open and len(self._input) >= 2:
            size = int.from_bytes(self._input[:2], "big")
            if len(self._input) < 2 + size:
                return
            query = bytes(self._input[2 : 2 + size])
            del self._input[: 2 + size]
            self._asked += 1
            if not self._network.resolve(query, self._answer):
                self.close()

    def _answer(self, answer: bytes) -> None:
        if not self._open:
            return
        self._asked -= 1
        self._output += len(answer).to_bytes(2, "big") + answer
        if len(self._output) > MAX_WAITING:
            self.close()
        else:
            self._write()

    def _write(self) -> None:
        try:
            while self._output:
                del self._output[: self._socket.send(self._output)]
        except BlockingIOError:
            self._network.loop.on_writable(self._socket.fileno(), self._write)
            return
        except OSError:
            self.close()
            return
        self._network.loop.on_writable(self._socket.fileno(), None)
        if self._ended and not self._asked:
            self.close()
