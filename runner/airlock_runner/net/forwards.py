"""Connections from the host's loopback into the guest's: `[network.ports] guest`. The service makes and ends them."""

from __future__ import annotations

import socket
import time
from typing import TYPE_CHECKING

from airlock_runner.net.record import Record
from airlockd.protocol.loop import NO_DESCRIPTORS
from airlockd.protocol.relay import Relay, reset

if TYPE_CHECKING:
    from airlock_runner.net.record import State
    from airlock_runner.net.service import Service
    from airlock_runner.net.settle import ToGuest

DIAL_SECONDS = 30.0
PAUSE_SECONDS = 1.0
"""For a listener that cannot accept, because all descriptors are in use."""


class Forward:
    """Listens at a port of the host for as long as the guest's network stands."""

    def __init__(self, service: Service, to_guest: ToGuest) -> None:
        self._service, self.to_guest = service, to_guest
        self._closed = False
        self._listen()

    def close(self) -> None:
        """Whoever connects from now on is refused."""
        if not self._closed:
            self._closed = True
            self._service.loop.forget(self.to_guest.listener.fileno())
            self.to_guest.listener.close()

    def _listen(self) -> None:
        if not self._closed:
            self._service.loop.on_readable(self.to_guest.listener.fileno(), self._accept)

    def _accept(self) -> None:
        try:
            client, _ = self.to_guest.listener.accept()
        except OSError as error:
            if error.errno in NO_DESCRIPTORS:
                self._service.loop.on_readable(self.to_guest.listener.fileno(), None)
                self._service.loop.call_later(PAUSE_SECONDS, self._listen)
            return
        if self._service.full:
            reset(client)
            return
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        Outgoing(self._service, self.to_guest, client)


class Outgoing:
    """One of them, from `accept` to its end."""

    __slots__ = ("_began", "_client", "_number", "_service", "record", "relay")

    def __init__(self, service: Service, to_guest: ToGuest, client: socket.socket) -> None:
        self._service = service
        self._client: socket.socket | None = client
        self._began = time.monotonic()
        self.record = Record(
            service.number(), "forward", None, "127.0.0.1", to_guest.guest, rule=f"ports.{to_guest.group}"
        )
        stream = service.stream()
        self.relay = Relay(service.link, stream, self._on_done)
        self._number = service.call({"op": "dial", "stream": stream, "port": to_guest.guest}, self._on_answer)
        service.pending(self)

    def tick(self, now: float) -> None:
        """Called now and then until the guest has answered."""
        if now - self._began > DIAL_SECONDS:
            self._on_answer("ETIMEDOUT")

    def _on_answer(self, error: str | None) -> None:
        if self._client is None:
            return
        if error is not None:
            self._log("failed", error)
            self.relay.abort()
            return
        client, self._client = self._client, None
        self._service.settled(self)
        self._service.forwarded += 1
        self._log("open")
        self.relay.attach(client)

    def _on_done(self, relay: Relay) -> None:
        self._service.settled(self)
        if self._client is not None:
            # That is as near to "connection refused" as it gets once a connection is accepted.
            reset(self._client)
            self._client = None
            if self.record.state != "failed":
                self._log("failed", "ECONNRESET")
            return
        self._service.forwarded -= 1
        self.record.sent, self.record.received = relay.sent, relay.received
        self._log("reset" if relay.broken else "closed")

    def _log(self, state: State, error: str | None = None) -> None:
        self.record.state, self.record.error = state, error
        self.record.seconds = round(time.monotonic() - self._began, 3)
        self._service.log(self.record)
