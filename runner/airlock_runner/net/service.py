"""The host's end of a sandbox's network: takes what the guest asks for, keeps what is connected. One per session.

It is imported with the guest's first word, or where ports are forwarded into the guest.
"""

from __future__ import annotations

import ipaddress
import resource
import secrets
import time
from typing import TYPE_CHECKING, Any

from airlock_runner.net import packet
from airlock_runner.net.airlock0 import TICK_SECONDS, Airlock0
from airlock_runner.net.connection import Connection, StreamEnd, Target
from airlock_runner.net.forwards import Forward
from airlock_runner.net.names import canonical
from airlock_runner.net.policy import judge_name
from airlock_runner.net.requests import Answer, Connect, parse
from airlock_runner.net.resolver import Resolver
from airlock_runner.net.tcp_relay import TcpRelay
from airlockd.protocol.frames import ProtocolError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from airlock_runner.net.connection import End
    from airlock_runner.net.forwards import Outgoing
    from airlock_runner.net.policy import Policy
    from airlock_runner.net.record import Record
    from airlock_runner.net.resolver import Addresses
    from airlock_runner.net.settle import HostSocket, Settled, ToHost
    from airlockd.protocol.link import Link
    from airlockd.protocol.loop import Loop, Timer
    from airlockd.protocol.mux import Message

MAX_CONNECTIONS = 2000
"""What a guest can make the host keep is a window each way, so a gigabyte at the very worst."""
DESCRIPTORS = 65536


class Service:
    """Serves a guest through `link`, and airlock0 through the descriptor `packets`.

    `log` gets each connection's record when it is decided and when it ends.
    """

    def __init__(
        self,
        loop: Loop,
        link: Link,
        packets: int,
        settled: Settled,
        policy: Policy,
        *,
        log: Callable[[Record], None],
        look_up: Callable[[str], Addresses] | None = None,
    ) -> None:
        self.loop, self.link, self.policy, self.log = loop, link, policy, log
        self.to_host: Mapping[int, ToHost] = settled.to_host
        self.sockets: Mapping[str, HostSocket] = settled.sockets
        self.connections: set[Connection] = set()
        self.forwarded = 0
        """Connections into the guest that stand."""
        self._waiting: set[Connection | Outgoing] = set()
        self._calls: dict[int, Callable[[str | None], None]] = {}
        self._stream = self._call = self._count = 0
        # Every connection of every session has a name of its own.
        self._session = secrets.token_hex(3)
        self._timer: Timer | None = None
        _allow_descriptors()
        # Not with the first name: by then, a guest may have used up all descriptors.
        self.resolver = Resolver(loop, look_up)
        hides_names = settled.config.denied_names == "nxdomain"
        self.airlock0 = Airlock0(
            loop, packets, on_syn=self._on_syn, allows=self._allows if hides_names else None, number=self.number,
            log=log, on_close=link.close,
        )  # fmt: skip
        self._forwards = [Forward(self, each) for each in settled.to_guest]

    @property
    def full(self) -> bool:
        """Whether no more connections are taken for now."""
        return len(self.connections) + len(self._calls) + self.forwarded >= MAX_CONNECTIONS

    def close(self) -> None:
        """The link is closed: nothing more comes, nobody is let in."""
        for forward in self._forwards:
            forward.close()
        self.airlock0.close()
        # Those that the guest has left alone already, with something for a slow server.
        for connection in tuple(self.connections):
            connection.end.abort()
        if self._timer is not None:
            self._timer.cancel()
        self.resolver.close()

    def on_message(self, message: Message) -> None:
        """A frame that belongs to no stream. Raises ProtocolError, upon which the link is closed."""
        request = parse(message.header)
        if isinstance(request, Connect):
            self._connect(request)
        else:
            self._answered(request)

    # ---- what connections use

    def number(self) -> str:
        """A name for a connection, unlike all others of this sandbox."""
        self._count += 1
        return f"{self._session}-{self._count}"

    def stream(self) -> int:
        """A number for a stream: ours are even."""
        self._stream += 2
        return self._stream

    def call(self, arguments: Mapping[str, Any], then: Callable[[str | None], None]) -> int:
        """Ask the guest; `then` gets None, or the name of an errno."""
        self._call += 1
        self._calls[self._call] = then
        self.link.mux.send({**arguments, "t": "call", "id": self._call})
        return self._call

    def pending(self, connection: Connection | Outgoing) -> None:
        """It waits for something, and is to be ticked."""
        self._waiting.add(connection)
        if self._timer is None:
            self._timer = self.loop.call_later(TICK_SECONDS, self._tick)

    def settled(self, connection: Connection | Outgoing) -> None:
        """It waits no more."""
        self._waiting.discard(connection)

    def gone(self, connection: Connection) -> None:
        """It is over."""
        self._waiting.discard(connection)
        self.connections.discard(connection)

    # ---- calls of the guest

    def _connect(self, request: Connect) -> None:
        if self.link.mux.is_open(request.stream):
            raise ProtocolError(f"stream {request.stream} is in use")
        if request.kind == "port" and request.port not in self.to_host:
            raise ProtocolError(f"port {request.port} is not forwarded")
        if request.kind == "socket" and request.name not in self.sockets:
            raise ProtocolError(f"there is no socket {request.name!r:.40}")
        if self.full:
            self.link.refuse([request.stream])
            self.link.mux.send(
                {"t": "error", "id": request.id, "errno": "ECONNREFUSED", "message": "too many connections"}
            )
            return
        target = Target(request.kind, request.name, None, request.port)
        self._begin(target, lambda made: StreamEnd(self.link, request.id, request.stream, made.on_done))

    def _on_syn(self, syn: memoryview) -> None:
        airlock0, address = self.airlock0, bytes(syn[16:20])
        if self.full:
            airlock0.answer(packet.tcp_reset(syn))
            return
        name = airlock0.names.use(address)

        def make_end(made: Connection) -> TcpRelay:
            def over() -> None:
                if name is not None:
                    airlock0.names.release(address)
                made.on_done()

            return TcpRelay(airlock0, syn, over)

        target = Target("tcp", name, ipaddress.IPv4Address(address), packet.target_port(syn))
        self._begin(target, make_end)

    def _begin(self, target: Target, make_end: Callable[[Connection], End]) -> None:
        connection = Connection(self, target, make_end)
        self.connections.add(connection)
        self.pending(connection)
        try:
            connection.start()
        except OSError as error:
            # For want of descriptors: this one alone ends.
            connection.give_up(error)

    def _allows(self, name: str) -> bool:
        try:
            return judge_name(self.policy, canonical(name), None) is None
        except ValueError:
            return False

    def _answered(self, answer: Answer) -> None:
        then = self._calls.pop(answer.id, None)
        if then is None:
            raise ProtocolError(f"an answer to call {answer.id}, which was not made")
        then(answer.errno)

    def _tick(self) -> None:
        self._timer = None
        now = time.monotonic()
        for connection in list(self._waiting):
            connection.tick(now)
        if self._waiting:
            self._timer = self.loop.call_later(TICK_SECONDS, self._tick)


def _allow_descriptors() -> None:
    """As many as the system lets us have without asking: each connection takes one."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = DESCRIPTORS if hard == resource.RLIM_INFINITY else min(DESCRIPTORS, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
        except (OSError, ValueError):
            pass
