"""Packets that airlock0 refuses: what the guest tells of them, and what the host makes of that."""

from __future__ import annotations

import socket
import struct
from typing import TYPE_CHECKING, Any

import pytest
from net_guest import guest

from airlock_runner.config.network_model import NetworkConfig
from airlock_runner.net import refusals
from airlock_runner.net.refusals import BURST, KNOWN, Refusals
from airlock_runner.net.requests import MAX_ID, MAX_REFUSED, Packets, Refused, parse
from airlockd.net import packet
from airlockd.net import refused as guest_module
from airlockd.net.names import Names
from airlockd.protocol.frames import ProtocolError
from airlockd.protocol.link import Link
from airlockd.protocol.loop import Loop

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from airlock_runner.net.record import Record

HERE = socket.inet_aton("192.168.77.1")


def udp(address: str, port: int) -> memoryview:
    text = struct.pack(">4H", 5000, port, 8, 0)
    return memoryview(packet.ip_packet(HERE, socket.inet_aton(address), packet.UDP, text))


class Wire:
    """A guest's reporter, and what it says."""

    def __init__(self) -> None:
        self.loop = Loop()
        ours, self.theirs = socket.socketpair()
        self.link = Link(self.loop, ours.detach(), lambda _message: None, lambda _reason: None)
        self.names = Names()
        self.refused = guest_module.Refused(self.link, self.names)
        self.said: list[dict[str, Any]] = []
        self.link.mux.send = self.said.append  # type: ignore[method-assign,assignment]

    def period(self) -> None:
        """A second passes."""
        (timer,) = [each for each in self.loop._timers if each.callback is not None]
        callback, timer.callback = timer.callback, None
        assert callback is not None
        callback()


@pytest.fixture
def wire() -> Iterator[Wire]:
    made = Wire()
    yield made
    made.link.close()
    made.theirs.close()
    made.loop.close()


def test_the_first_packet_is_told_at_once_and_the_rest_together(wire: Wire) -> None:
    address = wire.names.address("quic.test")
    assert address is not None
    for _ in range(1000):
        wire.refused.add(udp(socket.inet_ntoa(address), 443))
    wire.refused.add(udp("192.0.2.1", 5353))
    assert [each["packets"] for each in wire.said] == [[[17, "10.2.0.1", 443, 1, "quic.test"]]]
    wire.period()
    assert wire.said[1]["packets"] == [
        [17, "10.2.0.1", 443, 999, "quic.test"],
        [17, "192.0.2.1", 5353, 1, None],
    ]
    wire.period()
    assert len(wire.said) == 2
    assert not [each for each in wire.loop._timers if each.callback is not None]


def test_what_is_told_is_bounded_and_the_host_takes_it(wire: Wire) -> None:
    for number in range(10_000):
        wire.refused.add(udp("192.0.2.1", number))
    assert len(wire.refused._counts) == guest_module.MAX_LISTED
    wire.period()
    first, second = (parse(header) for header in wire.said)
    assert isinstance(first, Refused)
    assert isinstance(second, Refused)
    assert sum(each.times for each in (*first.packets, *second.packets)) + second.more == 10_000
    assert len(second.packets) == MAX_REFUSED


def test_nothing_is_said_to_a_host_that_is_gone_or_does_not_read(wire: Wire) -> None:
    wire.link.mux.output_size = 1 << 30
    wire.refused.add(udp("192.0.2.1", 1))
    assert wire.said == []
    wire.link.mux.output_size = 0
    wire.period()
    assert len(wire.said) == 1
    wire.link.close()
    wire.refused.add(udp("192.0.2.1", 1))
    assert len(wire.said) == 1


def test_where_any_packet_was_going() -> None:
    far6 = socket.inet_pton(socket.AF_INET6, "2001:db8::1")
    six = struct.pack(">IHBB", 6 << 28, 8, packet.UDP, 64) + bytes(16) + far6
    options = b"\x46" + bytes(8) + b"\x11" + bytes(6) + HERE + bytes(4) + struct.pack(">HH", 1, 2)
    icmp = packet.ip_packet(HERE, HERE, packet.ICMP, bytes(8))
    assert packet.destination(udp("192.0.2.1", 443)) == (17, socket.inet_aton("192.0.2.1"), 443)
    assert packet.destination(six + struct.pack(">4H", 1, 443, 8, 0)) == (17, far6, 443)
    assert packet.destination(six) == (17, far6, None)
    assert packet.destination(options) == (17, HERE, 2)
    assert packet.destination(icmp) == (1, HERE, None)


# ---- the host


def event(*packets: Any, more: Any = 0) -> dict[str, Any]:
    return {"t": "event", "name": "refused", "packets": list(packets), "more": more}


GOOD = [17, "192.0.2.1", 443, 1, None]


def test_a_report_is_a_line_of_the_log(tmp_path: Path) -> None:
    with guest(NetworkConfig(), tmp_path) as sandbox:
        reports = (
            [17, "10.2.0.1", 443, 3, "QUIC.test."], [1, "192.0.2.1", None, 1, None],
            [132, "192.0.2.1", 7, 1, None], [58, "2001:db8::1", None, 1, None], [6, "2001:db8::1", 80, 1, "a b"],
            [47, "::ffff:192.0.2.1", None, 1, "\x1b[2J"],
        )  # fmt: skip
        sandbox.link.mux.send(event(*reports, more=5))
        sandbox.until(lambda: len(sandbox.records) == 7)
        keys = ("protocol", "name", "address", "port", "count")
        assert [tuple(each[key] for key in keys) for each in sandbox.records] == [
            ("udp", "quic.test", "10.2.0.1", 443, 3), ("icmp", None, "192.0.2.1", None, 1),
            ("sctp", None, "192.0.2.1", 7, 1), ("icmpv6", None, "2001:db8::1", None, 1),
            ("tcp", None, "2001:db8::1", 80, 1), ("ip-47", None, "192.0.2.1", None, 1),
            ("ip", None, None, None, 5),
        ]  # fmt: skip
        assert {(each["kind"], each["verdict"], each["state"]) for each in sandbox.records} == {
            ("packet", "refused", "refused")
        }
        assert len({each["id"] for each in sandbox.records}) == 7
        assert sandbox.records[0]["rule"] == "reported by the sandbox"
        assert not sandbox.closed


@pytest.mark.parametrize(
    "frame",
    [
        {"t": "event", "name": "refused"},
        {"t": "event", "name": "exit", "packets": [GOOD], "more": 0},
        event(),
        event(*[GOOD] * (MAX_REFUSED + 1)),
        event(GOOD, more=-1),
        event(GOOD, more=None),
        event(GOOD[:4]),
        event("12345"),
        event({"protocol": 17}),
        *(
            event([*GOOD[:place], value, *GOOD[place + 1 :]])
            for place, values in enumerate(
                (
                    (-1, 256, None, "udp", True), (None, "x", 7, "1.2.3.4%lo", "a" * 2000), (-1, 65536, "443", 1.5),
                    (0, -1, None, 2**60, "1"), (7, "x" * 2000, ["a"]),
                )
            )
            for value in values
        ),
    ],
    ids=lambda frame: str(frame)[:80],
)  # fmt: skip
def test_a_report_that_airlockd_would_not_make_is_a_breach(frame: dict[str, Any]) -> None:
    with pytest.raises(ProtocolError):
        parse(frame)


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

    def packets(self, port: int, count: int = 1) -> None:
        address = parse(event(GOOD)).packets[0].address  # type: ignore[union-attr]
        self.refusals.add(Refused([Packets(17, address, port, count, None)], 0))


def test_a_destination_has_a_line_each_time_that_its_count_has_doubled(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    written = Written(monkeypatch)
    for _ in range(1000):
        written.packets(443)
    assert written.lines == [("s-0", 443, 1 << power) for power in range(10)]
    written.refusals.close()
    assert written.lines[-1] == ("s-0", 443, 1000)
    written.refusals.close()
    assert len(written.lines) == 11


def test_however_much_is_reported_lines_and_memory_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """A guest that makes reports up, each of other destinations."""
    written = Written(monkeypatch)
    for number in range(20_000):
        written.packets(number, 2)
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


def test_counts_stay_numbers_that_json_has(monkeypatch: pytest.MonkeyPatch) -> None:
    written = Written(monkeypatch)
    for _ in range(3):
        written.packets(443, MAX_ID)
    written.refusals.close()
    assert written.lines[-1][2] == MAX_ID
