"""A link whose other end goes away: what it said first counts, however the link hears of its end."""

from __future__ import annotations

import errno
import os
import socket

import pytest

from airlockd.protocol.frames import encode
from airlockd.protocol.link import Link
from airlockd.protocol.loop import Loop
from airlockd.protocol.mux import Message
from airlockd.protocol.pumps import Sink, Source


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
