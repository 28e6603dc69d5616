"""`airlock start --detach`: the session goes on in a process of its own, once its sandbox is up."""

from __future__ import annotations

import os
import signal
import sys
from dataclasses import replace
from typing import TYPE_CHECKING

from airlock_runner.start import start

if TYPE_CHECKING:
    from collections.abc import Callable

    from airlock_runner.start import StartRequest

LOG = "session.log"


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


def _background(request: StartRequest, up: int, explain: Callable[[BaseException], int]) -> int:
    os.setsid()
    null = os.open(os.devnull, os.O_RDWR)
    for fd in (0, 1):
        os.dup2(null, fd)

    def on_up() -> None:
        log = request.project.open_log(LOG)
        os.dup2(log, 2)
        os.close(log)
        os.write(up, b"y")
        os.close(up)

    try:
        code = start(replace(request, on_up=on_up))
    except BaseException as error:
        code = explain(error)
    sys.stderr.flush()
    return code
