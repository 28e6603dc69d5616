"""What is asked of a running session besides commands. `airlock ps`, `logs`, `net`, `stop` call it."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from airlock_runner.attach import NotRunningError, NotYetError, UnavailableError, connect, unavailable
from airlock_runner.control import Control
from airlock_runner.server import WAITING
from airlock_runner.text import one_line
from airlock_store.errors import UsageError
from airlockd.protocol.loop import Loop

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from airlock_runner.project import Project
    from airlockd.protocol.frames import Header
    from airlockd.protocol.loop import Timer


POLL_SECONDS = 0.1
QUIET_SECONDS = 2.0
"""Until what a stop waits for is told."""


def running(project: Project | None) -> dict[str, list[dict[str, Any]]]:
    """The `daemons` and the attached `commands` of the running sandbox. Raises NotRunningError and
    UnavailableError.

    All values in them are the guest's word.
    """
    reply = _ask(project, "list")
    if reply is None:
        raise NotRunningError("the sandbox stopped before it answered")
    return {key: _tables(reply.get(key)) for key in ("daemons", "commands")}


def _tables(said: object) -> list[dict[str, Any]]:
    return [each for each in said if isinstance(each, dict)] if isinstance(said, list) else []


def stop(project: Project | None, note: Callable[[str], None]) -> None:
    """Stop the sandbox, also one that is still starting, and wait until nothing of it is left.

    `note` gets word of what it waits for, where that takes longer. Raises NotRunningError, and UnavailableError where
    its session takes no more clients.
    """
    busy = False
    while True:
        try:
            _ask(project, "stop", note=note)
            break
        except NotRunningError:
            if busy:
                # It went by itself.
                return
            raise
        except NotYetError:
            # A start that does not listen yet, or an end: one more moment.
            busy = True
            time.sleep(POLL_SECONDS)
    assert project is not None
    project.wait_until_free()


def change_network(project: Project | None, what: Mapping[str, str]) -> Header:
    """Change what the running sandbox may reach, see `Network.command`; gives what holds then.

    Raises NotRunningError, UnavailableError, and UsageError for a policy or a pattern that is none.
    """
    reply = _ask(project, "net", what)
    if reply is None:
        raise NotRunningError("the sandbox stopped before it answered")
    if reply["t"] == "error":
        raise UsageError(str(reply.get("message")))
    return reply


def _ask(
    project: Project | None,
    op: str,
    arguments: Mapping[str, str] | None = None,
    note: Callable[[str], None] | None = None,
) -> Header | None:
    """The reply, or None where the session ended the connection instead."""
    loop = Loop()
    answers: list[Header] = []

    def answered(header: Header) -> None:
        answers.append(header)
        loop.stop()

    away: list[UnavailableError] = []
    waiting: Timer | None = None

    def heard(event: Header) -> None:
        nonlocal waiting
        if event.get("name") == WAITING and note is not None:
            if waiting is not None:
                waiting.cancel()
            text = one_line(str(event.get("message")), 200)
            waiting = loop.call_later(QUIET_SECONDS, lambda: note(text))
        error = unavailable(event)
        if error is not None:
            away.append(error)
            loop.stop()

    control = Control(loop, connect(project), heard, lambda _reason: loop.stop())
    try:
        control.call(op, arguments or {}, answered, answered)
        loop.run()
    finally:
        control.link.close()
        loop.close()
    if away:
        raise away[0]
    return answers[0] if answers else None
