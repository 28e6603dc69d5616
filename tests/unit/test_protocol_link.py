"""A link whose other end goes away: what it said first counts, however the link hears of its end."""

from __future__ import annotations

import socket

from airlockd.protocol.frames import encode
from airlockd.protocol.link import Link
from airlockd.protocol.loop import Loop
from airlockd.protocol.mux import Message


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
