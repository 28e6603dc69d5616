"""net.log beside the sandbox's disk: a line of JSON for each connection that is decided, and one for its end.

The service writes it, `airlock_runner.net.reading` reads it. It is bounded: old lines go with the oldest of its files.
"""

from __future__ import annotations

import json
import os
import time
from typing import TYPE_CHECKING, Any

from airlock_runner.project import ProjectError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from airlock_runner.project import Project

NAME = "net.log"
OLDER = (f"{NAME}.1", f"{NAME}.2", f"{NAME}.3")
"""What was net.log before, the youngest first."""
LIMIT = 4 * 1024 * 1024
"""Bytes of one file."""

_encode = json.JSONEncoder(separators=(",", ":")).encode


class Journal:
    """Appends. Where the file cannot be written, that is said once, and connections go on."""

    def __init__(self, project: Project, warn: Callable[[str], None]) -> None:
        self._project, self._warn = project, warn
        self._fd = -1
        self._size = 0
        self._complained = False

    def write(self, record: Mapping[str, Any]) -> None:
        """One line, with the time in front."""
        line = _encode({"time": _now(), **record}).encode("utf-8", "backslashreplace") + b"\n"
        try:
            if self._fd < 0:
                self._open()
            if self._size + len(line) > LIMIT:
                self.close()
                self._project.rotate(NAME, *OLDER)
                self._open()
            os.write(self._fd, line)
            self._size += len(line)
        except (OSError, ProjectError) as error:
            self.close()
            if not self._complained:
                self._complained = True
                self._warn(f"{NAME} cannot be written, connections are not logged: {error}")

    def close(self) -> None:
        """Close the file; the next line opens it again."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _open(self) -> None:
        self._fd = self._project.open_journal(NAME)
        self._size = os.fstat(self._fd).st_size


def _now() -> str:
    """The time as ISO 8601 in UTC, to the millisecond."""
    now = time.time()
    return f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(now))}.{int(now * 1000) % 1000:03}Z"
