"""A link whose other end goes away: what it said first counts, however the link hears of its end."""

from __future__ import annotations

import errno
import os
import random
import socket
from typing import TYPE_CHECKING

import pytest
from handlers import Ignoring

from airlockd.protocol import link as module
from airlockd.protocol.frames import MAX_PAYLOAD, encode
from airlockd.protocol.link import Link
from airlockd.protocol.loop import Loop
from airlockd.protocol.mux import WINDOW, Message
from airlockd.protocol.pumps import Sink, Source

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence


def test_what_was_said_before_the_end_is_heard_when_writing_fails_first() -> None:
    ours, theirs = socket.socketpair()
    loop = Loop()
    heard: list[Message | str | None] = []
    link = Link(loop, ours.detach(), heard.append, heard.append)
    theirs.sendall(b"".join(encode({"t": "event", "name": "last"})))
    theirs.close()
    link.mux.send({"t": "event", "name": "more"})
    link.flush()
    (said, reason) = heard
    assert isinstance(said, Message)
    assert said.header["name"] == "last"
    assert reason is None
    assert link.closed
    loop.close()


def test_an_end_that_has_us_answer_and_does_not_read_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_OUTPUT", 8 * MAX_PAYLOAD)
    ours, theirs = socket.socketpair()
    loop = Loop()
    ended: list[str | None] = []
    link = Link(loop, ours.detach(), lambda _message: None, ended.append)
    for stream in range(1, 65):
        # However many streams there are: their data is bounded by their windows.
        link.open(stream, Ignoring())
        link.mux.send_data(stream, b"x" * link.mux.credit(stream))
        link.flush()
    assert link.mux.output.size > 60 * WINDOW
    for _ in range(64):
        link.mux.send({"t": "event", "name": "x"}, b"x" * MAX_PAYLOAD)
        link.flush()
        if link.closed:
            break
    assert ended == ["the other end does not read"]
    assert link.mux.output.size < 64 * WINDOW + 10 * MAX_PAYLOAD
    theirs.close()
    loop.close()


def test_what_cannot_be_written_is_told_to_both_sides() -> None:
    ours, theirs = socket.socketpair()
    loop = Loop()
    links = [Link(loop, end.detach(), lambda _message: None, lambda _reason: None) for end in (ours, theirs)]
    said: list[object] = []
    Sink(links[0], os.open("/dev/full", os.O_WRONLY), 1, lambda: said.append("done"), said.append)
    read, write = os.pipe()
    Source(links[1], read, 1, loop.stop)
    os.write(write, b"x")
    loop.run()
    error, done = said
    assert isinstance(error, OSError)
    assert (error.errno, done) == (errno.ENOSPC, "done")
    with pytest.raises(BrokenPipeError):
        os.write(write, b"x")
    os.close(write)
    for link in links:
        link.close()
    loop.close()


def pagewise(most: Callable[[], int]) -> Callable[[int, Sequence[memoryview]], int]:
    """readv of a virtio port: the kernel reads for each space by itself, a page at most, and until one is not filled.

    `most` is how much it has at once.
    """
    readv = os.readv

    def read(fd: int, spaces: Sequence[memoryview]) -> int:
        total = 0
        for space in spaces:
            try:
                count = readv(fd, [space[: most()]])
            except OSError:
                if total:
                    return total
                raise
            total += count
            if count < len(space):
                break
        return total

    return read


@pytest.mark.parametrize("pages", [1, 2])
def test_what_arrives_with_a_reset_is_heard(pages: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whole pages, and then an error instead of an end: of a socket whose other end leaves without having read all."""
    monkeypatch.setattr(module.os, "readv", pagewise(lambda: 4096))
    ours, theirs = socket.socketpair()
    loop = Loop()
    heard: list[object] = []
    link = Link(loop, ours.detach(), lambda message: heard.append(message.header["x"]), heard.append)
    os.write(link._fd, b"never read")
    empty = len(encode({"t": "event", "x": ""})[0])
    theirs.sendall(b"".join(encode({"t": "event", "x": "x" * (4096 - empty)})[0] for _ in range(pages)))
    theirs.close()
    loop.after(lambda: loop.stop() if link.closed else None)
    loop.run()
    assert heard == ["x" * (4096 - empty)] * pages + [None]
    loop.close()


@pytest.mark.parametrize("size", [module.READ_SIZE, 3 * 4096 + 100, 4096])
def test_what_comes_in_pages_stays_in_order(size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """One read gives one page at most, full or not, whatever there is room for: so does a virtio port."""
    draw = random.Random(size)
    monkeypatch.setattr(module, "READ_SIZE", size)
    monkeypatch.setattr(module.os, "readv", pagewise(lambda: draw.choice((4096, 4096, 4096, 100, 1))))
    ours, theirs = socket.socketpair()
    loop = Loop()
    heard: list[object] = []

    def on_message(message: Message) -> None:
        heard.append(message.header["n"])

    link = Link(loop, ours.detach(), on_message, heard.append)
    sizes = [draw.choice((1, 100, 4000, 20_000)) for _ in range(300)]
    wire = b"".join(encode({"t": "event", "n": n, "x": "x" * sizes[n]})[0] for n in range(len(sizes)))
    theirs.setblocking(False)

    def push() -> None:
        nonlocal wire
        wire = wire[theirs.send(wire) :]
        if not wire:
            loop.forget(theirs.fileno())
            theirs.close()

    def look() -> None:
        if link.closed:
            loop.stop()

    loop.on_writable(theirs.fileno(), push)
    loop.after(look)
    loop.run()
    assert heard == [*range(len(sizes)), None]
    loop.close()
