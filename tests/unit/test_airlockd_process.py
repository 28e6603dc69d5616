"""Processes that cannot be had: whoever asked is told, and nothing is left open."""

from __future__ import annotations

import errno
import os
import socket
from typing import TYPE_CHECKING, NoReturn

import pytest

from airlockd import child, process
from airlockd.process import Command, Inside, Process
from airlockd.protocol.link import Link
from airlockd.protocol.loop import Loop

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from airlockd.process import SpawnError


def ignore(_value: object) -> None:
    pass


def open_files() -> int:
    return len(os.listdir("/proc/self/fd"))


def command(size: tuple[int, int] | None) -> Command:
    return Command(["x"], "/", {}, size, False, "root", False, (1, 2, 3))


@pytest.fixture
def link() -> Iterator[Link]:
    ours, theirs = socket.socketpair()
    loop = Loop()
    link = Link(loop, ours.detach(), ignore, ignore)
    yield link
    link.close()
    theirs.close()
    loop.close()


def refuse(*_arguments: object) -> NoReturn:
    raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))


def fail_at(number: int, real: Callable[..., object]) -> Callable[..., object]:
    """`real`, but for the call of this number, counted from 1."""
    calls = iter(range(1, 1000))
    return lambda *arguments: refuse() if next(calls) == number else real(*arguments)


@pytest.mark.parametrize("size", [None, (24, 80)], ids=["pipes", "terminal"])
@pytest.mark.parametrize(("call", "number"), [("fork", 1), ("pipe", 1), ("pipe", 2), ("pipe", 4)])
def test_a_command_without_a_process_leaves_nothing(
    link: Link, monkeypatch: pytest.MonkeyPatch, size: tuple[int, int] | None, call: str, number: int
) -> None:
    before = open_files()
    monkeypatch.setattr(process.os, call, fail_at(number, getattr(os, call)))
    if size is not None and (call, number) != ("fork", 1):
        monkeypatch.setattr(process.os, "dup", refuse)
    with pytest.raises(BlockingIOError):
        Process(link, command(size), Inside(-1, b""), on_started=ignore, on_exit=ignore)
    # What the supervisor answers to the call.
    link.refuse([1, 2, 3])
    assert open_files() == before
    assert not link._handlers


def test_a_daemon_without_a_process_leaves_nothing(link: Link, monkeypatch: pytest.MonkeyPatch) -> None:
    def never(_error: SpawnError | None) -> None:
        raise AssertionError("nothing was started")

    before = open_files()
    monkeypatch.setattr(child.os, "fork", refuse)
    with pytest.raises(BlockingIOError):
        child.start(link.loop, command(None), (1, 2), Inside(-1, b""), on_started=never)
    assert open_files() == before
