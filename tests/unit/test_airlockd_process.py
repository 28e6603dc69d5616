"""Processes that cannot be had: whoever asked is told, and nothing is left open."""

from __future__ import annotations

import errno
import os
import signal
import socket
from typing import TYPE_CHECKING, Any, NoReturn

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
        Process(link, command(size), Inside(-1, -1, b"", ignore), on_started=ignore, on_exit=ignore)
    # What the supervisor answers to the call.
    link.refuse([1, 2, 3])
    assert open_files() == before
    assert not link._handlers


@pytest.mark.parametrize(("module", "call"), [("signal", "signal"), ("os", "setsid")])
def test_a_signal_to_a_command_that_has_just_been_forked_ends_it(
    link: Link, monkeypatch: pytest.MonkeyPatch, module: str, call: str
) -> None:
    """Before it has forgotten airlockd's handlers, and before it leads the group that is signalled."""
    held, go = os.pipe()
    real = getattr(getattr(process, module), call)

    def wait(*arguments: Any) -> Any:
        os.read(held, 1)
        return real(*arguments)

    with monkeypatch.context() as patched:
        patched.setattr(getattr(process, module), call, wait)
        started = Process(link, command(None), Inside(-1, -1, b"", ignore), on_started=ignore, on_exit=ignore)
    started.signal(signal.SIGINT)
    # It goes on only now, through as many calls as there are.
    os.write(go, bytes(1000))
    _, status = os.waitpid(started.pid, 0)
    os.close(held)
    os.close(go)
    assert os.waitstatus_to_exitcode(status) == -signal.SIGINT
    assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == set()


def test_a_daemon_without_a_process_leaves_nothing(link: Link, monkeypatch: pytest.MonkeyPatch) -> None:
    def never(_error: SpawnError | None) -> None:
        raise AssertionError("nothing was started")

    before = open_files()
    monkeypatch.setattr(child.os, "fork", refuse)
    with pytest.raises(BlockingIOError):
        child.start(link.loop, command(None), (1, 2), Inside(-1, -1, b"", ignore), on_started=never)
    assert open_files() == before
