"""What an image can bring and a project can add to: daemons, and directories of the disk. Part of both schemas.

A recipe has these tables, the image's manifest carries them as they were written, and the runner lays the project's
own config over them.
"""

from __future__ import annotations

from dataclasses import MISSING, dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any, Literal

from airlock_store.document import merge
from airlock_store.settings import (
    ARGV_SCHEMA,
    ENV_SCHEMA,
    GUEST_PATH_SCHEMA,
    MAX_COUNT,
    SECONDS_SCHEMA,
    SIGNAL_SCHEMA,
    TARGET_SCHEMA,
    TEXT_SCHEMA,
    USER_SCHEMA,
    check_env,
    enabled,
    parse_argv,
    parse_count,
    parse_guest_path,
    parse_port,
    parse_seconds,
    parse_signal,
    parse_target,
    parse_text,
    parse_user,
    setting,
)  # fmt: skip

if TYPE_CHECKING:
    from collections.abc import Mapping

    from airlock_store.document import Document

BRINGS: tuple[tuple[str, ...], ...] = (("daemons",), ("disk", "bind"))
"""The tables of this kind, as keys from the top of a recipe or a config."""


@dataclass(frozen=True, slots=True)
class Ready:
    """How to tell that a daemon is ready: exactly one of these."""

    command: tuple[str, ...] | None = setting(
        "a command that exits with 0", unset="", parse=parse_argv, schema=ARGV_SCHEMA
    )
    socket: str | None = setting(
        "a Unix socket that takes a connection", unset="", parse=parse_guest_path, schema=GUEST_PATH_SCHEMA
    )
    tcp: int | None = setting(
        "a port of 127.0.0.1 that takes a connection",
        unset="", parse=parse_port, schema={"type": "integer", "minimum": 1, "maximum": 65535},
    )  # fmt: skip
    log: str | None = setting(
        "a text in what the daemon writes", unset="", parse=parse_text, schema=TEXT_SCHEMA
    )

    def __post_init__(self) -> None:
        if len([each for each in (self.command, self.socket, self.tcp, self.log) if each is not None]) != 1:
            raise ValueError("ready needs exactly one of command, socket, tcp and log")


_ONE_OF = [
    {"required": [each.name], "properties": {each.name: {"not": {"type": "null"}}}} for each in fields(Ready)
]
"""Exactly one of them, as JSON Schema; a null is as good as nothing."""


@dataclass(frozen=True, slots=True)
class Daemon:
    """A program that runs in the background, from before the command until after it."""

    command: tuple[str, ...] = setting(
        "program and arguments", unset="required", default=MISSING, parse=parse_argv, schema=ARGV_SCHEMA
    )
    cwd: str = setting(
        "its directory", default="/", unset="/", parse=parse_guest_path, schema=GUEST_PATH_SCHEMA
    )
    user: str = setting(
        "the user that it runs as: a name that the image has, or a number",
        default="root", unset="root", parse=parse_user, schema=USER_SCHEMA,
    )  # fmt: skip
    env: Mapping[str, str] = field(default_factory=dict, metadata={"each": check_env, "schema": ENV_SCHEMA})
    signal: str = setting(
        "what it is told to end by",
        default="SIGTERM",
        unset="SIGTERM",
        parse=parse_signal,
        schema=SIGNAL_SCHEMA,
    )
    timeout: float = setting(
        "seconds that it then has; 0: for ever",
        default=10.0,
        unset="10",
        parse=parse_seconds,
        schema=SECONDS_SCHEMA,
    )
    restart: Literal["always", "on-failure"] = setting(
        "after which end it is started again", default="always", unset="always"
    )
    max_restarts: int = setting(
        "how many times; 0: without end",
        default=10, unset="10", parse=parse_count, schema={"type": "integer", "minimum": 0, "maximum": MAX_COUNT},
    )  # fmt: skip
    harden: bool = setting("run it without privileges over the machine itself", default=True, unset="true")
    after: tuple[str, ...] = setting(
        "daemons that must be ready before it is started", default=(), unset="none"
    )
    ready: Ready | None = field(default=None, metadata={"whole": True, "also": {"oneOf": _ONE_OF}})
    ready_timeout: float = setting(
        "seconds in which it has to be ready",
        default=30.0,
        unset="30",
        parse=parse_seconds,
        schema=SECONDS_SCHEMA,
    )
    enabled: bool = enabled()


@dataclass(frozen=True, slots=True)
class Bind:
    """A directory of the disk, `/airlock/disk/NAME`, that is also somewhere else in the sandbox."""

    path: str = setting(
        "where: absolute, or below `~`, the home of `[vm] user`",
        unset="required", default=MISSING, parse=parse_target, schema=TARGET_SCHEMA,
    )  # fmt: skip
    enabled: bool = enabled()


def lay(base: Document, over: Document) -> Document:
    """`over` on `base`, merged; a daemon's `command` and `ready` are one value each, and replace a weaker one."""
    daemons, over_daemons = base.data.get("daemons"), over.data.get("daemons")
    if isinstance(daemons, dict) and isinstance(over_daemons, dict):
        kept = {
            name: _without_replaced(each, over_daemons.get(name)) if isinstance(each, dict) else each
            for name, each in daemons.items()
        }
        base = replace(base, data={**base.data, "daemons": kept})
    return merge(base, over)


def brought(document: Document) -> dict[str, Any]:
    """The tables of a recipe that its images carry, as they are written; none that is empty."""
    found: dict[str, Any] = {}
    for *outer, name in BRINGS:
        table, target = document.data, found
        for key in outer:
            table = table.get(key) or {}
        if table.get(name):
            for key in outer:
                target = target.setdefault(key, {})
            target[name] = table[name]
    return found


def _without_replaced(daemon: dict[str, Any], over: Any) -> dict[str, Any]:
    if not isinstance(over, dict):
        return daemon
    return {
        key: value
        for key, value in daemon.items()
        if key not in ("command", "ready") or over.get(key) is None
    }
