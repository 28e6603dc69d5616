"""From a machine's start to READY: the watchdog of dead early boots, the proof of an accelerator, the retries.

The session boots through it, and so does `airlock doctor`.
"""

from __future__ import annotations

import os
from dataclasses import replace
from typing import TYPE_CHECKING, Protocol

from airlock_runner.control import Control
from airlock_runner.machine import accel
from airlock_runner.machine.process import Machine
from airlock_runner.patience import life_seconds
from airlock_runner.text import kernel_fault, last_lines, one_line, panic_reason
from airlock_store.errors import MachineError

if TYPE_CHECKING:
    from airlock_runner.machine.argv import MachineSpec
    from airlockd.protocol.frames import Header
    from airlockd.protocol.loop import Loop, Timer

PROTOCOL_VERSION = 11
ATTEMPTS = 3
READY_SECONDS = 180.0
"""From the start of QEMU to READY, on a machine under the heaviest load."""


class Owner(Protocol):
    """Who uses a machine. Everything is called from the loop."""

    def on_ready(self, header: Header) -> None:
        """airlockd serves; `header` is its READY."""

    def on_event(self, header: Header) -> None:
        """airlockd reports something, after READY."""

    def on_close(self, reason: str | None) -> None:
        """The control port was closed after READY: by the machine's end, or for `reason`."""

    def on_failure(self, error: MachineError) -> None:
        """There will be no READY."""

    def note(self, verbosity: int, text: str) -> None:
        """A line for a user who wants to know that much."""


class Booter:
    """Boots a machine on the first accelerator of a plan that works, and keeps it for its life."""

    def __init__(
        self, loop: Loop, spec: MachineSpec, plan: accel.Candidates, keep: tuple[int, ...], owner: Owner,
        *, monitored: bool = False,
    ) -> None:  # fmt: skip
        self.loop, self.spec, self.plan = loop, spec, plan
        self.machine: Machine | None = None
        self.control: Control | None = None
        self.ready = False
        self._keep, self._owner, self._monitored = keep, owner, monitored
        self._life = life_seconds()
        self._verdict: accel.Verdict | None = None
        self._attempt = 0
        self._failure: str | None = None
        self._stopped = False
        self._timers: list[Timer] = []

    def start(self) -> None:
        """Start a machine; on its death before READY, or silence, start another."""
        self._attempt += 1
        self._failure = None
        self.spec = replace(self.spec, accelerator=self.plan.accelerators[0])
        try:
            self.machine = machine = Machine(self.spec, self._keep, monitored=self._monitored)
        except MachineError as error:
            self._owner.on_failure(error)
            return
        os.set_blocking(machine.console, False)
        self.control = Control(self.loop, machine.control, self._on_event, self._on_close)
        life = accel.PROBE_SECONDS if self.plan.unproven else self._life
        ready = accel.PROBE_SECONDS if self.plan.unproven else READY_SECONDS
        self._timers = [
            self.loop.call_later(life, lambda: self._give_up("gave no sign of life")),
            self.loop.call_later(ready, lambda: self._give_up("did not become ready")),
        ]
        self.loop.on_readable(machine.console, self._on_console)

    def stop(self) -> None:
        """End the machine, whatever it does."""
        self._stopped = True
        self._settled()
        if self.machine is not None:
            self.loop.forget(self.machine.console)
            if self.control is not None:
                self.control.link.close()
            self.machine.close()
            self.machine = None

    def _on_console(self) -> None:
        assert self.machine is not None
        self._timers[0].cancel()
        if not self.machine.read_console():
            self.loop.forget(self.machine.console)

    def _on_event(self, header: Header) -> None:
        if self.ready or header.get("name") != "ready":
            self._owner.on_event(header)
            return
        if header.get("version") != PROTOCOL_VERSION:
            self._fail(
                f"the image's airlockd speaks version {header.get('version')!r:.20}, not {PROTOCOL_VERSION}"
            )
            return
        self.ready = True
        self._settled()
        if self.plan.unproven:
            self._verdict = accel.Verdict(self.plan.accelerators[0], "a guest booted with it")
        if self._verdict is not None:
            accel.remember(self.spec.qemu, self._verdict)
            self.plan = accel.Candidates((self._verdict.accelerator,), False, self._verdict.reason)
        self._owner.on_ready(header)

    def _on_close(self, reason: str | None) -> None:
        if self.ready:
            self._owner.on_close(reason)
        elif not self._stopped:
            assert self.machine is not None
            self.machine.drain_console()
            self._dead(self._failure or reason or "ended")

    def _give_up(self, what: str) -> None:
        self._failure = what
        assert self.control is not None
        self.control.link.close(what)

    def _dead(self, what: str) -> None:
        """A machine that never became ready. Decide what comes next."""
        self._settled()
        assert self.machine is not None
        machine, self.machine = self.machine, None
        self.loop.forget(machine.console)
        again = True
        if what == "ended":
            status, said = machine.wait()
            reason = panic_reason(machine.tail)
            # A guest that resets itself before it says anything is as dead an early boot as one that hangs. One whose
            # kernel panics for a reason has the same the next time, unless the reason is a fault of its own: emulators
            # have bugs that come by chance (docs/kernel.md).
            again = status == 0 and (reason is None or kernel_fault(machine.tail) is not None)
            what = f"ended with status {status}"
            if reason is not None:
                what += f", its kernel panicked: {reason}"
            elif said:
                what += f" ({one_line(said.splitlines()[-1], 200)})"
        machine.close()
        if self.plan.unproven:
            name = self.plan.accelerators[0]
            reason = f"{name} does not run guests here: the machine {what}"
            # What fails with tcg as well is not the accelerator's fault: this is known when a guest is READY.
            self._verdict = accel.Verdict("tcg", reason)
            self._owner.note(0, f"{reason}; using tcg, which is slower")
            self.plan = accel.Candidates(("tcg",), False, reason)
            self._attempt = 0
            self.start()
        elif self._attempt < ATTEMPTS and again:
            # Without `-v` too: whoever waits for minutes wants to know what for.
            self._owner.note(0, f"the machine {what}; booting again ({self._attempt + 1} of {ATTEMPTS})")
            self.start()
        else:
            self._fail(f"the machine {what}", machine.tail)

    def _fail(self, message: str, console: str = "") -> None:
        shown = f"\nThe last lines of its console:\n{last_lines(console)}" if console.strip() else ""
        asked = self.plan.accelerators[0]
        hint = None if asked == "tcg" else f"--accel tcg runs without {asked}, though slower"
        self._owner.on_failure(MachineError(f"the sandbox could not start: {message}{shown}", hint=hint))

    def _settled(self) -> None:
        for timer in self._timers:
            timer.cancel()
