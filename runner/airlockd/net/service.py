"""The network process of the guest: pumps packets of airlock0, answers DNS, and makes streams of connections.

The supervisor forks it and calls `run`. It holds the port airlock.network; the host decides about every connection,
so nothing here is a wall: root in the guest may kill it, and then there is no network.
"""

from __future__ import annotations

import errno
import os
import signal
import socket
import sys
import time
from functools import partial
from typing import TYPE_CHECKING, Any

from airlockd import linux
from airlockd.net import dns, packet, tun
from airlockd.net.dns_server import DnsConnection
from airlockd.net.fastpath import FastPath
from airlockd.net.flows import BOTH, DEVICE, GATEWAY, Flow, Flows
from airlockd.net.listeners import Listeners, reset
from airlockd.net.names import Names
from airlockd.net.refused import Refused
from airlockd.protocol.link import Link
from airlockd.protocol.loop import NO_DESCRIPTORS, Loop
from airlockd.protocol.relay import Relay

if TYPE_CHECKING:
    from collections.abc import Callable

    from airlockd.protocol.frames import Header
    from airlockd.protocol.loop import Timer
    from airlockd.protocol.mux import Message

RESOLVER = bytes((10, 0, 0, 1))
DNS_PORT = 53
BATCH = 32
"""Packets that are taken from the device before other descriptors have their turn."""
ACCEPT_SECONDS = 30.0
"""An established flow whose program is not there any more is given up."""
LINGER_SECONDS = 1800.0
"""For what a closed connection still has to say to a program that reads slowly. The kernel ends it with a FIN or RST,
which are seen here; this is for those that got lost."""
TIMEOUT_SECONDS = 150.0
"""Beyond what Linux waits for a connection (tcp_syn_retries): so long a host's ETIMEDOUT is silence here too."""
TIDY_SECONDS = 5.0
KEEPALIVE = 60
"""Seconds of silence after which a program is asked whether it is still there. A container may vanish with its
connections without a word of them, and a reset that was lost is never sent again."""
KEEPALIVE_PROBES = 3
"""That many are not answered, KEEPALIVE seconds apart, before it counts as gone."""
PAUSE_SECONDS = 1.0
"""For a listener that cannot accept, because all descriptors are in use."""
MAX_CONNECTIONS = 2000
"""Streams of this end. The host has as many of its own at most, and both together have room in a link."""
MAX_DNS_CONNECTIONS = 200
DESCRIPTORS = 8192
"""For all of these; Linux gives its first process 1,024."""
_DNS_PORT = DNS_PORT.to_bytes(2, "big")
_NO_HEADER = bytes(tun.HEADER)
_GATEWAY = socket.inet_ntoa(GATEWAY)
_CODES = {
    packet.TCP: packet.PROHIBITED,
    packet.ICMP: packet.PROHIBITED,
    packet.UDP: packet.PORT_UNREACHABLE,
}
"""Of ICMP, for what is not delivered, by protocol."""


class _Connection:
    """What a flow is to the host. `syn` is the packet that waits for its answer, None once the program is connected."""

    __slots__ = ("name", "relay", "syn")

    def __init__(self, syn: bytearray, name: str | None) -> None:
        self.syn: bytearray | None = syn
        self.name = name
        self.relay: Relay | None = None


class Network:
    """Serves the device `device`, the host at `port`, and the supervisor at `supervisor`; all are descriptors."""

    def __init__(self, device: int, port: int, supervisor: socket.socket) -> None:
        self.loop = Loop(many=True)
        self.link = Link(self.loop, port, self._on_message, self._on_close, bulk=True)
        self.names = Names()
        self._refused = Refused(self.link, self.names)
        self._device = device
        self._listener = socket.create_server((socket.inet_ntoa(DEVICE), 0), backlog=4096)
        self._listener.setblocking(False)
        # What is accepted inherits these.
        self._listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._listener.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        self._listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, KEEPALIVE)
        self._listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, KEEPALIVE)
        self._listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, KEEPALIVE_PROBES)
        self._fast = _fast_path()
        self._flows = Flows(self._listener.getsockname()[1], mirror=self._fast)
        self._calls: dict[int, Callable[[Header], None]] = {}
        self._number, self._stream = 0, -1
        self._live = self._dns_connections = 0
        self._ask_about_names = False
        self._space = bytearray(tun.MAX_PACKET)
        self._view = memoryview(self._space)
        self._listeners = Listeners(self, supervisor)
        self.loop.on_readable(device, self._on_packets)
        self.listen(self._listener, self._on_connections)
        self._tidying: Timer | None = None

    # ---- packets

    def _on_packets(self) -> None:
        view, device = self._view, self._device
        rewrites = self._flows.rewrites
        find, rewrite, readv, write = rewrites.get, packet.rewrite, os.readv, os.write
        space = self._space
        for _ in range(BATCH):
            try:
                size = readv(device, [view])
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno == errno.EBADFD:
                    # Root in the guest removed the device. Without it there is no network.
                    self.loop.forget(device)
                return
            # 12 bytes from the source address on are the tuple, where no IP options move the ports.
            how = find(bytes(view[22:34]))
            if (
                how is None
                or space[10] != 0x45
                or space[19] != packet.TCP
                or size < 50
                or space[16] & 0x3F
                or space[17]
            ):
                self._on_other(view[tun.HEADER : size])
                continue
            if space[43] & 0x07 and self._on_flags(bytes(view[22:34]), space[43], size):
                continue
            rewrite(space, 10, how, partial=space[0] & tun.NEEDS_CHECKSUM != 0)
            try:
                write(device, view[:size])
            except OSError:
                # Full, or not to the kernel's liking: TCP sends it again, or not.
                pass

    def _on_flags(self, tuple_: bytes, flags: int, size: int) -> bool:
        """SYN, FIN or RST in an established flow. True: the packet is dealt with."""
        if flags & packet.SYN and not flags & packet.ACK:
            flow = self._flows.find(tuple_)
            if flow is not None:
                self._flows.look(flow, time.monotonic())
            if flow is not None and flow.ends == BOTH:
                # A new connection from the port of an old one. What else it may be, the kernel knows best.
                self._drop(flow)
                self._on_syn(self._view[tun.HEADER : size])
                return True
        elif flags & (packet.FIN | packet.RST):
            self._flows.ended(tuple_, flags, time.monotonic())
        return False

    def _on_other(self, data: memoryview) -> None:
        """A packet of no established flow."""
        if len(data) < packet.HEADER:
            return
        if data[0] >> 4 == 6:
            self._reject(data, packet.unreachable6(data))
        elif packet.is_plain_tcp(data):
            flags = packet.tcp_flags(data)
            if flags & packet.SYN and not flags & packet.ACK:
                self._on_syn(data)
            elif self._flows.find(packet.tuple_of(data)) is None:
                self._put(packet.tcp_reset(data))
        elif data[9] == packet.UDP and packet.is_plain(data):
            self._on_udp(data)
        elif data[9] == packet.ICMP and packet.is_plain(data) and bytes(data[16:20]) in (GATEWAY, RESOLVER):
            self._put(packet.echo_reply(data))
        elif data[0] >> 4 == 4:
            code = _CODES.get(data[9], packet.PROTOCOL_UNREACHABLE)
            self._reject(data, packet.unreachable(data, GATEWAY, code))

    def _on_udp(self, data: memoryview) -> None:
        asked = packet.udp_payload(data)
        if asked is None:
            return
        if int.from_bytes(data[22:24], "big") != DNS_PORT:
            self._reject(data, packet.unreachable(data, GATEWAY, packet.PORT_UNREACHABLE))
            return
        head = bytes(data[: packet.HEADER + 8])
        self.resolve(asked, lambda answer: self._put(packet.udp_answer(head, dns.truncated(answer, 512))))

    def _reject(self, data: memoryview, answer: bytes | None) -> None:
        """It is not delivered; without an answer nobody is told, for it is one itself, or is for many."""
        if answer is not None:
            self._put(answer)
            self._refused.add(data)

    def _put(self, data: bytes | None) -> None:
        if data is not None:
            try:
                os.write(self._device, _NO_HEADER + data)
            except OSError:
                pass

    # ---- connections of the guest

    def _on_syn(self, data: memoryview) -> None:
        tuple_ = packet.tuple_of(data)
        known = self._flows.find(tuple_)
        if known is not None:
            syn = known.state.syn
            if syn is None or packet.tcp_number(data) == packet.tcp_number(memoryview(syn)[tun.HEADER :]):
                # Asked again while the host dials, or where it timed out.
                return
            # Another connection from the same port: the program has given up the old one.
            self._drop(known)
        wanted = tuple_[10:12] == _DNS_PORT or not self.full
        flow = self._flows.open(tuple_, None) if wanted else None
        if flow is None:
            self._put(packet.tcp_reset(data))
            return
        name = self.names.use(flow.target)
        flow.state = connection = _Connection(bytearray(self._view[: tun.HEADER + len(data)]), name)
        if self._tidying is None:
            self._tidy()
        if flow.target_port == DNS_PORT:
            self._establish(flow)
            return
        arguments = {
            "kind": "tcp",
            "name": name,
            "address": socket.inet_ntoa(flow.target),
            "port": flow.target_port,
        }
        connection.relay = self.connect(
            arguments,
            lambda refused: self._refuse(flow, refused) if refused else self._establish(flow),
            lambda _relay: self._on_relay_done(flow),
        )

    def _establish(self, flow: Flow) -> None:
        """The connection is there on the other side: let the guest's kernel have its SYN."""
        if self._flows.find(flow.tuple) is not flow:
            return
        self._flows.establish(flow)
        syn = flow.state.syn
        how = self._flows.rewrites[flow.tuple]
        packet.rewrite(syn, tun.HEADER, how, partial=syn[0] & tun.NEEDS_CHECKSUM != 0)
        try:
            os.write(self._device, syn)
        except OSError:
            pass
        self._drop_later(flow, ACCEPT_SECONDS)
        if self._fast is not None:
            # The rest of the handshake took place inside that write.
            self._accept()

    def _refuse(self, flow: Flow, header: Header) -> None:
        """The host has no such connection: say why as the kernel would have."""
        if self._flows.find(flow.tuple) is not flow:
            return
        syn = bytes(flow.state.syn[tun.HEADER :])
        reason = header.get("errno")
        if reason == "ETIMEDOUT":
            self._drop_later(flow, TIMEOUT_SECONDS)
            return
        self._drop(flow)
        codes = {
            "EHOSTUNREACH": packet.HOST_UNREACHABLE,
            "ENETUNREACH": packet.NET_UNREACHABLE,
            "EACCES": packet.PROHIBITED,
        }
        if reason in codes:
            self._put(packet.unreachable(syn, GATEWAY, codes[reason]))
        else:
            self._put(packet.tcp_reset(syn))

    def _on_connections(self) -> None:
        while self._accept():
            pass

    def _accept(self) -> bool:
        """Take one connection from the listener; False where there is none, or no descriptor for it."""
        try:
            connected, (address, port) = self._listener.accept()
        except BlockingIOError:
            return False
        except OSError as error:
            if error.errno in NO_DESCRIPTORS:
                self.pause(self._listener, self._on_connections)
                return False
            return True
        flow = self._flows.by_port(port) if address == _GATEWAY else None
        if flow is None or flow.state.syn is None:
            # Somebody in the guest found the listener.
            connected.close()
            return True
        flow.state.syn = None
        self._drop_later(flow, None)
        relay = flow.state.relay
        if relay is None and self._dns_connections < MAX_DNS_CONNECTIONS:
            self._dns_connections += 1
            DnsConnection(self, connected, partial(self._on_dns_done, flow))
        elif relay is None or relay.done:
            reset(connected)
            self._drop_later(flow, LINGER_SECONDS)
        else:
            relay.attach(connected)
        return True

    def _on_relay_done(self, flow: Flow) -> None:
        """Both directions are closed here; the kernel may have things to say to the program still."""
        # Before the host's answer, that answer decides; before the program is connected, it is told then.
        if flow.state.syn is None:
            self._drop_later(flow, LINGER_SECONDS)

    def _on_dns_done(self, flow: Flow) -> None:
        self._dns_connections -= 1
        self._drop_later(flow, LINGER_SECONDS)

    def _drop_later(self, flow: Flow, seconds: float | None) -> None:
        """Drop the flow in so many seconds, or a little later, and not before; or with None not by time."""
        self._flows.limit(flow, None if seconds is None else time.monotonic() + seconds)

    def _drop(self, flow: Flow) -> None:
        if self._flows.by_port(flow.port) is not flow:
            return
        self._flows.remove(flow)
        self._forget(flow)

    def _forget(self, flow: Flow) -> None:
        """The flow is in no table any more."""
        connection = flow.state
        if connection.name is not None:
            self.names.release(flow.target)
        # Where both have said FIN, what the program sent last may still wait for a slow host.
        ended = flow.ends == BOTH and not flow.broken and connection.syn is None
        if connection.relay is not None and not connection.relay.done and not ended:
            connection.relay.abort()

    def _tidy(self) -> None:
        for flow in self._flows.tidy(time.monotonic()):
            self._forget(flow)
        self._tidying = self.loop.call_later(TIDY_SECONDS, self._tidy) if len(self._flows) else None

    # ---- the host

    @property
    def full(self) -> bool:
        """Whether no more connections are made: there are enough, or there is no host."""
        return self._live >= MAX_CONNECTIONS or self.link.closed

    def connect(
        self,
        arguments: dict[str, Any],
        answered: Callable[[Header | None], None],
        done: Callable[[Relay], None],
    ) -> Relay:
        """Ask the host for a connection; `answered` gets None, or the header of its refusal."""
        self._stream += 2
        self._live += 1

        def over(relay: Relay) -> None:
            self._live -= 1
            done(relay)

        relay = Relay(self.link, self._stream, over)

        def replied(header: Header) -> None:
            if header["t"] == "reply":
                answered(None)
                return
            answered(header)
            if not relay.done:
                relay.abort()

        self._call({"op": "connect", "stream": self._stream, **arguments}, replied)
        return relay

    def resolve(self, query: bytes, answer: Callable[[bytes], None]) -> bool:
        """Answer a DNS query, now or when the host has said whether the name is allowed; False: never."""
        question = dns.parse(query)
        if question is None:
            return False
        if isinstance(question, bytes):
            answer(question)
        elif self._ask_about_names and question.name and not self.link.closed:
            if self.link.congested:
                # Whoever asked will ask again.
                return False

            def told(header: Header) -> None:
                answer(dns.respond(question, self.names, denied=header.get("allowed") is False))

            self._call({"op": "name", "name": question.name}, told)
        else:
            answer(dns.respond(question, self.names))
        return True

    def ask_about_names(self, asked: bool) -> None:
        """Whether names that the policy denies do not exist."""
        self._ask_about_names = asked

    def _call(self, header: Header, then: Callable[[Header], None]) -> None:
        self._number += 1
        self._calls[self._number] = then
        self.link.mux.send({"t": "call", "id": self._number, **header})

    def _on_message(self, message: Message) -> None:
        header = message.header
        if header["t"] in ("reply", "error"):
            then = self._calls.pop(header["id"], None)
            if then is not None:
                then(header)
        elif header["t"] == "call" and header.get("op") == "dial":
            self._listeners.dial(header)
        elif header["t"] == "call" and header.get("op") == "socket":
            self._listeners.switch(header)

    def _on_close(self, reason: str | None) -> None:
        """The host has no network for us (any more): every connection was reset, new ones are refused."""
        if reason:
            print(f"airlockd: the network port was closed: {reason}", file=sys.stderr, flush=True)
        calls, self._calls = self._calls, {}
        for then in calls.values():
            then({"t": "error"})

    # ---- listeners

    def listen(self, server: socket.socket, accept: Callable[[], None]) -> None:
        """Call `accept` whenever there is somebody to accept."""
        self.loop.on_readable(server.fileno(), accept)

    def pause(self, server: socket.socket, accept: Callable[[], None]) -> None:
        """`accept` found no descriptor free: try again a little later."""

        def go_on() -> None:
            # It may have been closed meanwhile.
            if server.fileno() >= 0:
                self.listen(server, accept)

        self.loop.on_readable(server.fileno(), None)
        self.loop.call_later(PAUSE_SECONDS, go_on)


def _fast_path() -> FastPath | None:
    """None where the kernel has no such thing, or this is not the first of its user namespaces."""
    try:
        return FastPath(socket.if_nametoindex(tun.NAME))
    except OSError:
        return None


def run(device: int, port: int, supervisor: socket.socket) -> None:
    """Serve until the process is killed; for a process of its own."""
    linux.set_name("airlock-net")
    linux.allow_descriptors(DESCRIPTORS)
    signal.signal(signal.SIGPIPE, signal.SIG_IGN)
    network = Network(device, port, supervisor)
    supervisor.send(b"{}")
    network.loop.run()
