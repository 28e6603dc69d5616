"""The host's end of a TCP connection with the guest's kernel: segments in, segments out, no I/O of its own.

The wire keeps order and loses next to nothing, and the guest is the one who connects. So this is RFC 9293 without what
that spares: no congestion control, no selective acknowledgement, no timestamps; what is out of order is sent again by
the guest. Lost segments are sent again, windows are kept and probed, by ticks of a clock that the caller has.

Everything in a segment is hostile. What is kept is bounded: WINDOW bytes each way.

Other sources: RFC 6528 (initial numbers), 7323 (window scale), 5961 (resets), linux/virtio_net.h.
"""

from __future__ import annotations

import os
import struct
from collections import deque
from typing import TYPE_CHECKING, NamedTuple

from airlock_runner.net.packet import ACK, FIN, HEADER, PSH, RST, SYN, TCP
from airlockd.protocol.packets import HEADER as VIRTIO
from airlockd.protocol.packets import MTU

if TYPE_CHECKING:
    from collections.abc import Callable

SCALE = 4
"""Our window counts in units of 16 bytes."""
WINDOW = 256 * 1024
"""Bytes that the guest may send before any are consumed, and that we may send before it acknowledges any."""
LARGE_WINDOW = 0xFFFF << SCALE
"""The same of a connection that carries much: the way to the guest and back takes longer than the other lasts."""
SEGMENT = MTU - 2 * HEADER
"""Bytes of data in one packet."""
MAX_SEGMENTS = 64
"""That are not acknowledged: a server may send byte by byte."""
GIVE_UP = 8
"""Times in a row that a segment is sent again to a guest that says nothing; then it counts as gone."""
MAX_WAIT = 120
"""Ticks between two attempts, at most; the first is after 2, each next one after twice as many."""
_FIRST_WAIT = 2
_DUPLICATES = 3
_JOIN = 4096
"""Data up to here is copied behind its headers, so that it is one buffer."""
_SMALLEST = 64
"""Bytes of data that a guest's segment may be bound to; to 1, it would have us make a packet of each byte."""
_WORD, _HALF = 0xFFFFFFFF, 0x80000000
_SEGMENT = struct.Struct(">HHIIBBH")
_HEADERS = struct.Struct(">I10sBBHHHBBH8s4sIIBBHHH")
"""Length, virtio header, IP header, TCP header."""
_NEEDS_CHECKSUM, _TCP4 = 1, 1
_VIRTIO = struct.Struct("<BBHHHH")
_WHOLE = _VIRTIO.pack(_NEEDS_CHECKSUM, 0, 0, 0, HEADER, 16)


class _Sent(NamedTuple):
    """A segment that is not acknowledged. `end` is the number after it."""

    number: int
    end: int
    flags: int
    data: bytes


class Tcp:
    """One connection, from its SYN. `put` takes the buffers of one record for the wire.

    `ended`: the guest has sent all that it will. `broken`: by a reset, or nobody answers; nothing is sent any more.
    """

    __slots__ = (
        "_acknowledged", "_acknowledgement_due", "_addresses", "_attempts", "_carried", "_duplicates", "_finished",
        "_flight", "_ip_sum", "_largest", "_lend", "_limit", "_next", "_ports", "_put", "_received", "_recover",
        "_room", "_scale", "_seen_at_tick", "_starved", "_tcp_sum", "_their_scale", "_theirs", "_wait", "_waited",
        "_window", "broken", "ended", "first", "heard",
    )  # fmt: skip

    def __init__(self, syn: memoryview, put: Callable[[list[bytes]], None], lend: Callable[[], bool]) -> None:
        """`syn` is a plain TCP packet with that flag, whole up to its options.

        `lend` is asked whether there may be one more LARGE_WINDOW, each time that another WINDOW was carried.
        """
        self._put, self._lend = put, lend
        self._window, self._carried = WINDOW, 0
        self._addresses = bytes(syn[16:20]) + bytes(syn[12:16])
        self._ports = bytes(syn[22:24]) + bytes(syn[20:22])
        base = int.from_bytes(self._addresses, "big")
        self._ip_sum = 0x4500 + 0x4000 + (64 << 8 | TCP) + base
        self._tcp_sum = TCP + base
        _, _, number, _, _, _, window = _SEGMENT.unpack_from(syn, HEADER)
        self.first: int = number
        """Of the guest's numbers: its SYN."""
        self._received = number + 1
        self._room = WINDOW
        self._limit, self._their_scale = _options(
            bytes(syn[2 * HEADER : HEADER + (syn[HEADER + 12] >> 4) * 4])
        )
        self._scale = SCALE if self._their_scale is not None else 0
        # Also what one that is never acknowledged may have in flight: of a SYN, the window is not scaled.
        self._theirs = self._largest = window
        self._acknowledged = self._next = _first_number()
        self._flight: deque[_Sent] = deque()
        self._recover = self._duplicates = 0
        self._seen_at_tick = self._waited = self._attempts = 0
        self._wait = _FIRST_WAIT
        self._finished = self._starved = self._acknowledgement_due = False
        self.ended = self.broken = False
        self.heard = True
        """Whether anything came since somebody looked and set it to False."""

    # ---- to the guest

    def accept(self) -> None:
        """Say that we are connected."""
        options = b"\2\4" + SEGMENT.to_bytes(2, "big")
        if self._scale:
            options += bytes((1, 3, 3, SCALE))
        self._send(SYN | ACK, options)

    def room(self) -> int:
        """Bytes that may be sent now. 0 rather than little, where an acknowledgement is to come that makes it more."""
        flying = self._next - self._acknowledged
        room: int = min(self._theirs, self._window) - flying
        if (
            room <= 0
            or (flying and room < min(SEGMENT, self._largest // 2))
            or len(self._flight) == MAX_SEGMENTS
        ):
            self._starved = not flying
            return 0
        self._starved = False
        return min(room, SEGMENT)

    def send(self, data: bytes) -> None:
        """Send at most `room` bytes."""
        self._send(ACK | PSH, data)
        self._carry(len(data))

    def finish(self) -> None:
        """Send nothing after this."""
        if not self._finished:
            self._finished, self._starved = True, False
            self._send(ACK | FIN, b"")

    def reset(self) -> None:
        """Break it off."""
        if not self.broken:
            self.drop()
            self._emit(self._next, RST | ACK, b"")

    def drop(self) -> None:
        """Say nothing more."""
        self.broken = True
        self._flight.clear()

    def acknowledge(self) -> None:
        """Say what was received, if that was not said with data; to be called once for all that came at once."""
        if self._acknowledgement_due and not self.broken:
            self._emit(self._next, ACK, b"")

    @property
    def is_due(self) -> bool:
        """Whether `acknowledge` has anything to say."""
        return self._acknowledgement_due

    def consumed(self, count: int) -> None:
        """Of what `receive` gave, so much is kept no more."""
        before = self._room
        self._room = before + count
        self._carry(count)
        # A sender is told when it is worth it; in between, acknowledgements have it.
        if before < WINDOW // 2 <= self._room:
            self._acknowledgement_due = True

    @property
    def is_large(self) -> bool:
        """Whether it has a large window, which is another's once it is over."""
        return self._window == LARGE_WINDOW

    def _carry(self, count: int) -> None:
        self._carried += count
        if self._carried >= WINDOW:
            self._carried = 0
            # One that is broken off sends nothing more, and its window is nobody's to give back.
            if not (self.is_large or self.broken) and self._scale and self._lend():
                self._window = LARGE_WINDOW
                self._room += LARGE_WINDOW - WINDOW

    @property
    def finished(self) -> bool:
        """Whether all is said, both ways."""
        return self.ended and self._finished and not self._flight

    # ---- from the guest

    def receive(self, packet: memoryview) -> memoryview | None:
        """Take a plain TCP packet of this connection, whole up to the end of its headers; gives the data in it."""
        _, _, number, acknowledged, offset, flags, window = _SEGMENT.unpack_from(packet, HEADER)
        data = packet[HEADER + (offset >> 4) * 4 :]
        self.heard = True
        # How far it lies after what is expected: negative for what is old.
        ahead = (number - self._received) & _WORD
        if ahead & _HALF:
            ahead -= _WORD + 1
        if flags & RST:
            if 0 <= ahead <= self._room:
                self.drop()
            return None
        if flags & SYN:
            # Its own once more, or somebody's who pretends: both are told where we are.
            self._acknowledgement_due = True
            return None
        if not flags & ACK:
            return None
        new = (acknowledged - self._acknowledged) & _WORD
        if new <= self._next - self._acknowledged:
            self._on_acknowledged(new, window << (self._their_scale or 0), bare=not data and not flags & FIN)
        elif not new & _HALF:
            # Of what was never sent.
            self._acknowledgement_due = True
            return None
        if not data and not flags & FIN:
            # Nothing to take; before our window, it asks whether we are there.
            if ahead < 0:
                self._acknowledgement_due = True
            return None
        return self._take(data, ahead, flags)

    def _take(self, data: memoryview, ahead: int, flags: int) -> memoryview | None:
        self._acknowledgement_due = True
        if ahead > 0 or self.ended or -ahead > len(data):
            return None
        data = data[-ahead:] if ahead else data
        if len(data) > self._room:
            data, flags = data[: self._room], 0
        self._room -= len(data)
        self._received += len(data)
        if flags & FIN:
            self.ended = True
            self._received += 1
        return data if data else None

    def _on_acknowledged(self, count: int, window: int, *, bare: bool) -> None:
        same = window == self._theirs
        self._theirs = window
        self._attempts = 0
        self._largest = max(self._largest, window)
        if not count:
            if bare and same and self._flight:
                self._duplicates += 1
                if self._duplicates == _DUPLICATES:
                    self._again()
            return
        self._acknowledged += count
        self._duplicates = 0
        self._wait = _FIRST_WAIT
        flight = self._flight
        while flight and flight[0].end <= self._acknowledged:
            flight.popleft()
        if flight and self._acknowledged < self._recover:
            # More was lost than the one that was sent again (RFC 6582).
            self._again()

    # ---- time

    def tick(self) -> bool:
        """To be called twice a second while it gives True: until then, nothing is waited for."""
        if self.broken or not (self._flight or self._starved):
            self._waited = 0
            return False
        if self._seen_at_tick != self._acknowledged:
            self._seen_at_tick, self._waited = self._acknowledged, 0
        self._waited += 1
        if self._waited >= self._wait:
            self._waited = 0
            self._wait = min(2 * self._wait, MAX_WAIT)
            if not self._flight:
                self.probe()
            elif self._attempts == GIVE_UP:
                self.reset()
            else:
                self._attempts += 1
                self._again()
        return True

    def probe(self) -> None:
        """Have the guest say that it is there, and its window."""
        if not self.broken:
            self._emit(self._acknowledged - 1, ACK, b"")

    def _again(self) -> None:
        first = self._flight[0]
        self._recover = self._next
        self._emit(first.number, first.flags, first.data)

    # ---- segments

    def _send(self, flags: int, data: bytes) -> None:
        """`data` of a SYN are its options."""
        number = self._next
        self._next = end = number + (0 if flags & SYN else len(data)) + (1 if flags & (SYN | FIN) else 0)
        self._flight.append(_Sent(number, end, flags, data))
        self._emit(number, flags, data)

    def _emit(self, number: int, flags: int, data: bytes) -> None:
        # Of a SYN the window is not scaled.
        syn = flags & SYN
        window = self._room if syn else self._room >> self._scale
        length = HEADER + len(data)
        size = HEADER + length
        virtio = _WHOLE
        if len(data) > self._limit:
            # The guest's kernel cuts it up where a device on the way has to have it so.
            virtio = _VIRTIO.pack(_NEEDS_CHECKSUM, _TCP4, 2 * HEADER, self._limit, HEADER, 16)
        # The rest of TCP's sum is the guest's to add, which it only does where it leaves the machine: never.
        head = _HEADERS.pack(
            VIRTIO + size, virtio, 0x45, 0, size, 0, 0x4000, 64, TCP, 0xFFFF - (self._ip_sum + size) % 0xFFFF,
            self._addresses, self._ports, number & _WORD, self._received & _WORD,
            (5 + (len(data) // 4 if syn else 0)) << 4, flags, min(window, 0xFFFF), (self._tcp_sum + length) % 0xFFFF, 0,
        )  # fmt: skip
        self._acknowledgement_due = False
        if len(data) > _JOIN:
            self._put([head, data])
        else:
            self._put([head + data])


def _first_number() -> int:
    """Nobody is to guess it."""
    return int.from_bytes(os.urandom(4), "big")


def _options(text: bytes) -> tuple[int, int | None]:
    """Bytes of data that the guest wants in a segment at most, and the scale of its window (RFC 9293, 7323)."""
    limit, scale = 536, None
    at = 0
    while at < len(text) and text[at]:
        if text[at] == 1:
            at += 1
            continue
        size = text[at + 1] if at + 1 < len(text) else 0
        if size < 2 or at + size > len(text):
            break
        if text[at] == 2 and size == 4:
            limit = max(_SMALLEST, int.from_bytes(text[at + 2 : at + 4], "big"))
        elif text[at] == 3 and size == 3:
            scale = min(text[at + 2], 14)
        at += size
    return limit, scale
