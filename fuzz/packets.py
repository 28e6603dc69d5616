"""Hostile packets, DNS queries too, against the host's end of airlock0: `feed` for tests, `make fuzz` for atheris.

Whoever has CAP_NET_RAW in a container can send any of them, and a guest that is broken whole records. Nothing is
raised, what is answered is well-formed, and what is kept is bounded.
"""

from __future__ import annotations

import contextlib
import socket
import struct
import unittest.mock
from typing import TYPE_CHECKING

from wire import main

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    import atheris

    from airlock_runner.net.record import Record
else:
    with contextlib.suppress(ImportError):
        import atheris

# What is imported here is what atheris watches.
with atheris.instrument_imports() if "atheris" in globals() else contextlib.nullcontext():
    from airlock_runner.net import packet, tcp
    from airlock_runner.net.airlock0 import Airlock0
    from airlock_runner.net.journal import _encode
    from airlock_runner.net.tcp_relay import TcpRelay
    from airlockd.protocol.loop import Loop
    from airlockd.protocol.packets import HEADER, LENGTH, MAX_RECORD

ANSWERS = ("", "ECONNREFUSED", "EHOSTUNREACH", "ETIMEDOUT", "EEK")
"""What may come of a connection: it stands, or an errno."""
_PARTIAL = 1
"""Of a virtio header: the guest's kernel adds the rest of TCP's sum."""


class _Host:
    """The host's end with nothing behind it: servers are socketpairs that say hello."""

    def __init__(self) -> None:
        self.loop = Loop()
        self.closed: list[str | None] = []
        self._waiting: list[TcpRelay] = []
        self._servers: list[socket.socket] = []
        ours, self.guest = socket.socketpair()
        self.guest.setblocking(False)
        self.airlock0 = Airlock0(
            self.loop, ours.detach(), on_syn=self._on_syn, allows=lambda name: "evil" not in name,
            number=lambda: "s-1", log=self._log, on_close=self.closed.append,
        )  # fmt: skip

    def _on_syn(self, syn: memoryview) -> None:
        self._waiting.append(TcpRelay(self.airlock0, syn, lambda: None))

    def _log(self, record: Record) -> None:
        _encode(record.values()).encode()

    def take(self, data: bytes) -> Iterator[bytes]:
        """Have it take these bytes of the wire; gives the records that it sends."""
        self.guest.sendall(data)
        # One to read it, one for a server of its own, one for what that says.
        for _ in range(3):
            self.loop.call_later(0, lambda: None)
            self.loop._round()
        said = b""
        with contextlib.suppress(BlockingIOError):
            while part := self.guest.recv(1 << 20):
                said += part
        while said:
            end = LENGTH.size + LENGTH.unpack_from(said)[0]
            yield said[LENGTH.size : end]
            said = said[end:]

    def answer(self, number: int) -> None:
        """Answer the connection that waits longest."""
        if not self._waiting:
            return
        relay, error = self._waiting.pop(0), ANSWERS[number % len(ANSWERS)]
        if relay.done:
            return
        if error:
            relay.refuse(error, "")
            return
        ours, theirs = socket.socketpair()
        theirs.send(b"hello")
        self._servers.append(theirs)
        relay.accept(ours)

    def close(self) -> None:
        self.airlock0.close()
        self.loop.close()
        for each in (self.guest, *self._servers):
            each.close()


def feed(steps: Iterable[tuple[int, bytes]]) -> list[bytes]:
    """Have it take these in turn: 0 and bytes of the wire, or 1 + the number of an answer.

    Gives the packets that came back.
    """
    host = _Host()
    answers: list[bytes] = []
    # The same input is to have the same answer, and 9 to acknowledge a SYN.
    with unittest.mock.patch.object(tcp, "_first_number", lambda: 8):
        _take(host, steps, answers)
    assert not host.airlock0._relays
    return answers


def _take(host: _Host, steps: Iterable[tuple[int, bytes]], answers: list[bytes]) -> None:
    try:
        for kind, data in steps:
            if kind:
                host.answer(kind - 1)
            if host.closed:
                break
            for answer in host.take(b"" if kind else data):
                _check(answer)
                answers.append(answer[HEADER:])
        assert all(reason is None or reason.startswith("protocol error: ") for reason in host.closed)
    finally:
        host.close()


def _check(record: bytes) -> None:
    """It is a packet of ours, with right sums."""
    data = record[HEADER:]
    if data[0] >> 4 == 6:
        pseudo = data[8:40] + struct.pack(">II", len(data) - 40, packet.ICMPV6)
        assert packet.checksum(pseudo + data[40:]) == 0
        return
    assert struct.unpack_from(">H", data, 2)[0] == len(data)
    assert packet.checksum(data[: packet.HEADER]) == 0
    text = data[packet.HEADER :]
    if record[0] & _PARTIAL:
        text = text[:16] + struct.pack(">H", packet.checksum(text)) + text[18:]
    pseudo = b"" if data[9] == packet.ICMP else data[12:20] + struct.pack(">HH", data[9], len(text))
    assert packet.checksum(pseudo + text) == 0


def steps(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Any bytes as steps: a byte of what, two of length, so much of a packet; after 0xFFFF as that, the wire as is."""
    while len(data) >= 3:
        size = int.from_bytes(data[1:3], "big")
        kind = data[0] % (len(ANSWERS) + 1)
        if kind:
            yield kind, b""
            data = data[1:]
        elif size == 0xFFFF:
            yield 0, data[3:]
            return
        else:
            yield 0, record(data[3 : 3 + size])
            data = data[3 + size :]


def record(data: bytes) -> bytes:
    """A packet as it crosses the wire."""
    data = (bytes(HEADER) + data)[:MAX_RECORD]
    return LENGTH.pack(len(data)) + data


def seeds() -> list[bytes]:
    """A connection from its SYN to its end, a query, a ping, and what is refused."""
    here, far = socket.inet_aton("192.168.77.1"), socket.inet_aton("192.0.2.1")

    def step(data: bytes) -> bytes:
        return b"\0" + len(data).to_bytes(2, "big") + data

    def segment(flags: int, number: int, port: int = 80, text: bytes = b"") -> bytes:
        head = struct.pack(">HHIIBBHHH", 4000, port, number, 9, 5 << 4, flags, 1000, 0, 0)
        return packet.ip_packet(here, far, packet.TCP, head + text)

    query = struct.pack(">6H", 7, 0x100, 1, 0, 0, 0) + b"\4name\4test\0" + struct.pack(">2H", 1, 1)
    udp = struct.pack(">4H", 5000, 53, 8 + len(query), 0) + query
    six = struct.pack(">IHBB", 6 << 28, 8, packet.UDP, 64) + bytes(40)
    syn = step(segment(packet.SYN, 7))
    rest = step(segment(packet.ACK, 8, text=b"data")) + step(segment(packet.FIN | packet.ACK, 12))
    dns = step(segment(packet.ACK, 8, 53, len(query).to_bytes(2, "big") + query))
    return [
        syn + b"\1" + rest + syn,
        syn + b"\2" + syn,
        syn + b"\4" + syn,
        step(segment(packet.SYN, 7, 53)) + dns,
        step(segment(packet.ACK, 7)),
        step(packet.ip_packet(here, far, packet.UDP, udp)),
        step(packet.ip_packet(here, packet.GATEWAY, packet.ICMP, b"\x08\0\xf7\xff\0\0\0\0")),
        step(packet.ip_packet(here, far, packet.ICMP, b"\x08\0\xf7\xff\0\0\0\0")),
        step(packet.ip_packet(here, far, 132, bytes(12))),
        step(six),
        b"\0\xff\xff" + record(segment(packet.SYN, 7)) + b"\0\0\0\5",
    ]


def one_input(data: bytes) -> None:
    """For atheris."""
    feed(steps(data))


if __name__ == "__main__":
    main(one_input, seeds())
