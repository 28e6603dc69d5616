"""A guest's kernel, small: the end of a TCP connection that connects. It sends again what is not acknowledged."""

from __future__ import annotations

import struct

from airlock_runner.net import packet
from airlockd.protocol.packets import HEADER, LENGTH

TUPLE = bytes((192, 168, 77, 1, 93, 184, 216, 34)) + struct.pack(">HH", 40000, 80)
_TCP = struct.Struct(">HHIIBBHHH")
MASK = 0xFFFFFFFF


class Segment:
    """One that airlock sent, taken out of its record."""

    def __init__(self, record: bytes) -> None:
        assert LENGTH.unpack_from(record)[0] == len(record) - LENGTH.size
        self.virtio = record[LENGTH.size : LENGTH.size + HEADER]
        self.packet = record[LENGTH.size + HEADER :]
        _, _, self.number, self.acknowledged, offset, self.flags, self.window, self.sum, _ = _TCP.unpack_from(
            self.packet, packet.HEADER
        )
        end = packet.HEADER + (offset >> 4) * 4
        self.options, self.data = self.packet[40:end], self.packet[end:]


def segment(
    flags: int,
    number: int,
    acknowledged: int = 0,
    data: bytes = b"",
    *,
    window: int = 65535,
    options: bytes = b"",
) -> bytes:
    """A packet of the guest's."""
    head = _TCP.pack(
        40000, 80, number & MASK, acknowledged & MASK, (5 + len(options) // 4) << 4, flags, window, 0, 0
    )
    return packet.ip_packet(TUPLE[:4], TUPLE[4:8], packet.TCP, head + options + data)


class Peer:
    """`output` are its packets; `received` what it has of ours, in order."""

    def __init__(self, first: int, data: bytes, window: int = 65535) -> None:
        self.first, self.data, self.window = first, data, window
        self.output: list[bytes] = []
        self.received = bytearray()
        self.expected: int | None = None
        self.acknowledged = first
        """The first of its own numbers that airlock has not acknowledged."""
        self.ended = False
        self.closing = False
        self.theirs = 0
        """The window that it was told, in bytes."""
        self.syn()

    def syn(self) -> None:
        """Ask, or ask again."""
        self.output.append(segment(packet.SYN, self.first, options=b"\2\4\xff\xc8\1\3\3\0"))

    @property
    def done(self) -> bool:
        """Both ends have said all, and it knows that airlock has heard it."""
        return self.ended and self.acknowledged - self.first == len(self.data) + 2

    def take(self, found: Segment) -> None:
        """A segment arrives."""
        assert not found.flags & packet.RST
        if found.flags & packet.SYN:
            if self.expected is None:
                self.expected = (found.number + 1) & MASK
                self.theirs = found.window
        elif self.expected is None:
            return
        else:
            self.theirs = found.window << 4
        new = (found.acknowledged - self.acknowledged) & MASK
        if new < 1 << 31:
            self.acknowledged += new
        ahead = (found.number - self.expected) & MASK
        if found.flags & packet.SYN:
            pass
        elif ahead == 0 and not self.ended:
            self.received += found.data
            self.expected = (self.expected + len(found.data)) & MASK
            if found.flags & packet.FIN:
                self.ended = True
                self.expected = (self.expected + 1) & MASK
        if found.data or found.flags & (packet.SYN | packet.FIN) or ahead:
            self.acknowledge()

    def acknowledge(self) -> None:
        """Say what it has."""
        if self.expected is not None:
            at = self._next_number()
            self.output.append(segment(packet.ACK, at, self.expected, window=self.window))

    def send(self, size: int, skip: int = 0) -> None:
        """Send so much of what is not acknowledged, from `skip` bytes after that, and the end with the last of it."""
        if self.expected is None:
            self.syn()
            return
        start = min(max(0, self.acknowledged - self.first - 1), len(self.data)) + skip
        part = self.data[start : start + size]
        last = self.closing and start + len(part) >= len(self.data)
        if part or (last and self.acknowledged - self.first <= len(self.data) + 1):
            flags = packet.ACK | (packet.FIN if last else 0)
            self.output.append(
                segment(flags, self.first + 1 + start, self.expected, part, window=self.window)
            )

    def _next_number(self) -> int:
        return max(self.acknowledged, self.first + 1)
