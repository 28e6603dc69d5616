"""What is known of a project's sandbox: what its last start wrote down, and what `airlock show` tells of it."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path


@dataclass(frozen=True, slots=True)
class State:
    """What the last start was: image, shape (memory and disk size in bytes) and when, as ISO 8601 in UTC.

    `sockets`: forwarded ones that amount to the host itself, in words.
    """

    image_name: str = ""
    image_path: str = ""
    cpus: int = 0
    memory: int = 0
    disk_size: int = 0
    last_run: str = ""
    sockets: str = ""


@dataclass(frozen=True, slots=True)
class SandboxStatus:
    """What `airlock show` tells. Sizes in bytes; `disk_used` is what the disk's file takes on the host.

    `running_pid` is that of the session, `up` says that it takes commands: until then it is starting. `trouble`: why
    the rest may not be known.
    """

    path: Path
    running_pid: int | None
    up: bool
    image_name: str
    image_path: str
    cpus: int
    memory: int
    disk_used: int
    disk_size: int
    last_run: str
    sockets: str
    trouble: str = ""

    @property
    def state(self) -> str:
        """In a word."""
        if self.running_pid is None:
            return "broken" if self.trouble else "stopped"
        return "running" if self.up else "starting"


def state_of(values: object) -> State | None:
    """The state in decoded JSON, as far as it is one: what has another type is as if it was not there."""
    if not isinstance(values, dict):
        return None
    defaults = asdict(State())
    kept = {
        name: values[name] if type(values.get(name)) is type(default) else default
        for name, default in defaults.items()
    }
    return State(**kept)


def now() -> str:
    """The time as ISO 8601 in UTC, to the second."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
