"""Packets that airlock0 refused, as lines of the log: one for each destination, with a count.

The guest is hostile: what is kept and what is written is bounded, however many it sends.
"""

from __future__ import annotations

import socket
import time
from typing import TYPE_CHECKING

from airlock_runner.net.record import PACKET, Record

if TYPE_CHECKING:
    from collections.abc import Callable

    from airlock_runner.net.synthetic import Names
    from airlockd.protocol.loop import Loop, Timer

KNOWN = 256
"""Destinations that are counted each on its own; the one that was longest without a packet goes first."""
BURST, PERIOD = 100, 1.0
"""Lines that may be written at once, and seconds after which there may be one more."""
RULE = "only TCP and DNS"
OTHERS = "only TCP and DNS; others"
_PROTOCOLS = {1: "icmp", 6: "tcp", 17: "udp", 58: "icmpv6", 132: "sctp"}

_Key = tuple[int, bytes, int | None]


class Refusals:
    """A line is written when a destination is new, each time that its count has doubled, and in the end."""

    def __init__(self, loop: Loop, number: Callable[[], str], log: Callable[[Record], None]) -> None:
        """`number` names a record, `log` writes it."""
        self._loop, self._number, self._log = loop, number, log
        self._known: dict[_Key, _Counted] = {}
        self._others: _Counted | None = None
        self._due: dict[str, _Counted] = {}
        self._lines = float(BURST)
        self._then = time.monotonic()
        self._timer: Timer | None = None

    def add(self, protocol: int, address: bytes, port: int | None, names: Names) -> None:
        """A packet to there was refused; the address has 4 or 16 bytes."""
        key = (protocol, address, port)
        counted = self._known.pop(key, None)
        if counted is None:
            if len(self._known) == KNOWN:
                self._forget(next(iter(self._known)))
            four = len(address) == 4
            text = socket.inet_ntop(socket.AF_INET if four else socket.AF_INET6, address)
            name = names.name(address) if four else None
            counted = self._new(_PROTOCOLS.get(protocol, f"ip-{protocol}"), RULE, name, text, port)
        # The last is the latest.
        self._known[key] = counted
        self._add(counted, 1)
        if self._timer is None and self._due:
            self._write()

    def close(self) -> None:
        """No more is reported: write what is not written yet."""
        if self._timer is not None:
            self._timer.cancel()
        counted = [*self._known.values(), *([] if self._others is None else [self._others])]
        self._known, self._others, self._due = {}, None, {}
        for each in counted:
            if each.record.count != each.written:
                self._log(each.record)

    def _count_others(self, count: int) -> None:
        if self._others is None:
            self._others = self._new("ip", OTHERS)
        # It stands for many, and has its turn with the latest of them.
        self._due.pop(self._others.record.id, None)
        self._add(self._others, count)

    def _forget(self, key: _Key) -> None:
        counted = self._known.pop(key)
        self._due.pop(counted.record.id, None)
        if counted.record.count > counted.written:
            self._count_others(counted.record.count - counted.written)

    def _new(
        self, protocol: str, rule: str, name: str | None = None, address: str | None = None,
        port: int | None = None,
    ) -> _Counted:  # fmt: skip
        return _Counted(
            Record(
                self._number(), PACKET, name, address, port, "refused", rule, "refused", protocol=protocol,
                count=0,
            )
        )  # fmt: skip

    def _add(self, counted: _Counted, count: int) -> None:
        record = counted.record
        record.count += count
        record.seconds = round(time.monotonic() - counted.began, 3)
        if record.count >= 2 * counted.written:
            self._due[record.id] = counted

    def _write(self) -> None:
        self._timer = None
        now = time.monotonic()
        self._lines = min(BURST, self._lines + (now - self._then) / PERIOD)
        self._then = now
        while self._due and self._lines >= 1:
            self._lines -= 1
            # The latest, which somebody may be looking for, and not the next of one that shouts.
            counted = self._due.popitem()[1]
            counted.written = counted.record.count
            self._log(counted.record)
        if self._due:
            self._timer = self._loop.call_later(PERIOD, self._write)


class _Counted:
    """A destination, how many of its packets the log has, and when there was the first."""

    __slots__ = ("began", "record", "written")

    def __init__(self, record: Record) -> None:
        self.record, self.written, self.began = record, 0, time.monotonic()
