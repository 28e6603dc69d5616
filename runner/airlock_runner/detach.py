"""`airlock start --detach`: the session goes on in a process of its own, once its sandbox is up."""

from __future__ import annotations

import os
import signal
import sys
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING

from airlock_runner.project import ProjectError
from airlock_runner.start import start

if TYPE_CHECKING:
    from collections.abc import Callable

    from airlock_runner.project import Project
    from airlock_runner.start import StartRequest

LOG, OLDER = "session.log", "session.log.1"
LIMIT = 1024 * 1024
"""Bytes of one of them: a guest can have a session say things without end."""


def start_detached(request: StartRequest, explain: Callable[[BaseException], int]) -> int:
    """Start the sandbox in the background; gives 0 once commands can be attached, or what `explain` makes of the error.

    Until then the session says on our stderr what it has to say, from then on in the log beside the disk.
    """
    read, write = os.pipe()
    sys.stdout.flush()
    sys.stderr.flush()
    child = os.fork()
    if not child:
        os.close(read)
        os._exit(_background(request, write, explain))
    os.close(write)
    try:
        with open(read, "rb") as up:
            if up.read(1):
                return 0
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    except KeyboardInterrupt:
        # It has left the terminal, whose Ctrl-C does not reach it.
        os.kill(child, signal.SIGTERM)
        os.waitpid(child, 0)
        raise


class _Background:
    """Turns stderr into a log beside the disk once the sandbox is up, and begins another when that is long."""

    def __init__(self, project: Project, up: int) -> None:
        """`up` is a pipe to whoever waits for that."""
        self._project, self._up = project, up

    def up(self) -> None:
        self._begin()
        # Who waited may have been killed, or its terminal closed: the sandbox is up all the same.
        with suppress(BrokenPipeError):
            os.write(self._up, b"y")
        os.close(self._up)
        self._up = -1

    def told(self) -> None:
        if self._up < 0 and os.fstat(2).st_size > LIMIT:
            # Where that cannot be done the log stays as it is: no reason to end the sandbox.
            with suppress(OSError, ProjectError):
                self._project.rotate(LOG, OLDER)
                self._begin()

    def _begin(self) -> None:
        log = self._project.open_log(LOG)
        os.dup2(log, 2)
        os.close(log)


def _background(request: StartRequest, up: int, explain: Callable[[BaseException], int]) -> int:
    os.setsid()
    null = os.open(os.devnull, os.O_RDWR)
    for fd in (0, 1):
        os.dup2(null, fd)
    try:
        code = start(replace(request, background=_Background(request.project, up)))
    except BaseException as error:
        code = explain(error)
    sys.stderr.flush()
    return code
