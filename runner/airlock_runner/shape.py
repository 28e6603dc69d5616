"""The machine of a sandbox, from its image, its configuration and this host. The session and `build --warm` call it."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, TypeVar

from airlock_runner.borders import host_path, led_out, writable_by_sandbox
from airlock_runner.config import place_of
from airlock_runner.config.model import MIN_MEMORY, host_memory
from airlock_runner.machine.argv import MachineSpec
from airlock_store.errors import ConfigError, noting

if TYPE_CHECKING:
    from pathlib import Path

    from airlock_runner.config import ProjectConfig
    from airlock_runner.machine.argv import Share
    from airlock_store.image import Image

_T = TypeVar("_T")
GIB = 1024**3
MAX_DEFAULT_MEMORY = 4 * GIB


def machine_spec(
    image: Image, config: ProjectConfig, *, root: Path, qemu: Path, disk: Path, shares: tuple[Share, ...]
) -> MachineSpec:
    """What to boot: the project's word over the image's over the defaults (all CPUs, a quarter of the memory).

    `root` is the project's. An image's memory is cut to what this host has. Raises ConfigError as `boot_files` does.
    """
    total = host_memory()
    kernel, initrd = boot_files(config, root, image.arch)
    wished = min(image.vm.memory, total) if image.vm.memory is not None else None
    return MachineSpec(
        qemu=qemu,
        arch=image.arch,
        accelerator="",
        cpus=first(config.vm.cpus, image.vm.cpus, os.cpu_count() or 1),
        memory=first(config.vm.memory, wished, max(MIN_MEMORY, min(total // 4, MAX_DEFAULT_MEMORY))),
        kernel=kernel or image.kernel,
        initrd=initrd or image.initrd,
        rootfs=image.rootfs,
        rootfs_format=image.rootfs_format,
        disk=disk,
        shares=shares,
    )


def too_many_emulated(cpus: int) -> str | None:
    """What to tell where so many virtual CPUs are emulated; the more take turns, the longer each waits for the others.

    On two processors, 16 took 37 seconds to boot, and 64 were not ready after several minutes.
    """
    processors = os.cpu_count() or 1
    if cpus <= 4 * processors:
        return None
    return f"{cpus} virtual CPUs are emulated by {processors} processors: it may take minutes, or not start at all"


def boot_files(config: ProjectConfig, root: Path, arch: str) -> tuple[Path | None, Path | None]:
    """The kernel and the initrd that the config names. Raises ConfigError for each that boots no machine of `arch`."""
    problems: list[ConfigError] = []
    found: list[Path | None] = [None, None]
    for index, (key, value) in enumerate((("kernel", config.vm.kernel), ("initrd", config.vm.initrd))):
        with noting(problems):
            found[index] = _boot_file(key, value, root, config, arch)
    if problems:
        raise ConfigError.of(problems)
    return found[0], found[1]


def _boot_file(key: str, value: str | None, root: Path, config: ProjectConfig, arch: str) -> Path | None:
    if value is None:
        return None
    from airlock_runner.machine.bootfiles import initrd_trouble, kernel_trouble

    wrong: str | None
    path = host_path(value, root)
    shared = led_out(path, writable_by_sandbox(config, root))
    if shared is not None:
        # The guest gets to read what it is booted from, whatever file of the host that is.
        wrong = f"leads out of {shared}, which the sandbox can write to, by a symlink"
    elif not path.exists():
        wrong = "is not there"
    elif not path.is_file():
        wrong = "is not a file"
    else:
        try:
            wrong = kernel_trouble(path, arch) if key == "kernel" else initrd_trouble(path)
        except OSError as error:
            wrong = f"cannot be read: {error.strerror}"
        if wrong is None:
            return path
    hint = f"name another, or leave [vm] {key} out for the image's own"
    raise ConfigError(f"{key} {path} {wrong}", hint=hint, at=place_of(root, "vm", key))


def first(*values: _T | None) -> _T:
    """The first that says something."""
    return next(value for value in values if value is not None)
