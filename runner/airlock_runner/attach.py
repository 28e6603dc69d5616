"""`airlock exec`: another command in a sandbox that runs, through the session's socket."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import TYPE_CHECKING, Any

from airlock_runner.control import Control
from airlock_runner.defaults import working_directory
from airlock_runner.project import SOCKET, Project
from airlock_runner.server import UNAVAILABLE
from airlock_runner.sockets import connect_in
from airlock_runner.stdio import (
    RemoteCommand,
    Signals,
    Terminal,
    command_environment,
    complain,
    spawn_error_code,
)
from airlock_runner.text import one_line
from airlock_store.errors import AirlockError
from airlockd.protocol.loop import Loop

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from airlockd.protocol.frames import Header


class NotRunningError(AirlockError):
    """There is no running sandbox to run a command in."""


class UnavailableError(AirlockError):
    """There is a sandbox, and it takes no command now."""


class NotYetError(UnavailableError):
    """A start holds the project and nobody listens: not yet, or no more."""


def attach(
    project: Project | None,
    argv: Sequence[str],
    cwd: str | None,
    env: Mapping[str, str],
    *,
    login: bool = False,
) -> int:
    """Run `argv` in the running sandbox; gives its exit code (128+n for a signal).

    Without `cwd`, the command starts in our own directory where the sandbox shares it; `login`: by the user's login
    shell, which for an empty `argv` is all that runs. Raises NotRunningError and UnavailableError.
    """
    connection = connect(project)
    assert project is not None
    call = {
        "argv": list(argv),
        "cwd": working_directory(project.root, cwd),
        "root": str(project.root),
        "env": command_environment(env),
        "login": login,
    }
    return _Attached(connection, call, project.root).run()


def connect(project: Project | None) -> int:
    """A connection to the session of the project, as a descriptor. Raises NotRunningError and UnavailableError."""
    try:
        if project is None:
            raise FileNotFoundError
        with project.at() as directory:
            return connect_in(directory, SOCKET).detach()
    except OSError:
        pid = project.running_pid() if project is not None else None
        if pid is not None:
            raise NotYetError(
                f"the sandbox in {project and project.root} is just being started or stopped (pid {pid})",
                hint="try again in a moment",
            ) from None
        where = f"in {project.root}" if project is not None else f"for {Path.cwd()} or above it"
        raise NotRunningError(f"no running VM {where}", hint="start one with `airlock start`") from None


def unavailable(event: Header) -> UnavailableError | None:
    """The error that an event of the session is, if it is one."""
    if event.get("name") != UNAVAILABLE:
        return None
    return UnavailableError(one_line(str(event.get("message")), 200), hint="try again in a moment")


class _Attached:
    def __init__(self, fd: int, call: Mapping[str, Any], root: Path) -> None:
        self._root = root
        self._loop = Loop()
        self._argv: Sequence[str] = call["argv"]
        self._result: int | None = None
        self._unavailable: UnavailableError | None = None
        self._terminal = Terminal()
        # Before the terminal is raw: from then on no signal may end us without giving it back.
        self._signals = Signals(self._loop, self._on_signal)
        self._control = Control(self._loop, fd, self._on_event, lambda _reason: self._loop.stop())
        self._command = RemoteCommand(self._control, self._terminal, call, self._finished, self._refused)

    def run(self) -> int:
        try:
            self._loop.run()
        finally:
            self._command.close()
            self._signals.close()
            self._control.link.close()
            self._loop.close()
        if self._unavailable is not None:
            raise self._unavailable
        if self._result is None:
            raise NotRunningError("the sandbox stopped while the command ran")
        return self._result

    def _on_signal(self, number: int) -> None:
        if number == signal.SIGHUP and self._terminal.gone():
            # The sandbox sends the command a SIGHUP when we are gone; it may live on.
            self._finished(128 + number)
            return
        self._command.signal(number)

    def _on_event(self, header: Header) -> None:
        if header.get("name") == "exit" and header.get("process") == self._command.process:
            self._command.exited(header)
        self._unavailable = unavailable(header)
        if self._unavailable is not None:
            self._loop.stop()

    def _finished(self, code: int) -> None:
        self._result = code
        self._loop.stop()

    def _refused(self, header: Header) -> None:
        complain(self._argv, header, self._root)
        self._finished(spawn_error_code(header))
