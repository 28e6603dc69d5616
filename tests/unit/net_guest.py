"""A guest's end of the network without a guest: both ends of the link run in one loop, servers are real.

TCP connections have a stream here in place of packets: what is judged and dialled is the same.
"""

from __future__ import annotations

import os
import socket
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from weakref import WeakSet

from airlock_runner.net.addresses import parse_address
from airlock_runner.net.connection import StreamEnd, Target
from airlock_runner.net.network import policy_of
from airlock_runner.net.service import Service
from airlock_runner.net.settle import Settled, settle
from airlockd.protocol.link import Link
from airlockd.protocol.loop import Loop
from airlockd.protocol.relay import Relay

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from airlock_runner.config.network_model import NetworkConfig
    from airlock_runner.net.addresses import Address
    from airlock_runner.net.record import Record
    from airlockd.protocol.frames import Header
    from airlockd.protocol.mux import Message

PATIENCE = 60.0
"""Seconds after which a test counts as hung."""


@dataclass
class Client:
    """A program in the guest: what it was told, and its end of the connection (a socketpair's)."""

    mine: socket.socket
    relay: Relay
    answer: Header | None = None

    @property
    def error(self) -> str | None:
        """The errno it was told."""
        return str(self.answer["errno"]) if self.answer is not None and self.answer["t"] == "error" else None


@dataclass
class Guest:
    """The fake guest. `records` is what was logged, `dials` what the host asked to be connected to."""

    loop: Loop
    link: Link
    service: Service
    settled: Settled
    records: list[dict[str, Any]]
    wire: socket.socket
    """The guest's end of the port for packets."""
    clients: dict[int, Client] = field(default_factory=dict)
    replies: dict[int, Header] = field(default_factory=dict)
    dials: list[Header] = field(default_factory=list)
    on_dial: Callable[[Header], None] = lambda _header: None
    closed: list[str | None] = field(default_factory=list)
    number: int = 0
    stream: int = -1
    sockets: WeakSet[socket.socket] = field(default_factory=WeakSet)

    def connect(self, port: int, name: str | None = None, address: str = "10.2.0.1") -> Client:
        """A program connects."""
        client, number, stream = self._client(), self.number, self.stream
        self.service._begin(
            Target("tcp", name, parse_address(address), port),
            lambda made: StreamEnd(self.service.link, number, stream, made.on_done),
        )
        return client

    def ask(self, what: Header) -> Client:
        """What is forwarded."""
        client = self._client()
        header = {"t": "call", "id": self.number, "op": "connect", "stream": self.stream, **what}
        self.link.mux.send(header)
        return client

    def _client(self) -> Client:
        self.stream += 2
        self.number += 1
        mine, theirs = socket.socketpair()
        self.sockets.add(mine)
        client = Client(mine, Relay(self.link, self.stream, lambda _relay: None))
        client.relay.attach(theirs)
        self.clients[self.number] = client
        return client

    def call(self, what: Header) -> int:
        """Send a call."""
        self.number += 1
        self.link.mux.send({"t": "call", "id": self.number, **what})
        return self.number

    def until(self, happened: Callable[[], object]) -> None:
        """Let both ends work until it has happened."""
        if happened():
            return

        def look() -> None:
            if happened():
                self.loop.stop()

        def late() -> None:
            raise AssertionError(f"it never happened; logged: {self.records}, closed: {self.closed}")

        self.loop.after(look)
        timer = self.loop.call_later(PATIENCE, late)
        try:
            self.loop.run()
        finally:
            self.loop._after.remove(look)
            timer.cancel()

    def answered(self, client: Client) -> Client:
        """The client, once it has its answer."""
        self.until(lambda: client.answer is not None or self.closed)
        return client

    def on_message(self, message: Message) -> None:
        header = message.header
        if header["t"] == "call":
            self.dials.append(header)
            self.on_dial(header)
            return
        client = self.clients.pop(header["id"], None)
        if client is not None:
            client.answer = header
        self.replies[header["id"]] = header


@contextmanager
def guest(
    config: NetworkConfig, root: Path, look_up: Callable[[str], tuple[Address, ...]] | None = None
) -> Iterator[Guest]:
    """A guest of a sandbox with this config. `look_up` stands in for DNS; by default there is none."""

    def no_dns(name: str) -> tuple[Address, ...]:
        raise socket.gaierror(socket.EAI_NONAME, f"a test asked DNS for {name}")

    loop = Loop()
    ours, theirs = socket.socketpair()
    settled = settle(config, root, [root])
    records: list[dict[str, Any]] = []
    closed: list[str | None] = []
    made: list[Service] = []

    def log(record: Record) -> None:
        records.append(record.values())

    def on_close(reason: str | None) -> None:
        closed.append(reason)
        made[0].close()

    def on_host_message(message: Message) -> None:
        made[0].on_message(message)

    def on_guest_message(message: Message) -> None:
        held[0].on_message(message)

    packets, wire = socket.socketpair()
    host = Link(loop, ours.detach(), on_host_message, on_close, bulk=True)
    made.append(
        Service(loop, host, packets.detach(), settled, policy_of(config), log=log, look_up=look_up or no_dns)
    )
    # The fake guest is made with its link, and the link with the guest.
    held: list[Guest] = []
    link = Link(
        loop, theirs.detach(), on_guest_message, lambda _: None, bulk=True
    )  # fmt: skip
    held.append(Guest(loop, link, made[0], settled, records, wire, closed=closed))
    try:
        yield held[0]
    finally:
        host.close()
        link.close()
        wire.close()
        settled.close()
        for mine in tuple(held[0].sockets):
            mine.close()
        loop.close()


def descriptors() -> int:
    """How many this process has open."""
    return len(os.listdir("/proc/self/fd"))
