"""Hostile packets, DNS queries too, against the guest's network process: `feed` for tests, `make fuzz` for atheris.

Whoever has CAP_NET_RAW in a container can send any of them. Nothing is raised, what is answered is well-formed, and a
connection that the host has answered is either rewritten or gone.
"""

from __future__ import annotations

import contextlib
import socket
import struct
from typing import TYPE_CHECKING

from wire import main

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    import atheris
else:
    with contextlib.suppress(ImportError):
        import atheris

# What is imported here is what atheris watches.
with atheris.instrument_imports() if "atheris" in globals() else contextlib.nullcontext():
    from airlockd.net import packet, service, tun
    from airlockd.net.flows import DEVICE, GATEWAY
    from airlockd.protocol.mux import Message

ANSWERS: tuple[dict[str, str], ...] = (
    {"t": "reply"}, *({"t": "error", "errno": each} for each in ("ECONNREFUSED", "EHOSTUNREACH", "ETIMEDOUT", "EEK")),
)  # fmt: skip
"""What the host may say to a call."""
_LOOPBACK = socket.inet_aton("127.0.0.1")


class _Guest:
    """A network process in this one. Its device is a socket, and what it says to the host goes nowhere."""

    def __init__(self) -> None:
        # The listener's address is not one of this host's; what is sent there is not sent.
        service.DEVICE = _LOOPBACK
        self.device, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
        wire, self._host = socket.socketpair()
        self._supervisor, channel = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        theirs.setblocking(False)
        self.device.setblocking(False)
        self._theirs = theirs
        self.network = service.Network(theirs.fileno(), wire.detach(), channel)
        self._channel = channel
        mux = self.network.link.mux
        self.network.link.flush = lambda: mux.written(mux.output_size)  # type: ignore[method-assign]

    def take(self, data: bytes) -> Iterator[bytes]:
        """Have it take a packet with its virtio header; gives what it puts into the device."""
        self.device.send(data)
        self.network._on_packets()
        yield from self._said()

    def _said(self) -> Iterator[bytes]:
        while True:
            try:
                yield self.device.recv(tun.MAX_PACKET)
            except BlockingIOError:
                return

    def answer(self, number: int) -> None:
        """Have the host answer the call that waits longest; the SYN that this lets through is nobody's answer."""
        waiting = next(iter(self.network._calls), None)
        if waiting is not None:
            self.network._on_message(Message({**ANSWERS[number % len(ANSWERS)], "id": waiting}, b""))
        for _ in self._said():
            pass

    def close(self) -> None:
        self.network.link.close()
        self.network._listener.close()
        self.network.loop.close()
        for each in (self.device, self._theirs, self._host, self._supervisor, self._channel):
            each.close()


def feed(steps: Iterable[tuple[int, bytes]]) -> list[bytes]:
    """Have a network process take these in turn: 0 and a packet with its virtio header, or 1 + the number of an answer.

    Gives the packets that came back.
    """
    guest = _Guest()
    answers: list[bytes] = []
    try:
        for kind, data in steps:
            if kind:
                guest.answer(kind - 1)
            elif data:
                for answer in guest.take(data[: tun.MAX_PACKET]):
                    _check(data, answer)
                    answers.append(answer)
            flows = guest.network._flows
            assert len(flows.rewrites) <= 2 * len(flows)
            assert len(guest.network._calls) <= guest.network._number
    finally:
        guest.close()
    return answers


def _check(asked: bytes, answer: bytes) -> None:
    """An answer is a packet of ours, with right sums, or what came, from elsewhere to elsewhere."""
    assert len(answer) >= tun.HEADER + packet.HEADER
    data = answer[tun.HEADER :]
    if len(answer) == len(asked) and data[:12][:10] == asked[tun.HEADER :][:10]:
        return
    if data[0] >> 4 == 6:
        pseudo = data[8:40] + struct.pack(">II", len(data) - 40, packet.ICMPV6)
        assert packet.checksum(pseudo + data[40:]) == 0
        return
    assert struct.unpack_from(">H", data, 2)[0] == len(data)
    assert packet.checksum(data[: packet.HEADER]) == 0
    text = data[packet.HEADER :]
    pseudo = b"" if data[9] == packet.ICMP else data[12:20] + struct.pack(">HH", data[9], len(text))
    assert packet.checksum(pseudo + text) == 0


def steps(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Any bytes as steps: a byte of what, two of length, a packet."""
    while len(data) >= 3:
        size = int.from_bytes(data[1:3], "big")
        kind = data[0] % (len(ANSWERS) + 1)
        yield kind, data[3 : 3 + size] if not kind else b""
        data = data[3 + size :] if not kind else data[1:]


def seeds() -> list[bytes]:
    """A connection from its SYN to its end, a query, a ping, and what is refused."""

    def step(data: bytes) -> bytes:
        data = bytes(tun.HEADER) + data
        return b"\0" + len(data).to_bytes(2, "big") + data

    def tcp(flags: int, source: bytes, target: bytes, ports: tuple[int, int]) -> bytes:
        text = struct.pack(">HHIIBBHHH", *ports, 7, 9, 5 << 4, flags, 1000, 0, 0)
        return packet.ip_packet(source, target, packet.TCP, text)

    far = socket.inet_aton("192.0.2.1")
    query = struct.pack(">6H", 7, 0x100, 1, 0, 0, 0) + b"\4name\4test\0" + struct.pack(">2H", 1, 1)
    udp = struct.pack(">4H", 5000, 53, 8 + len(query), 0) + query
    six = struct.pack(">IHBB", 6 << 28, 8, packet.UDP, 64) + bytes(40)
    syn, end = (tcp(flags, DEVICE, far, (4000, 80)) for flags in (packet.SYN, packet.FIN | packet.ACK))
    connection = step(syn) + b"\1" + step(end) + step(syn)
    return [
        connection,
        step(syn) + b"\2" + step(syn),
        step(tcp(packet.SYN, DEVICE, far, (4000, 53))),
        step(packet.ip_packet(DEVICE, far, packet.UDP, udp)),
        step(packet.ip_packet(DEVICE, GATEWAY, packet.ICMP, b"\x08\0\xf7\xff\0\0\0\0")),
        step(packet.ip_packet(DEVICE, far, packet.ICMP, b"\x08\0\xf7\xff\0\0\0\0")),
        step(packet.ip_packet(DEVICE, far, 132, bytes(12))),
        step(six),
    ]


def one_input(data: bytes) -> None:
    """For atheris."""
    feed(steps(data))


if __name__ == "__main__":
    main(one_input, seeds())
