"""A connection that a guest asked for: judged, resolved, judged again, dialled, relayed, logged."""

from __future__ import annotations

import errno
import time
from typing import TYPE_CHECKING, Literal, NamedTuple, Protocol

from airlock_runner.net.addresses import number_address, parse_address
from airlock_runner.net.dial import Dial, Endpoint, errno_name
from airlock_runner.net.names import canonical
from airlock_runner.net.own import is_own
from airlock_runner.net.policy import Verdict, denied_names, judge, judge_name
from airlock_runner.net.record import Record
from airlock_runner.sockets import connect_at
from airlockd.protocol.relay import Relay

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable

    from airlock_runner.net.addresses import Address
    from airlock_runner.net.record import State
    from airlock_runner.net.resolver import Addresses, Ticket
    from airlock_runner.net.service import Service
    from airlock_runner.net.settle import HostSocket
    from airlockd.protocol.link import Link

RESOLVE_SECONDS = 15.0
DIAL_SECONDS = 130.0
"""From the call to the connection; Linux itself gives up after about as long."""
MAX_DENIED_NAMES = 256
"""Names of deny rules whose addresses are looked for when an address is dialled."""
LOOPBACKS = ("127.0.0.1", "::1")


class Target(NamedTuple):
    """What a program connects to. `address` is set for `tcp`, `name` there where it is a synthetic one's.

    For `port`, `port` is the guest's localhost port; for `socket`, `name` is that of a forwarded socket.
    """

    kind: Literal["tcp", "port", "socket"]
    name: str | None
    address: Address | None
    port: int


class End(Protocol):
    """The guest's end of it: a stream, or TCP. It calls back once it is over."""

    @property
    def done(self) -> bool:
        """Whether it is over."""

    @property
    def broken(self) -> bool:
        """Whether that was by a reset."""

    @property
    def sent(self) -> int:
        """Bytes to the guest."""

    @property
    def received(self) -> int:
        """Bytes from the guest."""

    def accept(self, connected: socket.socket) -> None:
        """The connection is there; the socket is the end's to close."""

    def refuse(self, error: str, message: str) -> None:
        """There is none, by the errno of this name."""

    def abort(self) -> None:
        """Break it off, both ways."""


class StreamEnd(Relay):
    """A stream that the guest has asked for by call `number`."""

    __slots__ = ("_number",)

    def __init__(self, link: Link, number: int, stream: int, on_done: Callable[[], None]) -> None:
        self._number = number
        super().__init__(link, stream, lambda _relay: on_done())

    def accept(self, connected: socket.socket) -> None:
        """Tell it."""
        self._link.mux.send({"t": "reply", "id": self._number})
        self.attach(connected)

    def refuse(self, error: str, message: str) -> None:
        """Tell it."""
        self._link.mux.send({"t": "error", "id": self._number, "errno": error, "message": message})
        self.abort()


class Connection:
    """From the guest's call to its end. It is in the service's `connections` for as long as it lives."""

    __slots__ = (
        "_asked", "_began", "_dial", "_missing", "_name", "_service", "_tickets", "_told", "end", "record", "target",
    )  # fmt: skip

    def __init__(self, service: Service, target: Target, make_end: Callable[[Connection], End]) -> None:
        """`make_end` is given what is to be called back."""
        self._service, self.target = service, target
        self._began = time.monotonic()
        self._dial: Dial | None = None
        self._tickets: list[Ticket] = []
        self._told = False
        self._name: str | None = None
        self._asked: Address | None = target.address
        self._missing: set[str] = set()
        address = str(target.address) if target.address is not None and target.name is None else None
        self.record = Record(service.number(), target.kind, target.name, address, target.port or None)
        if target.kind == "socket":
            self.record.protocol = "unix"
        self.end = make_end(self)

    def start(self) -> None:
        """Decide, and go on from there."""
        target = self.target
        if target.kind == "tcp":
            self._start_tcp()
        elif self._service.policy.mode == "deny-always":
            self._deny(Verdict(False, "policy deny-always"))
        elif target.kind == "port":
            self._start_port()
        else:
            self._start_socket()

    def tick(self, now: float) -> None:
        """Called now and then until the guest has its answer."""
        if self._dial is not None:
            self._dial.tick(now)
        if not self._told and self._tickets and now - self._began > RESOLVE_SECONDS:
            name = next(iter(self._missing), None)
            self._fail_for("not looked up in time" if name is None else _unknown(name))
        elif not self._told and now - self._began > DIAL_SECONDS:
            self._fail(errno.ETIMEDOUT)

    def give_up(self, error: OSError) -> None:
        """It cannot even be tried: refused, whatever the error is."""
        self.record.rule = error.strerror or ""
        self._fail(errno.ECONNREFUSED)

    # ---- tcp

    def _start_tcp(self) -> None:
        target, policy = self.target, self._service.policy
        if target.name is not None:
            try:
                self._name, self._asked = _target(target.name)
                self.record.name = self._name or target.name
            except ValueError as error:
                self._deny(Verdict(False, str(error)))
                return
        if not target.port:
            self._deny(Verdict(False, "port 0"))
            return
        name = self._name
        if name is None:
            assert self._asked is not None
            self._look_for_denied_names()
            return
        early = judge_name(policy, name, target.port)
        if early is not None:
            self._deny(early)
            return
        given = policy.hosts.get(name)
        if given is not None:
            self._judge(given)
        else:
            self._tickets = [self._service.resolver.resolve(name, self._judge)]

    def _look_for_denied_names(self) -> None:
        """An address that a denied name has is denied along with it, as far as it can be known."""
        service, port = self._service, self.target.port
        assert self._asked is not None
        # Not worth a lookup where the address is denied anyway.
        if not judge(service.policy, None, self._asked, port, is_own).allowed:
            self._judge((self._asked,))
            return
        known: dict[str, Addresses] = dict(service.policy.hosts)
        names = dict.fromkeys(name for name, _ in denied_names(service.policy, port))
        for name in list(names)[:MAX_DENIED_NAMES]:
            if name in known:
                continue
            cached = service.resolver.cached(name)
            if cached is not None:
                known[name] = cached
            else:
                self._missing.add(name)
        for name in tuple(self._missing):

            def found(addresses: Addresses | None, name: str = name) -> None:
                if addresses is None:
                    self._fail_for(_unknown(name))
                    return
                known[name] = addresses
                self._missing.discard(name)
                if not self._missing:
                    self._judge_asked(known)

            self._tickets.append(service.resolver.resolve(name, found))
        if not self._missing:
            self._judge_asked(known)

    def _judge_asked(self, known: dict[str, Addresses]) -> None:
        assert self._asked is not None
        for name, rule in denied_names(self._service.policy, self.target.port):
            if self._asked in known.get(name, ()):
                self._deny(Verdict(False, rule))
                return
        self._judge((self._asked,))

    def _judge(self, addresses: Addresses | None) -> None:
        """Exactly the addresses that pass here are dialled."""
        self._tickets = []
        if not addresses:
            self._fail_for("could not be looked up" if addresses is None else "no address")
            return
        policy, port = self._service.policy, self.target.port
        # The policy may have changed since the name was judged.
        early = judge_name(policy, self._name, port) if self._name is not None else None
        if early is not None:
            self._deny(early)
            return
        verdicts = [(address, judge(policy, self._name, address, port, is_own)) for address in addresses]
        allowed = [(address, verdict) for address, verdict in verdicts if verdict.allowed]
        if not allowed:
            self.record.address = str(verdicts[0][0])
            self._deny(verdicts[0][1])
            return
        self.record.rule = allowed[0][1].rule
        self._connect([Endpoint(address, port) for address, _ in allowed])

    def _connect(self, endpoints: list[Endpoint]) -> None:
        self.record.address = str(endpoints[0].address)
        self._dial = Dial(self._service.loop, endpoints, self._connected, self._fail)
        self._dial.start()

    # ---- forwarded ports and sockets

    def _start_port(self) -> None:
        forward = self._service.to_host[self.target.port]
        self.record.rule = f"ports.{forward.group}"
        self._connect([Endpoint(parse_address(each), forward.host) for each in LOOPBACKS])

    def _start_socket(self) -> None:
        assert self.target.name is not None
        forwarded: HostSocket = self._service.sockets[self.target.name]
        self.record.rule = f"sockets.{forwarded.name}"
        self.record.address = str(forwarded.path)
        self._try_socket(forwarded)

    def _try_socket(self, forwarded: HostSocket) -> None:
        if self.end.done:
            return
        try:
            connected = connect_at(forwarded.path, forwarded.guarded)
        except BlockingIOError:
            # Its backlog is full, and nothing tells when it no longer is.
            self._service.loop.call_later(0.05, lambda: self._try_socket(forwarded))
        except OSError as error:
            self._fail(error.errno or errno.ECONNREFUSED)
        else:
            self._answer(connected)

    # ---- what comes of it

    def _connected(self, connected: socket.socket, endpoint: Endpoint) -> None:
        self.record.address = str(endpoint.address)
        self._dial = None
        self._answer(connected)

    def _answer(self, connected: socket.socket) -> None:
        self._told = True
        self._service.settled(self)
        self._log("open")
        self.end.accept(connected)

    def _deny(self, verdict: Verdict) -> None:
        self.record.verdict, self.record.rule = "deny", verdict.rule
        self._refuse("denied", "ECONNREFUSED", f"denied by {verdict.rule}")

    def _fail_for(self, reason: str) -> None:
        """Nobody was asked to connect: not the silence of a server, in which a program would wait for long."""
        self.record.rule = reason
        self._fail(errno.EHOSTUNREACH)

    def _fail(self, number: int) -> None:
        name = errno_name(number)
        self._refuse("failed", name, name)

    def _refuse(self, state: State, error: str, message: str) -> None:
        if self._told:
            return
        self._told = True
        self._log(state, error)
        self.end.refuse(error, message)

    def on_done(self) -> None:
        """Its end is over."""
        for ticket in self._tickets:
            ticket.cancel()
        if self._dial is not None:
            self._dial.cancel()
        if not self._told:
            # The program gave up before it was connected.
            self._told = True
            self._log("failed", "ECONNRESET")
        elif self.record.state == "open":
            self.record.sent, self.record.received = self.end.received, self.end.sent
            self._log("reset" if self.end.broken else "closed")
        self._service.gone(self)

    def _log(self, state: State, error: str | None = None) -> None:
        self.record.state, self.record.error = state, error
        self.record.seconds = round(time.monotonic() - self._began, 3)
        self._service.log(self.record)


def _unknown(name: str) -> str:
    """Whether an address is one of this name's cannot be told, and that is no permission."""
    return f"{name} is denied, and could not be looked up"


def _target(name: str) -> tuple[str | None, Address | None]:
    """What a guest's name stands for: the name in its one form, or the address that it is another way to write.

    Raises ValueError where it is neither.
    """
    if ":" in name:
        return None, parse_address(name)
    plain = canonical(name)
    address = number_address(plain)
    return (plain, None) if address is None else (None, address)
