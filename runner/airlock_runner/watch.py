"""Watches over a sandbox that runs: does it live, is its clock right, can QEMU read and write its disks.

The session makes one of each, and closes them at the end. What the guest answers is not believed, only measured.
"""

from __future__ import annotations

import errno
import json
import os
import time
from typing import TYPE_CHECKING, Any

from airlock_runner.machine.qmp import command_line
from airlock_runner.text import one_line

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable

    from airlock_runner.control import Control
    from airlockd.protocol.frames import Header
    from airlockd.protocol.loop import Loop, Timer

PING_SECONDS = 5.0
CLOCK_TOLERANCE = 500_000_000
"""Nanoseconds that the guest's clock may be off before it is set right."""
_LIMIT = 64 * 1024


def correction(sent: int, guest: object, received: int) -> int | None:
    """Nanoseconds to add to a clock that said `guest` at some moment between `sent` and `received` of ours.

    None where it is right, as far as that shows, or where it is no time. A slow answer shows little: on a host that
    slept meanwhile, or is busy, the next one has to.
    """
    if not isinstance(guest, int) or isinstance(guest, bool) or not 0 <= guest < 2**63:
        return None
    off = (sent + received) // 2 - guest
    uncertain = abs(received - sent) // 2
    return off if abs(off) > CLOCK_TOLERANCE + uncertain else None


class Pulse:
    """Asks airlockd for a sign of life every few seconds, and sets the guest's clock by its answer.

    After the host slept, timers of ours that are due fire at once, so the clock is soon right again. Silence is counted
    in pings and not in seconds: a sleep of our own is nobody's silence.
    """

    def __init__(
        self, loop: Loop, control: Control, patience: float, on_silence: Callable[[], None],
        note: Callable[[int, str], None],
    ) -> None:  # fmt: skip
        """`on_silence` is called once when airlockd has sent nothing for `patience` seconds."""
        self._loop, self._control = loop, control
        self._on_silence, self._note = on_silence, note
        self._interval = min(PING_SECONDS, patience / 4)
        self._limit = max(1, round(patience / self._interval))
        self._heard, self._silent = -1, 0
        self._timer: Timer | None = None

    def start(self) -> None:
        """From now on, until `close`."""
        self._beat()

    def close(self) -> None:
        """Ask no more."""
        if self._timer is not None:
            self._timer.cancel()

    def _beat(self) -> None:
        if self._control.link.closed:
            return
        # Anything that it sends is a sign of life.
        self._silent = self._silent + 1 if self._control.heard == self._heard else 0
        self._heard = self._control.heard
        if self._silent >= self._limit:
            self._on_silence()
            return
        sent = time.time_ns()
        self._control.call("ping", {}, lambda reply: self._answered(sent, reply), _ignore)
        self._timer = self._loop.call_later(self._interval, self._beat)

    def _answered(self, sent: int, reply: Header) -> None:
        step = correction(sent, reply.get("time"), time.time_ns())
        if step is None:
            return
        self._note(1, f"the sandbox's clock was off by {-step / 1e9:+.1f} s and is set right")
        # By a difference: however long this takes to arrive, it is still true.
        self._control.call("clock", {"step": step}, _ignore, _ignore)


class DiskTrouble:
    """Listens on QEMU's monitor for reads and writes that the host could not do, and tells of the first."""

    def __init__(self, loop: Loop, monitor: socket.socket, tell: Callable[[str, str, bool], None]) -> None:
        """`tell(node, reason, full)`: which disk, why in the host's words, and whether for lack of room."""
        self._loop, self._monitor, self._tell = loop, monitor, tell
        self._buffer = b""
        self._told = False
        monitor.setblocking(False)
        loop.on_readable(monitor.fileno(), self._read)
        # QEMU says nothing before this; that a restored machine has heard it before does no harm.
        monitor.send(command_line("qmp_capabilities"))

    def close(self) -> None:
        """Listen no more; the socket is its machine's to close."""
        if self._monitor.fileno() >= 0:
            self._loop.forget(self._monitor.fileno())

    def _read(self) -> None:
        try:
            data = self._monitor.recv(_LIMIT)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self.close()
            return
        *lines, self._buffer = (self._buffer + data).split(b"\n")
        self._buffer = self._buffer[-_LIMIT:]
        for line in lines:
            if not self._told and b'"BLOCK_IO_ERROR"' in line:
                self._heard(line)

    def _heard(self, line: bytes) -> None:
        """Source: QEMU qapi/block-core.json, BLOCK_IO_ERROR."""
        try:
            message: dict[str, Any] = json.loads(line)
        except (ValueError, RecursionError):
            return
        if message.get("event") == "BLOCK_IO_ERROR":
            about = message["data"]
            self._told = True
            reason = str(about.get("reason"))
            # `nospace` is true only where the machine was paused for it.
            full = reason in (os.strerror(errno.ENOSPC), os.strerror(errno.EDQUOT))
            self._tell(str(about.get("node-name")), one_line(reason, 200), full)


def _ignore(_header: Header) -> None:
    pass
