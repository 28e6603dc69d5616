"""Calls and what comes back on them: the other end is a guest that may send what it likes."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING, Any

import pytest

from airlock_runner.control import Control, integer, outcome
from airlock_runner.stdio import spawn_error_code
from airlockd.protocol.frames import ProtocolError, encode
from airlockd.protocol.loop import Loop

if TYPE_CHECKING:
    from collections.abc import Iterator


class Wire:
    """A control, and the socket that it takes for its guest."""

    def __init__(self) -> None:
        self.loop = Loop()
        ours, self.guest = socket.socketpair()
        self.heard: list[Any] = []
        self.control = Control(self.loop, ours.detach(), self.heard.append, self._ended)

    def say(self, *headers: dict[str, Any]) -> None:
        """The guest says this and goes; all of it is heard."""
        self.guest.sendall(b"".join(b"".join(map(bytes, encode(header))) for header in headers))
        self.guest.close()
        self.loop.run()

    def _ended(self, reason: str | None) -> None:
        self.heard.append(reason)
        self.loop.stop()


@pytest.fixture
def wire() -> Iterator[Wire]:
    wire = Wire()
    yield wire
    wire.guest.close()
    wire.control.link.close()
    wire.loop.close()


def test_each_answer_goes_to_its_call_and_once(wire: Wire) -> None:
    answers: list[object] = []
    for number in (1, 2):
        wire.control.call("op", {}, lambda _header, n=number: answers.append(n), lambda _header: None)  # type: ignore[misc]
    wire.say({"t": "reply", "id": 2}, {"t": "reply", "id": 1}, {"t": "reply", "id": 1})
    assert answers == [2, 1]
    assert wire.heard == ["protocol error: unexpected reply"]


@pytest.mark.parametrize("header", [{"t": "call", "id": 1}, {"t": "reply", "id": [1]}, {"t": "error"}])
def test_what_answers_no_call_ends_the_link(wire: Wire, header: dict[str, Any]) -> None:
    answers: list[object] = []
    wire.control.call("op", {}, answers.append, answers.append)
    wire.say(header)
    assert answers == []
    assert wire.heard == [f"protocol error: unexpected {header['t']}"]


@pytest.mark.parametrize("value", [-1, 256, True, "1", 1.0, None])
def test_a_number_is_one_in_its_range(value: object) -> None:
    with pytest.raises(ProtocolError, match="bad code"):
        integer({"code": value}, "code", 0, 255)


def test_how_a_process_ended() -> None:
    assert outcome({"code": 255}) == {"code": 255}
    assert outcome({"code": None, "signal": 9}) == {"signal": 9}
    for header in ({"code": 256}, {"signal": 0}, {"signal": 128}, {}):
        with pytest.raises(ProtocolError):
            outcome(header)


def test_only_a_program_that_is_not_there_is_not_found() -> None:
    assert spawn_error_code({"errno": 2, "stage": "exec"}) == 127
    assert spawn_error_code({"errno": 2, "stage": "chdir"}) == 126
    assert spawn_error_code({"errno": 13, "stage": "exec"}) == 126
