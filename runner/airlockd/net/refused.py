"""What airlock0 refused, told to the host for its log: gathered, one frame a second at most. service.py adds to it.

The host takes it for a hint: a guest that does not want to be seen says nothing.
"""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING

from airlockd.net import packet

if TYPE_CHECKING:
    from airlockd.net.names import Names
    from airlockd.protocol.link import Link
    from airlockd.protocol.loop import Timer

PERIOD = 1.0
"""Seconds from one report to the next; the first packet after as long a silence is told at once."""
MAX_LISTED = 64
"""Destinations in one report. Packets to others are told as a number."""


class Refused:
    """Counts packets by protocol, address and port."""

    def __init__(self, link: Link, names: Names) -> None:
        self._link, self._names = link, names
        self._counts: dict[tuple[int, bytes, int | None], int] = {}
        self._more = 0
        self._timer: Timer | None = None

    def add(self, data: memoryview) -> None:
        """This packet, which is whole up to the end of its IP header, was refused."""
        key = packet.destination(data)
        if key in self._counts or len(self._counts) < MAX_LISTED:
            self._counts[key] = self._counts.get(key, 0) + 1
        else:
            self._more += 1
        if self._timer is None:
            self._report()

    def _report(self) -> None:
        self._timer = None
        if self._link.closed or not self._counts:
            return
        if not self._link.congested:
            packets = []
            for (protocol, address, port), count in self._counts.items():
                four = len(address) == 4
                text = socket.inet_ntop(socket.AF_INET if four else socket.AF_INET6, address)
                packets.append([protocol, text, port, count, self._names.name(address) if four else None])
            event = {"t": "event", "name": "refused", "packets": packets, "more": self._more}
            self._link.mux.send(event)
            self._counts, self._more = {}, 0
        self._timer = self._link.loop.call_later(PERIOD, self._report)
