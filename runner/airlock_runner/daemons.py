"""Daemons as airlockd takes them, in an order in which they can start; and what the user is told of them.

The session sends what `asked` gives, and prints what `line` makes of airlockd's events.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from airlock_runner.text import one_line

if TYPE_CHECKING:
    from collections.abc import Mapping

    from airlock_runner.config.model import DaemonConfig
    from airlock_store.services import Ready


def asked(daemons: Mapping[str, DaemonConfig]) -> list[dict[str, Any]]:
    """These daemons, each after those that it names. `load_config` has seen to it that there is such an order."""
    if not daemons:
        return []
    from graphlib import TopologicalSorter

    order = TopologicalSorter({name: each.after for name, each in daemons.items()}).static_order()
    return [_asked(name, daemons[name]) for name in order]


def patience(daemons: Mapping[str, DaemonConfig]) -> float | None:
    """Seconds that all of them have to end in, one after another; None for one that has for ever."""
    if any(not each.timeout for each in daemons.values()):
        return None
    return sum(each.timeout for each in daemons.values())


def line(event: Mapping[str, Any]) -> str | None:
    """An event of airlockd for the user, or None for one of no interest. What the guest says is made safe."""
    name, how = one_line(str(event.get("daemon")), 64), one_line(str(event.get("how")), 200)
    restarts = one_line(str(event.get("restarts")), 10)
    text: str | None = None
    match event.get("state"):
        case "up":
            text = "is up again" if event.get("restarts") else "is up"
        case "ended":
            text = f"ended ({how})"
        case "backoff":
            text = f"ended ({how}); restart {restarts} in {one_line(str(event.get('delay')), 10)} s"
        case "failed":
            text = f"ended ({how}) and is given up{_said(event)}"
        case "late":
            text = f"is not ready{_said(event)}"
        case "killed":
            text = f"did not end in {one_line(str(event.get('timeout')), 10)} s and is killed"
        case "stopped":
            text = "has stopped"
    return f"daemon {name} {text}" if text else None


def advice(event: Mapping[str, Any], daemons: Mapping[str, DaemonConfig]) -> str | None:
    """What may help a daemon of which `event` tells bad news, or None."""
    name = event.get("daemon")
    daemon = daemons.get(name) if isinstance(name, str) else None
    if daemon is None or event.get("state") not in ("backoff", "failed", "late"):
        return None
    match blamed(event):
        case [*_, "command"]:
            return f"{daemon.command[0]} has to be a program of the sandbox: a path, or a name in its PATH"
        case [*_, "cwd"]:
            return f"{daemon.cwd} has to be a directory that is there in the sandbox when the daemon starts"
        case [*_, "user"]:
            return f"{daemon.user} has to be a user of the sandbox, or a number"
    if not daemon.harden:
        return None
    return (
        f"daemon {name} runs without privileges over the machine itself; "
        f"if it needs them (containers do), say [daemons.{name}] harden = false"
    )


def blamed(event: Mapping[str, Any]) -> tuple[str, ...]:
    """The keys in the config of what kept a daemon from being executed, if this event tells of that."""
    name, how = event.get("daemon"), event.get("how")
    if event.get("state") != "failed" or not isinstance(name, str) or not isinstance(how, str):
        return ()
    # In airlockd's words.
    key = next((key for start, key in _BLAMED.items() if how.startswith(start)), None)
    if key is None and ": chdir: " in how:
        key = "cwd"
    return ("daemons", name, key) if key else ()


_BLAMED = {"exec: ": "command", "the sandbox has no user ": "user"}


def _said(event: Mapping[str, Any]) -> str:
    said = one_line(str(event.get("said") or ""), 400)
    return f"; it said: {said}" if said else ""


def _asked(name: str, daemon: DaemonConfig) -> dict[str, Any]:
    return {
        "name": name,
        "command": daemon.command,
        "cwd": daemon.cwd,
        "user": daemon.user,
        "env": daemon.env,
        "harden": daemon.harden,
        "signal": _NUMBERS[daemon.signal],
        "timeout": daemon.timeout,
        "always": daemon.restart == "always",
        "max_restarts": daemon.max_restarts,
        "ready": _ready(daemon.ready) if daemon.ready is not None else None,
        "ready_timeout": daemon.ready_timeout,
        "after": daemon.after,
    }


def _ready(ready: Ready) -> tuple[str, Any]:
    values = {"command": ready.command, "socket": ready.socket, "tcp": ready.tcp, "log": ready.log}
    return next((kind, value) for kind, value in values.items() if value is not None)


# Those of Linux, which the guest is, whatever the host is.
_NUMBERS = {
    "SIGHUP": 1, "SIGINT": 2, "SIGQUIT": 3, "SIGKILL": 9, "SIGUSR1": 10, "SIGUSR2": 12, "SIGTERM": 15,
}  # fmt: skip
