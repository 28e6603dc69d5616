"""A TCP connection of the guest and a socket of the host, pumped both ways: as relay.py does with a stream."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING

from airlock_runner.net import packet
from airlock_runner.net.tcp import Tcp
from airlockd.protocol.relay import reset_on_close

if TYPE_CHECKING:
    from collections.abc import Callable

    from airlock_runner.net.airlock0 import Airlock0

_AT_ONCE = 8
"""Segments that one connection may send before others have their turn."""
_CODES = {
    "EHOSTUNREACH": packet.HOST_UNREACHABLE,
    "ENETUNREACH": packet.NET_UNREACHABLE,
    "EACCES": packet.PROHIBITED,
}
"""What ICMP says of a failure, whatever TCP has no word for."""


class TcpRelay:
    """From a SYN to the end. airlock0.py has it in its table, and gives it what comes.

    `on_done()` is called once, when both directions are closed. `sent` and `received` count the bytes that went from
    the socket to the guest, and from the guest to the socket; `broken` says that it ended by a reset.
    """

    __slots__ = (
        "_all_sent", "_network", "_on_done", "_pending", "_reading", "_shut", "_socket", "_syn", "broken", "done",
        "key", "received", "sent", "tcp",
    )  # fmt: skip

    def __init__(self, network: Airlock0, syn: memoryview, on_done: Callable[[], None]) -> None:
        self._network, self._on_done = network, on_done
        self.key = packet.tuple_of(syn)
        self._syn = bytes(syn)
        self.tcp = Tcp(syn, network.wire.put, network.lend)
        self._socket: socket.socket | None = None
        self._pending = bytearray()
        self._reading = self._all_sent = self._shut = False
        self.done = self.broken = False
        self.sent = self.received = 0
        network.add(self)

    # ---- the answer

    def accept(self, connected: socket.socket) -> None:
        """The connection is there: serve this socket, which the relay closes."""
        connected.setblocking(False)
        self._socket = connected
        self.tcp.accept()
        self._network.busy(self)
        self._read_on()

    def refuse(self, error: str, _message: str) -> None:
        """There is none: say why, as the kernel would have where that errno came from."""
        if self.done:
            return
        syn = self._syn
        if error == "ETIMEDOUT":
            # Nobody answered, and nobody does here. The program asks for as long as it likes.
            self._network.hush(self.key, self.tcp.first)
        elif error in _CODES:
            self._network.answer(packet.unreachable(syn, packet.GATEWAY, _CODES[error]))
        else:
            self._network.answer(packet.tcp_reset(syn))
        self._close()

    def abort(self) -> None:
        """Reset both."""
        if self._socket is not None:
            self.tcp.reset()
        self._break()

    def give_up(self) -> None:
        """The guest knows nothing of it any more. What it has sent to the end has still to arrive."""
        self.tcp.drop()
        if self.tcp.ended and self._pending:
            self._all_sent = True
            self._network.forget(self)
            if self._reading:
                self._stop_reading()
        else:
            self._break()

    @property
    def answered(self) -> bool:
        """Whether the program is connected."""
        return self._socket is not None

    def tick(self) -> bool:
        """To be called twice a second while it gives True."""
        waits = self.tcp.tick()
        if self.tcp.broken:
            self.give_up()
        return waits

    # ---- the guest

    def on_packet(self, data: memoryview) -> None:
        """A plain TCP packet of this connection, whole up to the end of its headers."""
        tcp = self.tcp
        if self._socket is None:
            # Not answered yet: the SYN once more, or a program that has given up.
            if packet.tcp_flags(data) & packet.RST:
                self._break()
            return
        taken = tcp.receive(data)
        if tcp.broken:
            self.give_up()
            return
        if taken is not None and self._pending:
            self._pending += taken
        elif taken is not None or tcp.ended:
            self._write(taken)
        if not self.done:
            self._read_on()
            self._finish()

    # ---- the socket

    def _read_on(self) -> None:
        """Read, where there is room for what comes."""
        assert self._socket is not None
        if not self._all_sent and not self._reading:
            if self.tcp.room():
                self._reading = True
                self._network.loop.on_readable(self._socket.fileno(), self._read)
            else:
                # It may have to be asked for.
                self._network.busy(self)

    def _stop_reading(self) -> None:
        assert self._socket is not None
        self._reading = False
        self._network.loop.on_readable(self._socket.fileno(), None)

    def _read(self) -> None:
        assert self._socket is not None
        tcp, receive = self.tcp, self._socket.recv
        if self._network.wire.output.congested:
            self._stop_reading()
            self._network.wire.output.when_clear(self._go_on)
            return
        try:
            for _ in range(_AT_ONCE):
                room = tcp.room()
                if not room:
                    self._stop_reading()
                    break
                data = receive(room)
                if not data:
                    self._all_sent = True
                    tcp.finish()
                    self._stop_reading()
                    break
                tcp.send(data)
                self.sent += len(data)
        except BlockingIOError:
            pass
        except OSError:
            self.abort()
            return
        self._network.busy(self)
        self._finish()

    def _go_on(self) -> None:
        if not self.done and not self._reading:
            self._read_on()

    def _write(self, data: memoryview | None) -> None:
        """Write what is pending or, where nothing is, `data`, and then the end, as far as the socket takes it."""
        connected, tcp = self._socket, self.tcp
        assert connected is not None
        left: bytearray | memoryview = self._pending if data is None else data
        try:
            while left:
                count = connected.send(left)
                self.received += count
                tcp.consumed(count)
                if left is self._pending:
                    del left[:count]
                else:
                    left = left[count:]
            if tcp.ended and not self._shut and not self._pending:
                self._shut = True
                connected.shutdown(socket.SHUT_WR)
        except BlockingIOError:
            if left is not self._pending:
                # The wire reads into the same memory again.
                self._pending += left
            self._network.loop.on_writable(connected.fileno(), self._write_on)
        except OSError:
            self.abort()

    def _write_on(self) -> None:
        """It takes more again."""
        assert self._socket is not None
        self._network.loop.on_writable(self._socket.fileno(), None)
        self._write(None)
        if not self.done:
            # It may send more again, and nothing of its own may come before it knows.
            self.tcp.acknowledge()
            self._finish()

    # ---- the end

    def _finish(self) -> None:
        if not self.done and not self._pending and (self.tcp.finished or self.tcp.broken):
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
        self._network.wire.output.forget(self._go_on)
        # What is owed is the guest's to have: it would ask again.
        self.tcp.acknowledge()
        if self._socket is not None:
            self._network.loop.forget(self._socket.fileno())
            self._socket.close()
        self._network.forget(self)
        self._on_done()
