"""Packets that airlock0 refuses, as lines of the log: bounded, and none is forgotten."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING

from airlock_runner.net import packet, refusals
from airlock_runner.net.refusals import BURST, KNOWN, Refusals
from airlock_runner.net.synthetic import Names
from airlockd.protocol.loop import Loop

if TYPE_CHECKING:
    import pytest

    from airlock_runner.net.record import Record

FAR = socket.inet_aton("192.0.2.1")


class Written:
    """A host's counter without a wire; `lines` are those of the log."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.loop = Loop()
        self.lines: list[tuple[str, int | None, int]] = []
        self.now = 0.0
        monkeypatch.setattr(refusals.time, "monotonic", lambda: self.now)
        numbers = iter(range(1 << 30))
        self.refusals = Refusals(self.loop, lambda: f"s-{next(numbers)}", self._log)

    def _log(self, record: Record) -> None:
        self.lines.append((record.id, record.port, record.count))

    def packet(self, port: int) -> None:
        self.refusals.add(packet.UDP, FAR, port, Names())


def test_a_destination_has_a_line_each_time_that_its_count_has_doubled(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    written = Written(monkeypatch)
    for _ in range(1000):
        written.packet(443)
    assert written.lines == [("s-0", 443, 1 << power) for power in range(10)]
    written.refusals.close()
    assert written.lines[-1] == ("s-0", 443, 1000)
    written.refusals.close()
    assert len(written.lines) == 11


def test_however_much_is_sent_lines_and_memory_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """A guest that sends to ever other destinations."""
    written = Written(monkeypatch)
    for number in range(40_000):
        written.packet(number // 2)
    assert len(written.lines) == BURST
    assert len(written.refusals._known) == KNOWN
    assert len(written.refusals._due) <= KNOWN + 1
    # As time goes on there is room for more; what is told then is as it is then.
    written.now += 10
    written.refusals._write()
    assert len(written.lines) == BURST + 10
    written.refusals.close()
    assert len(written.lines) <= BURST + 10 + KNOWN + 1
    # Every packet is in one of the lines, if not by its own destination.
    assert sum({name: count for name, _, count in written.lines}.values()) == 40_000


def test_who_is_new_does_not_wait_behind_one_that_shouts(monkeypatch: pytest.MonkeyPatch) -> None:
    written = Written(monkeypatch)
    for number in range(BURST + 20):
        written.packet(number)
    written.packet(5353)
    assert all(port != 5353 for _, port, _ in written.lines)
    written.now += 1
    written.refusals._write()
    assert written.lines[-1][1] == 5353
