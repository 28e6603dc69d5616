"""From a machine's description to READY by the fastest way: restored from a saved state, or booted and then saved.

The session and `airlock build --warm` use it. Whatever is wrong with a state, the start goes on with a cold boot.
"""

from __future__ import annotations

import os
import threading
from contextlib import ExitStack
from dataclasses import replace
from typing import TYPE_CHECKING

from airlock_runner.boot import Booter, Owner
from airlock_runner.config import DiskConfig
from airlock_runner.control import Control
from airlock_runner.machine import qmp
from airlock_runner.machine.argv import MachineSpec, Memory, Share
from airlock_runner.machine.process import Machine
from airlock_runner.machine.states import Draft, Saved, StateError, States, state_key
from airlock_runner.turns import Turn, processors
from airlock_store.errors import AirlockError, MachineError

if TYPE_CHECKING:
    from airlock_runner.machine import accel
    from airlock_store.image import Image
    from airlockd.protocol.frames import Header
    from airlockd.protocol.loop import Loop, Timer

RESTORE_SECONDS = 30.0
"""A restored guest answers in a fraction of a second; one that has not by then is given up for a cold boot."""


class Starter:
    """Gives `owner` a machine. `machine` and `control` are the present one's; `states` is None for a cold boot only."""

    def __init__(
        self, loop: Loop, spec: MachineSpec, plan: accel.Candidates, keep: tuple[int, ...], owner: Owner,
        *, image: Image, states: States | None,
    ) -> None:  # fmt: skip
        self.loop, self.spec = loop, spec
        self._plan, self._keep, self._owner = plan, keep, owner
        self._image, self._states = image, states
        self._key = ""
        self._turn: Turn | None = None
        self._current: Booter | _Template | _Restored | None = None

    def start(self) -> None:
        """Begin; the owner hears of READY or failure from the loop, or at once."""
        if self._states is None or self._plan.unproven:
            self._boot()
            return
        self.spec = replace(self.spec, accelerator=self._plan.accelerators[0])
        self._key = state_key(self._image, self.spec)
        self._turn = Turn(self.loop, self._states.turns(processors()), self._begin)
        self._turn.take()

    def settled(self) -> None:
        """The machine does what it was started for from now on: the next one may come up."""
        if self._turn is not None:
            self._turn.end()

    def _begin(self) -> None:
        assert self._states is not None
        saved = self._states.find(self._key, self.spec.memory)
        if saved is not None:
            self._restore(saved)
        else:
            self._make()

    def stop(self) -> None:
        """End the machine, whatever it does."""
        self.settled()
        self._end()

    @property
    def machine(self) -> Machine | None:
        """The machine that runs now."""
        return self._current.machine if self._current is not None else None

    @property
    def control(self) -> Control:
        """The link to its airlockd."""
        assert self._current is not None
        assert self._current.control is not None
        return self._current.control

    def _end(self) -> None:
        if self._current is not None:
            self._current.stop()

    def _boot(self) -> None:
        self._current = booter = Booter(
            self.loop, self.spec, self._plan, self._keep, self._owner, monitored=True
        )  # fmt: skip
        booter.start()

    def _make(self) -> None:
        assert self._states is not None
        self._current = template = _Template(self)
        template.start(self._states, self._key)

    def _restore(self, saved: Saved) -> None:
        self._current = restored = _Restored(self, saved)
        restored.start()

    # ---- what the ways tell

    def made(self) -> None:
        """A state was saved: go on from it, which also proves it."""
        assert self._states is not None
        saved = self._states.find(self._key, self.spec.memory)
        if saved is None:
            self.gave_up("the saved state is gone again")
        else:
            self._restore(saved)

    def gave_up(self, why: str, *, drop: bool = False) -> None:
        """No state, or one that is of no use: boot cold."""
        self._end()
        if drop and self._states is not None:
            self._states.drop(self._key)
        self._owner.note(1, f"no saved state: {why}; booting cold")
        self._boot()


class _Template:
    """A machine without a project that is booted to READY, saved there, and ended. Owner of its own boot."""

    def __init__(self, starter: Starter) -> None:
        self._starter = starter
        self._stack = ExitStack()
        self._draft: Draft | None = None
        self._booter: Booter | None = None

    @property
    def machine(self) -> Machine | None:
        return self._booter.machine if self._booter is not None else None

    @property
    def control(self) -> Control | None:
        return self._booter.control if self._booter is not None else None

    def start(self, states: States, key: str) -> None:
        starter = self._starter
        self._states, self._key = states, key
        try:
            self._draft = draft = self._stack.enter_context(states.making(key))
            if draft is None:
                raise StateError("another process makes it now")
            spec = self._spec(draft)
        except (OSError, StateError) as error:
            starter.gave_up(str(error))
            return
        self._booter = Booter(starter.loop, spec, starter._plan, (), self, monitored=True)
        self._booter.start()

    def stop(self) -> None:
        if self._booter is not None:
            self._booter.stop()
        self._stack.close()

    def _spec(self, draft: Draft) -> MachineSpec:
        """The same shape, with nothing of the project: an empty disk and empty shares."""
        spec = self._starter.spec
        disk, share = draft.scratch / "disk.img", draft.scratch / "share"
        share.mkdir()
        # A restored guest has to look again only at a disk of another size than most are.
        for path, size in ((disk, DiskConfig().size), (draft.ram, spec.memory)):
            path.touch(0o600)
            os.truncate(path, size)
        shares = tuple(Share(offered.tag, share) for offered in spec.shares)
        return replace(spec, disk=disk, shares=shares, ram=Memory(os.fspath(draft.ram), shared=True))

    def on_ready(self, header: Header) -> None:
        assert self._booter is not None
        assert self._booter.machine is not None
        assert self._booter.machine.monitor is not None
        assert self._draft is not None
        draft, starter = self._draft, self._starter
        starter._owner.note(1, "saving the machine's state for the next start")
        try:
            fd = os.open(draft.device, os.O_WRONLY | os.O_CREAT, 0o600)
            try:
                qmp.save(self._booter.machine.monitor, fd)
            finally:
                os.close(fd)
            self._booter.stop()
            self._states.keep(self._key, draft, header, self._starter._image.path)
        except (OSError, MachineError) as error:
            starter.gave_up(f"it could not be saved: {error}")
            return
        self.stop()
        starter.made()

    def on_event(self, header: Header) -> None:
        pass

    def on_close(self, reason: str | None) -> None:
        """The machine is ended by us once it is saved."""

    def on_failure(self, error: MachineError) -> None:
        self._starter.gave_up(str(error).splitlines()[0])

    def note(self, verbosity: int, text: str) -> None:
        self._starter._owner.note(verbosity, text)


class _Restored:
    """A machine that goes on from a saved state. It counts when airlockd answers and every byte was verified."""

    def __init__(self, starter: Starter, saved: Saved) -> None:
        self._starter, self._saved = starter, saved
        self.machine: Machine | None = None
        self.control: Control | None = None
        self._answered = self._verified = self._counts = self._over = False
        self._problem: str | None = None
        self._timer: Timer | None = None
        self._verifier: threading.Thread | None = None

    def start(self) -> None:
        starter, saved = self._starter, self._saved
        ram = Memory(f"/dev/fd/{saved.ram}", shared=False, incoming=saved.device)
        keep = (*starter._keep, saved.ram, saved.device)
        try:
            self.machine = machine = Machine(replace(starter.spec, ram=ram), keep, monitored=True)
            assert machine.monitor is not None
            qmp.restore(machine.monitor, saved.device)
        except (OSError, AirlockError) as error:
            starter.gave_up(str(error))
            return
        os.set_blocking(machine.console, False)
        starter.loop.on_readable(machine.console, self._on_console)
        self.control = Control(starter.loop, machine.control, starter._owner.on_event, self._on_close)
        self.control.call("ping", {}, self._on_answer, self._on_refusal)
        self._timer = starter.loop.call_later(RESTORE_SECONDS, lambda: self._fail("it does not come to life"))
        self._verify()

    def stop(self) -> None:
        if self._over:
            return
        self._over = True
        if self._timer is not None:
            self._timer.cancel()
        if self._verifier is not None:
            self._verifier.join()
        self._saved.close()
        if self.machine is not None:
            self._starter.loop.forget(self.machine.console)
            if self.control is not None:
                self.control.link.close()
            self.machine.close()
            self.machine = None

    def _verify(self) -> None:
        """In a thread beside QEMU's own start: reading RAM once through takes about as long as restoring it."""
        if self._saved.known():
            self._verified = True
            return
        read, write = os.pipe()
        loop = self._starter.loop

        def work() -> None:
            try:
                self._saved.verify()
            except (OSError, StateError) as error:
                self._problem = str(error)
            os.close(write)

        def done() -> None:
            loop.forget(read)
            os.close(read)
            if self._problem is not None:
                self._fail(self._problem)
            else:
                self._verified = True
                self._count()

        self._verifier = threading.Thread(target=work, name="verify-state")
        self._verifier.start()
        loop.on_readable(read, done)

    def _on_answer(self, _header: Header) -> None:
        self._answered = True
        self._count()

    def _on_refusal(self, header: Header) -> None:
        self._fail(f"airlockd refuses: {str(header.get('message'))[:100]!r}")

    def _count(self) -> None:
        if self._answered and self._verified and not self._over and self._timer is not None:
            self._counts = True
            self._timer.cancel()
            self._starter._owner.on_ready(self._saved.ready)

    def _fail(self, why: str) -> None:
        if not self._over and not self._counts:
            self._starter.gave_up(f"the saved one is of no use: {why}", drop=True)

    def _on_close(self, reason: str | None) -> None:
        if self._over:
            return
        if self._counts:
            self._starter._owner.on_close(reason)
            return
        assert self.machine is not None
        status, said = self.machine.wait()
        self._fail(reason or f"QEMU ended with status {status}: {said[-200:]!r}")

    def _on_console(self) -> None:
        assert self.machine is not None
        if not self.machine.read_console():
            self._starter.loop.forget(self.machine.console)
