"""Two relays over one link: what one socket says, the other hears, with its ends and its resets."""

from __future__ import annotations

import hashlib
import os
import socket
from typing import TYPE_CHECKING

import pytest

from airlockd.protocol.link import Link
from airlockd.protocol.loop import Loop
from airlockd.protocol.mux import WINDOW
from airlockd.protocol.output import BACKLOG
from airlockd.protocol.relay import Relay

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from airlockd.protocol.mux import Message


def ignore(_value: object) -> None:
    pass


class Wire:
    """Two links in one loop, and a relay at each end of stream 1."""

    def __init__(self) -> None:
        self.loop = Loop()
        ends = socket.socketpair()
        self.links = [Link(self.loop, end.detach(), self._message, ignore, bulk=True) for end in ends]
        self.finished: list[Relay] = []
        self.near, self.far = (Relay(link, 1, self.finished.append) for link in self.links)

    def _message(self, _message: Message) -> None:
        raise AssertionError("nobody calls")

    def run(self, until: Callable[[], bool]) -> None:
        """Serve until something holds, which also may move the peers on; gives up by itself."""
        rounds, held = 0, False

        def look() -> None:
            nonlocal rounds, held
            rounds += 1
            held = until()
            if held or rounds > 20_000:
                self.loop.stop()
            else:
                self.loop.call_later(0.0005, look)

        look()
        if not held:
            self.loop.run()
        assert held


@pytest.fixture
def wire() -> Iterator[Wire]:
    wire = Wire()
    yield wire
    for link in wire.links:
        link.close()
    wire.loop.close()


def pair() -> tuple[socket.socket, socket.socket]:
    """A TCP connection over loopback: what the relay gets, and its peer, which does not block."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        peer = socket.create_connection(server.getsockname())
        connected, _ = server.accept()
    peer.setblocking(False)
    return connected, peer


def receive(peer: socket.socket, into: bytearray) -> bool:
    """Take what is there; True at the end."""
    try:
        while data := peer.recv(1 << 16):
            into += data
    except BlockingIOError:
        return False
    return True


def test_bytes_and_half_close(wire: Wire) -> None:
    """One side ends its half, the other still answers, and then both are closed."""
    (left, client), (right, server) = pair(), pair()
    wire.near.attach(left)
    wire.far.attach(right)
    client.send(b"question")
    client.shutdown(socket.SHUT_WR)
    heard, answered = bytearray(), bytearray()
    wire.run(lambda: receive(server, heard))
    assert heard == b"question"
    assert not wire.finished
    server.send(b"answer")
    server.close()
    wire.run(lambda: receive(client, answered) and len(wire.finished) == 2)
    assert answered == b"answer"
    assert [(relay.sent, relay.received, relay.broken) for relay in (wire.near, wire.far)] == [
        (8, 6, False),
        (6, 8, False),
    ]
    client.close()


def test_what_came_before_the_socket_is_kept(wire: Wire) -> None:
    left, client = pair()
    right, server = pair()
    wire.far.attach(right)
    server.send(b"banner")
    server.close()
    wire.run(lambda: wire.far.sent == 6)
    wire.near.attach(left)
    heard = bytearray()
    wire.run(lambda: receive(client, heard))
    assert heard == b"banner"
    client.close()


def test_a_reset_passes(wire: Wire) -> None:
    (left, client), (right, server) = pair(), pair()
    wire.near.attach(left)
    wire.far.attach(right)
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    client.close()
    wire.run(lambda: len(wire.finished) == 2)
    assert wire.near.broken
    assert wire.far.broken
    with pytest.raises(ConnectionResetError):
        server.recv(1)
    server.close()


def test_an_end_before_the_socket_came(wire: Wire) -> None:
    """Broken off while the one side still dials."""
    left, client = pair()
    wire.near.attach(left)
    wire.far.abort()
    wire.run(lambda: len(wire.finished) == 2)
    with pytest.raises(ConnectionResetError):
        client.recv(1)
    client.close()


def test_a_relay_that_is_over_waits_for_the_wire_no_more(wire: Wire) -> None:
    left, client = pair()
    wire.near.attach(left)
    output = wire.links[0].mux.output
    output.add([bytes(BACKLOG + 1)])
    client.sendall(b"waits for the wire")
    wire.near._read()
    assert len(output._held) == 1
    wire.near.abort()
    assert not output._held
    client.close()


def test_much_is_held_back_and_arrives(wire: Wire) -> None:
    """A reader that does not read holds the writer back; nothing is lost when it does."""
    (left, client), (right, server) = pair(), pair()
    wire.near.attach(left)
    wire.far.attach(right)
    data = os.urandom(1 << 20) * 32
    sent, heard = 0, bytearray()

    def push() -> int:
        nonlocal sent
        before = sent
        try:
            while sent < len(data):
                sent += client.send(data[sent : sent + (1 << 18)])
        except BlockingIOError:
            pass
        return sent - before

    # What was written out is told in portions of a quarter of the window, which has grown with the first megabyte.
    wire.run(lambda: not push() and sum(map(len, wire.far._pending)) > WINDOW * 3 // 4)
    assert sum(map(len, wire.far._pending)) <= WINDOW
    assert sent < len(data)

    def more() -> bool:
        push()
        receive(server, heard)
        return len(heard) == len(data)

    wire.run(more)
    assert hashlib.sha256(heard).digest() == hashlib.sha256(data).digest()
    client.close()
    server.close()
