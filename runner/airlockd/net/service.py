"""The guest's end of the port airlock.network: streams for what is forwarded, from the sandbox to the host and back.

The supervisor has a process for it. What goes through airlock0 is none of its business: see pump.py.
"""

from __future__ import annotations

import os
import signal
import sys
from typing import TYPE_CHECKING, Any

from airlockd import linux
from airlockd.net.listeners import Listeners
from airlockd.protocol.link import Link
from airlockd.protocol.loop import Loop
from airlockd.protocol.relay import Relay

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable

    from airlockd.protocol.frames import Header
    from airlockd.protocol.mux import Message

PAUSE_SECONDS = 1.0
"""For a listener that cannot accept, because all descriptors are in use."""
MAX_CONNECTIONS = 2000
"""Streams of this end. The host has as many of its own at most, and both together have room in a link."""
DESCRIPTORS = 8192
"""For all of these; Linux gives its first process 1,024."""


class Network:
    """Serves the host at `port`, and the supervisor at `supervisor`; both are descriptors."""

    def __init__(self, port: int, supervisor: socket.socket) -> None:
        self.loop = Loop(many=True)
        self.link = Link(self.loop, port, self._on_message, self._on_close, bulk=True)
        self._calls: dict[int, Callable[[Header], None]] = {}
        self._number, self._stream = 0, -1
        self._live = 0
        self._listeners = Listeners(self, supervisor)

    @property
    def full(self) -> bool:
        """Whether no more connections are made: there are enough, or there is no host."""
        return self._live >= MAX_CONNECTIONS or self.link.closed

    def connect(self, arguments: dict[str, Any], answered: Callable[[Header | None], None]) -> Relay:
        """Ask the host for a connection; `answered` gets None, or the header of its refusal."""
        self._stream += 2
        self._live += 1

        def over(_relay: Relay) -> None:
            self._live -= 1

        relay = Relay(self.link, self._stream, over)

        def replied(header: Header) -> None:
            if header["t"] == "reply":
                answered(None)
                return
            answered(header)
            if not relay.done:
                relay.abort()

        self._number += 1
        self._calls[self._number] = replied
        self.link.mux.send(
            {"t": "call", "id": self._number, "op": "connect", "stream": self._stream, **arguments}
        )
        return relay

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


def run(port: int, supervisor: socket.socket, pump: int) -> None:
    """Serve until the process is killed, or the one of this number, the pump, has ended; for a process of its own."""
    linux.set_name("airlock-net")
    linux.allow_descriptors(DESCRIPTORS)
    signal.signal(signal.SIGPIPE, signal.SIG_IGN)
    network = Network(port, supervisor)
    network.loop.on_readable(os.pidfd_open(pump), network.loop.stop)
    supervisor.send(b"{}")
    network.loop.run()
