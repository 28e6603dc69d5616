"""The guest's memory: word to the host when the kernel had to kill for lack of it."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from airlockd.protocol.loop import Loop

_MARK = "Out of memory: Killed process "


def watch(loop: Loop, report: Callable[[str], None]) -> None:
    """Call `report` with the kernel's words, such as `1234 (python3)`, for each process it kills from now on."""
    log = os.open("/dev/kmsg", os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    os.lseek(log, 0, os.SEEK_END)

    def read() -> None:
        while True:
            try:
                record = os.read(log, 8192).decode("utf-8", "replace")
            except BlockingIOError:
                return
            except BrokenPipeError:
                # Records were overwritten before they were read; the next read goes on behind them.
                continue
            text = record.partition(";")[2]
            if text.startswith(_MARK):
                report(text[len(_MARK) :].split(", ")[0].split(" total-vm")[0])

    loop.on_readable(log, read)
