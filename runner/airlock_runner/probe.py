"""Machines that are only to become ready: to prove an accelerator (`doctor`), or to save a state (`build --warm`)."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from airlock_runner.boot import Booter
from airlock_runner.config import ProjectConfig
from airlock_runner.machine import accel
from airlock_runner.machine.argv import Share
from airlock_runner.machine.qemu import find_qemu
from airlock_runner.mounts import PROJECT
from airlock_runner.shape import machine_spec
from airlock_runner.starter import Starter
from airlockd.protocol.loop import Loop

if TYPE_CHECKING:
    from collections.abc import Callable

    from airlock_runner.machine.argv import MachineSpec
    from airlock_runner.machine.states import States
    from airlock_store.errors import MachineError
    from airlock_store.image import Image
    from airlockd.protocol.frames import Header

DISK_SIZE = 64 * 1024**2


def prove(image: Image) -> accel.Verdict:
    """The verdict on acceleration for this host boot, by a boot of `image` if there is none yet.

    Takes a second where acceleration works, and `accel.PROBE_SECONDS` and a boot at most where it does not. Raises
    MachineError where no guest runs at all.
    """
    qemu = find_qemu(image.arch)
    plan = accel.candidates("auto", image.arch, qemu)
    if not plan.unproven:
        return accel.Verdict(plan.accelerators[0], plan.reason)
    with tempfile.TemporaryDirectory(prefix="airlock-probe-") as directory:
        once = _Once(lambda _text: None)
        spec = _spec(image, ProjectConfig(), Path(directory), qemu, directory)
        booter = Booter(once.loop, spec, plan, (), once)
        once.run(booter)
    return accel.Verdict(booter.plan.accelerators[0], booter.plan.reason)


def warm(
    image: Image,
    config: ProjectConfig,
    root: Path,
    states: States,
    *,
    accelerator: str,
    note: Callable[[str], None],
) -> None:
    """Make the saved state that the first start of a sandbox of this shape would make, and prove it by restoring it.

    `note` gets a line for what goes wrong on the way. Raises MachineError where the machine does not come up.
    """
    qemu = find_qemu(image.arch)
    if accelerator == "auto":
        accelerator = prove(image).accelerator
    plan = accel.candidates(accelerator, image.arch, qemu)
    with tempfile.TemporaryDirectory(prefix="airlock-warm-") as directory:
        once = _Once(note)
        spec = _spec(image, config, root, qemu, directory)
        once.run(Starter(once.loop, spec, plan, (), once, image=image, states=states))


def _spec(image: Image, config: ProjectConfig, root: Path, qemu: Path, directory: str) -> MachineSpec:
    disk = Path(directory, "disk.img")
    disk.touch(0o600)
    os.truncate(disk, DISK_SIZE)
    project = Path(directory, "project")
    project.mkdir()
    shares = (Share(PROJECT, project),)
    return machine_spec(image, config, root=root, qemu=qemu, disk=disk, shares=shares)


class _Machine(Protocol):
    def start(self) -> None: ...
    def stop(self) -> None: ...


class _Once:
    """The owner of a machine that ends at READY."""

    def __init__(self, note: Callable[[str], None]) -> None:
        self.loop = Loop()
        self._note = note
        self._error: MachineError | None = None
        self._over = False

    def run(self, machine: _Machine) -> None:
        try:
            machine.start()
            if not self._over:
                self.loop.run()
        finally:
            machine.stop()
            self.loop.close()
        if self._error is not None:
            raise self._error

    def on_ready(self, _header: Header) -> None:
        self._end()

    def on_event(self, _header: Header) -> None:
        pass

    def on_close(self, _reason: str | None) -> None:
        self._end()

    def on_failure(self, error: MachineError) -> None:
        self._error = error
        self._end()

    def note(self, verbosity: int, text: str) -> None:
        self._note(text)

    def _end(self) -> None:
        self._over = True
        self.loop.stop()
