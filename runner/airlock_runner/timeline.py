"""When a start reached which point, for whoever asks with AIRLOCK_TIMELINE=FILE; bench/bench_timeline.py draws it."""

from __future__ import annotations

import json
import os
import time

from airlock_runner.stdio import tell

_marks: list[tuple[str, float]] = []
_wanted = os.environ.get("AIRLOCK_TIMELINE")


def mark(name: str) -> None:
    """The start has reached this point now."""
    if _wanted:
        _marks.append((name, time.clock_gettime(time.CLOCK_BOOTTIME)))


def write() -> None:
    """Write all marks, in seconds since the process began, to the file that was asked for."""
    if not _wanted:
        return
    begin = _process_start()
    try:
        with open(_wanted, "w", encoding="utf-8") as file:
            json.dump([[name, round(at - begin, 4)] for name, at in _marks], file)
    except OSError as error:
        # How the command ended is worth more.
        tell(f"AIRLOCK_TIMELINE={_wanted} cannot be written: {error.strerror}")


def _process_start() -> float:
    """Seconds since boot, from /proc/self/stat (field 22, in clock ticks; proc(5))."""
    with open("/proc/self/stat", encoding="utf-8", errors="replace") as file:
        ticks = file.read().rpartition(")")[2].split()[19]
    return int(ticks) / os.sysconf("SC_CLK_TCK")
