"""`airlock doctor`: what this machine has and lacks for running and building sandboxes, and what to do about it."""

from __future__ import annotations

import os
import shutil
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click

from airlock.cli import command
from airlock.output import say, say_json, say_table
from airlock_store.errors import AirlockError
from airlock_store.sizes import GIB, MIB, format_size

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from airlock_store.image import Image

OK, WARNING, MISSING = "ok", "warning", "missing"
LOW_DISK, LOW_MEMORY = 4 * GIB, 512 * MIB


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the report. A `status` of "missing" means that no sandbox can run here."""

    name: str
    status: str
    detail: str
    hint: str = ""


@command("doctor", examples=["airlock doctor", "airlock doctor --json"])
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def doctor(as_json: bool) -> int:
    """Check this machine: QEMU, acceleration, disk, memory, tools. Exit code 1 if sandboxes cannot run here."""
    findings = [*_machine(), _shares(), _disk(), _memory(), *_builder(), *_ids()]
    if as_json:
        say_json([asdict(finding) for finding in findings])
    else:
        say_table((finding.status, finding.name, finding.detail) for finding in findings)
        for hint in dict.fromkeys(finding.hint for finding in findings if finding.hint):
            say(f"hint: {hint}")
    return 1 if any(finding.status == MISSING for finding in findings) else 0


def _machine() -> Iterator[Finding]:
    from airlock_runner.machine import accel
    from airlock_runner.machine.qemu import find_qemu, qemu_version
    from airlock_runner.probe import prove

    machine = os.uname().machine
    arch = {"amd64": "x86_64", "arm64": "aarch64"}.get(machine, machine)
    try:
        qemu = find_qemu(arch)
        yield Finding("qemu", OK, f"{qemu_version(qemu)} ({qemu})")
    except AirlockError as error:
        yield Finding("qemu", MISSING, error.message, error.hint or "")
        return
    candidates = accel.candidates("auto", arch, qemu)
    chosen, reason = candidates.accelerators[0], candidates.reason
    image = _any_image(arch) if candidates.unproven else None
    if image is not None:
        try:
            verdict = prove(image)
        except AirlockError as error:
            yield Finding("accelerator", MISSING, f"no guest runs here: {error.message}", error.hint or "")
            return
        chosen, reason = verdict.accelerator, verdict.reason
    elif candidates.unproven:
        reason = "to be proven by the first start, as there is no image to boot yet"
    slow = chosen == "tcg"
    hint = "without hardware acceleration sandboxes work, but several times slower" if slow else ""
    yield Finding("accelerator", WARNING if slow else OK, f"{chosen}: {reason}", hint)


def _shares() -> Finding:
    from airlock_runner.machine.virtiofs import find_daemon

    try:
        return Finding("virtiofs", OK, f'can be had with [vm] share = "virtiofs" ({find_daemon().program})')
    except AirlockError as error:
        return Finding("virtiofs", OK, f"not used, shares are 9p: {error.message}")


def _any_image(arch: str) -> Image | None:
    from airlock_store.image import load_image
    from airlock_store.store import Store

    # A store that cannot be used is told elsewhere.
    with suppress(AirlockError):
        for found in Store.open().images():
            # One that cannot be booted any more is no reason not to look at the rest of the machine.
            with suppress(AirlockError):
                if (image := load_image(found.path)).arch == arch:
                    return image
    return None


def _disk() -> Finding:
    from airlock_store.store import Store

    try:
        store = Store.open()
        next(store.paths(), None)
    except AirlockError as error:
        return Finding("disk", MISSING, error.message, error.hint or "")
    root = store.root
    there = next(path for path in (root, *root.parents) if path.exists())
    free = shutil.disk_usage(there).free
    detail = f"{format_size(free)} free for the store ({root})"
    if not os.access(there, os.W_OK):
        hint = "set AIRLOCK_STORE to a directory that you may write"
        return Finding("disk", WARNING, f"{there} cannot be written", hint)
    hint = "an image needs a few GB: `airlock store gc`, or set AIRLOCK_STORE to a directory on another disk"
    return Finding("disk", OK, detail) if free >= LOW_DISK else Finding("disk", WARNING, detail, hint)


def _memory() -> Finding:
    from airlock_runner.config.model import host_memory

    total, free = host_memory(), _available_memory()
    if free is None:
        return Finding("memory", OK, format_size(total))
    detail = f"{format_size(free)} of {format_size(total)} available"
    if free >= LOW_MEMORY:
        return Finding("memory", OK, detail)
    return Finding("memory", WARNING, detail, "close something, or lower [vm] memory in airlock.toml")


def _available_memory() -> int | None:
    try:
        lines = Path("/proc/meminfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    found = next((line.split()[1] for line in lines if line.startswith("MemAvailable:")), None)
    return int(found) * 1024 if found else None


def _ids() -> Iterator[Finding]:
    """What an ordinary user needs besides programs to build images."""
    from airlock_builder.rootfs import ids

    if os.geteuid() == 0:
        return
    try:
        ids.require_range()
        ids.require_namespace()
        yield Finding("ids", OK, f"a range of {ids.COUNT} ids for the users of an image")
    except AirlockError as error:
        yield Finding("ids", WARNING, f"images cannot be built: {error.message}", error.hint or "")


def _builder() -> Iterator[Finding]:
    from airlock_builder.tools import COMPILING, PACKAGES

    # Cross compilers are for kernels of the other architecture, which run nowhere here.
    needed = {
        name: package
        for name, package in PACKAGES.items()
        if name not in COMPILING and not name.endswith("-gcc")
    }
    missing = _missing(needed)
    for name, package in missing.items():
        yield Finding(name, WARNING, f"not installed (package {package}); images cannot be built without it")
    if missing:
        yield Finding("builder", WARNING, "tools are missing", _install(missing))
    else:
        yield Finding("builder", OK, f"all {len(needed)} tools are here")
    missing = _missing(COMPILING)
    if missing:
        detail = f"{', '.join(missing)} not installed; only recipes that compile their kernel need that"
        yield Finding("compiler", OK, detail, _install(missing))
    else:
        yield Finding("compiler", OK, "kernels can be compiled")


def _missing(programs: Mapping[str, str]) -> dict[str, str]:
    from airlock_builder.tools import find_program

    missing = {}
    for name, package in programs.items():
        try:
            find_program(name)
        except AirlockError:
            missing[name] = package
    return missing


def _install(missing: Mapping[str, str]) -> str:
    return f"apt-get install {' '.join(sorted(set(missing.values())))}"
