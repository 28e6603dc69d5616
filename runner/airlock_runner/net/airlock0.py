"""The other end of airlock0: everything that programs of a sandbox send into it is answered here, or by nobody.

TCP connections go to the service, which judges and dials; names are answered; all else is refused. The service has one.
Every byte of every packet is hostile.
"""

from __future__ import annotations

import socket
from collections import OrderedDict
from typing import TYPE_CHECKING

from airlock_runner.net import dns, packet
from airlock_runner.net.dns_server import DnsConnection
from airlock_runner.net.packet import GATEWAY, HEADER, RESOLVER
from airlock_runner.net.refusals import Refusals
from airlock_runner.net.synthetic import Names
from airlock_runner.net.tcp_relay import TcpRelay
from airlock_runner.net.wire import Wire
from airlockd.protocol.packets import HEADER as VIRTIO
from airlockd.protocol.packets import LENGTH

if TYPE_CHECKING:
    from collections.abc import Callable

    from airlock_runner.net.record import Record
    from airlockd.protocol.loop import Loop, Timer

DNS_PORT = 53
MAX_DNS_CONNECTIONS = 200
MAX_LENT = 16
"""Connections at once that have a large window."""
KEEPALIVE = 60.0
"""Seconds of silence after which a program is asked whether it is still there. A container may vanish with its
connections without a word of them, and a reset that was lost is never sent again."""
KEEPALIVE_PROBES = 3
"""That many are not answered, KEEPALIVE seconds apart, before it counts as gone."""
TICK_SECONDS = 0.5
"""Between two looks at what waits."""
MAX_SILENT = 4096
"""Connections that timed out on the host and whose program may ask on."""
_NO_VIRTIO = bytes(VIRTIO)
_CODES = {
    packet.TCP: packet.PROHIBITED,
    packet.ICMP: packet.PROHIBITED,
    packet.UDP: packet.PORT_UNREACHABLE,
}
"""Of ICMP, for what is not delivered, by protocol."""


class Airlock0:
    """Serves the port airlock.packets, a descriptor that is closed in the end."""

    def __init__(
        self,
        loop: Loop,
        fd: int,
        *,
        on_syn: Callable[[memoryview], None],
        allows: Callable[[str], bool] | None,
        number: Callable[[], str],
        log: Callable[[Record], None],
        on_close: Callable[[str | None], None],
    ) -> None:
        """`on_syn` gets the SYN of each new connection; `allows`, where that counts, says whether a name exists.

        Records of what is refused have names by `number`, and go to `log`.
        """
        self.loop = loop
        self.wire = Wire(loop, fd, self._on_packet, self._on_pause, on_close)
        self.names = Names()
        self._on_syn, self._allows = on_syn, allows
        self._refusals = Refusals(loop, number, log)
        self._relays: dict[bytes, TcpRelay] = {}
        self._owing: set[TcpRelay] = set()
        self._silent: OrderedDict[bytes, int] = OrderedDict()
        self._dns_connections = self._lent = 0
        self._probes: dict[TcpRelay, int] = {}
        self._busy: set[TcpRelay] = set()
        self._timer: Timer | None = None
        self._ticker: Timer | None = None

    def close(self) -> None:
        """End every connection: nothing more comes."""
        for timer in (self._timer, self._ticker):
            if timer is not None:
                timer.cancel()
        self.wire.close()
        for relay in tuple(self._relays.values()):
            relay.abort()
        self._refusals.close()

    # ---- what relays use

    def add(self, relay: TcpRelay) -> None:
        """Give it its packets."""
        self._relays[relay.key] = relay
        if self._timer is None:
            self._timer = self.loop.call_later(KEEPALIVE, self._look_for_silent_ones)

    def busy(self, relay: TcpRelay) -> None:
        """It waits for something, and is to be ticked."""
        self._busy.add(relay)
        if self._ticker is None:
            self._ticker = self.loop.call_later(TICK_SECONDS, self._tick)

    def lend(self) -> bool:
        """Whether one more connection may have a large window."""
        if self._lent == MAX_LENT:
            return False
        self._lent += 1
        return True

    def forget(self, relay: TcpRelay) -> None:
        """The guest has no more to say to it; harmless when it is known already."""
        self._busy.discard(relay)
        if self._relays.get(relay.key) is relay:
            del self._relays[relay.key]
            self._lent -= relay.tcp.is_large
            self._probes.pop(relay, None)

    def hush(self, key: bytes, first: int) -> None:
        """Do not answer this SYN, should it come again."""
        self._silent[key] = first
        if len(self._silent) > MAX_SILENT:
            self._silent.popitem(last=False)

    def answer(self, data: bytes | None) -> None:
        """Send a packet of ours, whole."""
        if data is not None:
            self.wire.put([LENGTH.pack(VIRTIO + len(data)) + _NO_VIRTIO + data])

    # ---- packets

    def _on_packet(self, data: memoryview) -> None:
        if len(data) >= 2 * HEADER and data[9] == packet.TCP and packet.is_plain(data):
            if packet.is_whole_tcp(data):
                self._on_tcp(data)
        elif len(data) >= HEADER:
            self._on_other(data)

    def _on_tcp(self, data: memoryview) -> None:
        relay = self._relays.get(packet.tuple_of(data))
        opens = packet.tcp_flags(data) & (packet.SYN | packet.ACK) == packet.SYN
        if opens and (relay is None or relay.tcp.first != packet.tcp_number(data)):
            if relay is not None:
                # Another connection from the same port: the program has given up the old one.
                relay.give_up()
            self._open(data)
        elif relay is not None:
            relay.on_packet(data)
            if relay.tcp.is_due:
                self._owing.add(relay)
        else:
            self.answer(packet.tcp_reset(data))

    def _on_pause(self) -> None:
        for relay in self._owing:
            relay.tcp.acknowledge()
        self._owing.clear()

    def _open(self, syn: memoryview) -> None:
        key, first = packet.tuple_of(syn), packet.tcp_number(syn)
        if self._silent.pop(key, None) == first:
            self._silent[key] = first
            return
        if packet.target_port(syn) == DNS_PORT:
            self._open_dns(syn)
        else:
            self._on_syn(syn)

    def _on_other(self, data: memoryview) -> None:
        if data[0] >> 4 == 6:
            self._reject(data, packet.unreachable6(data))
        elif data[9] == packet.UDP and packet.is_plain(data):
            self._on_udp(data)
        elif data[9] == packet.ICMP and packet.is_plain(data) and bytes(data[16:20]) in (GATEWAY, RESOLVER):
            self.answer(packet.echo_reply(data))
        elif data[0] >> 4 == 4:
            code = _CODES.get(data[9], packet.PROTOCOL_UNREACHABLE)
            self._reject(data, packet.unreachable(data, GATEWAY, code))

    def _on_udp(self, data: memoryview) -> None:
        asked = packet.udp_payload(data)
        if asked is None:
            return
        if packet.target_port(data) != DNS_PORT:
            self._reject(data, packet.unreachable(data, GATEWAY, packet.PORT_UNREACHABLE))
            return
        answer = self._resolve(asked)
        if answer is not None:
            self.answer(packet.udp_answer(data, dns.truncated(answer, 512)))

    def _reject(self, data: memoryview, answer: bytes | None) -> None:
        """It is not delivered; without an answer nobody is told, for it is one itself, or is for many."""
        if answer is not None:
            self.answer(answer)
            protocol, address, port = packet.destination(data)
            self._refusals.add(protocol, address, port, self.names)

    # ---- names

    def _resolve(self, query: bytes) -> bytes | None:
        """The answer to a DNS query; None: it gets none."""
        question = dns.parse(query)
        if not isinstance(question, dns.Question):
            return question
        denied = False
        if self._allows is not None and question.name:
            denied = not self._allows(question.name)
        return dns.respond(question, self.names, denied=denied)

    def _open_dns(self, syn: memoryview) -> None:
        if self._dns_connections >= MAX_DNS_CONNECTIONS:
            self.answer(packet.tcp_reset(syn))
            return
        try:
            ours, theirs = socket.socketpair()
        except OSError:
            self.answer(packet.tcp_reset(syn))
            return
        self._dns_connections += 1
        served = DnsConnection(self.loop, theirs, self._resolve)

        def over() -> None:
            self._dns_connections -= 1
            served.close()

        TcpRelay(self, syn, over).accept(ours)

    # ---- time

    def _tick(self) -> None:
        self._ticker = None
        for relay in tuple(self._busy):
            if not relay.tick():
                self._busy.discard(relay)
        if self._busy:
            self._ticker = self.loop.call_later(TICK_SECONDS, self._tick)

    def _look_for_silent_ones(self) -> None:
        self._timer = None
        for relay in tuple(self._relays.values()):
            if relay.tcp.heard or not relay.answered:
                relay.tcp.heard = False
                self._probes.pop(relay, None)
                continue
            probes = self._probes[relay] = self._probes.get(relay, 0) + 1
            if probes > KEEPALIVE_PROBES:
                relay.abort()
            else:
                relay.tcp.probe()
        if self._relays:
            self._timer = self.loop.call_later(KEEPALIVE, self._look_for_silent_ones)
