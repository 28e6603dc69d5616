"""The host's end of a sandbox's network port: takes the guest's calls, keeps what is connected. One per session.

It is imported with the guest's first word, or where ports are forwarded into the guest.
"""

from __future__ import annotations

import resource
import secrets
import time
from typing import TYPE_CHECKING, Any

from airlock_runner.net.connection import Connection
from airlock_runner.net.forwards import Forward
from airlock_runner.net.names import canonical
from airlock_runner.net.policy import judge_name
from airlock_runner.net.refusals import Refusals
from airlock_runner.net.requests import Answer, Connect, NameQuery, Refused, parse
from airlock_runner.net.resolver import Resolver
from airlockd.protocol.frames import ProtocolError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from airlock_runner.net.forwards import Outgoing
    from airlock_runner.net.policy import Policy
    from airlock_runner.net.record import Record
    from airlock_runner.net.resolver import Addresses
    from airlock_runner.net.settle import HostSocket, Settled, ToHost
    from airlockd.protocol.link import Link
    from airlockd.protocol.loop import Loop, Timer
    from airlockd.protocol.mux import Message

MAX_CONNECTIONS = 2000
"""What a guest can make the host keep is a window for each, so half a gigabyte at the very worst."""
TICK_SECONDS = 0.5
DESCRIPTORS = 65536


class Service:
    """Serves a guest through `link`. `log` gets each connection's record when it is decided and when it ends."""

    def __init__(
        self,
        loop: Loop,
        link: Link,
        settled: Settled,
        policy: Policy,
        *,
        log: Callable[[Record], None],
        look_up: Callable[[str], Addresses] | None = None,
    ) -> None:
        self.loop, self.link, self.policy, self.log = loop, link, policy, log
        self.to_host: Mapping[int, ToHost] = settled.to_host
        self.sockets: Mapping[str, HostSocket] = settled.sockets
        self.connections: dict[int, Connection] = {}
        self.forwarded = 0
        """Connections into the guest that stand."""
        self._look_up = look_up
        self._resolver: Resolver | None = None
        self._waiting: set[Connection | Outgoing] = set()
        self._calls: dict[int, Callable[[str | None], None]] = {}
        self._stream = self._call = self._count = 0
        # Every connection of every session has a name of its own.
        self._session = secrets.token_hex(3)
        self._timer: Timer | None = None
        self._refusals = Refusals(loop, self.number, log)
        _allow_descriptors()
        self._forwards = [Forward(self, each) for each in settled.to_guest]

    @property
    def resolver(self) -> Resolver:
        """Made with the first name."""
        if self._resolver is None:
            self._resolver = Resolver(self.loop, self._look_up)
        return self._resolver

    @property
    def full(self) -> bool:
        """Whether no more connections are taken for now."""
        return len(self.connections) + len(self._calls) + self.forwarded >= MAX_CONNECTIONS

    def close(self) -> None:
        """The link is closed: nothing more comes, nobody is let in."""
        for forward in self._forwards:
            forward.close()
        if self._timer is not None:
            self._timer.cancel()
        if self._resolver is not None:
            self._resolver.close()
        self._refusals.close()

    def on_message(self, message: Message) -> None:
        """A frame that belongs to no stream. Raises ProtocolError, upon which the link is closed."""
        request = parse(message.header)
        if isinstance(request, Connect):
            self._connect(request)
        elif isinstance(request, NameQuery):
            self.link.mux.send({"t": "reply", "id": request.id, "allowed": self._allows(request)})
        elif isinstance(request, Refused):
            self._refusals.add(request)
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
        self.connections.pop(connection.request.id, None)

    # ---- calls of the guest

    def _connect(self, request: Connect) -> None:
        if request.id in self.connections or self.link.mux.is_open(request.stream):
            raise ProtocolError(f"call {request.id} or stream {request.stream} is in use")
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
        connection = self.connections[request.id] = Connection(self, request)
        self.pending(connection)
        connection.start()

    def _allows(self, request: NameQuery) -> bool:
        try:
            return judge_name(self.policy, canonical(request.name), None) is None
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
