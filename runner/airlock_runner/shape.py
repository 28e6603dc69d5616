"""The machine of a sandbox, from its image, its configuration and this host. The session and `build --warm` call it."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, TypeVar

from airlock_runner.machine.argv import MachineSpec

if TYPE_CHECKING:
    from pathlib import Path

    from airlock_runner.config import ProjectConfig
    from airlock_runner.machine.argv import Share
    from airlock_store.image import Image

_T = TypeVar("_T")
GIB = 1024**3
MAX_DEFAULT_MEMORY = 4 * GIB


def machine_spec(
    image: Image, config: ProjectConfig, *, qemu: Path, disk: Path, shares: tuple[Share, ...]
) -> MachineSpec:
    """What to boot: the project's word over the image's over the defaults (all CPUs, a quarter of the memory)."""
    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return MachineSpec(
        qemu=qemu,
        arch=image.arch,
        accelerator="",
        cpus=first(config.vm.cpus, image.vm.cpus, os.cpu_count() or 1),
        memory=first(config.vm.memory, image.vm.memory, min(total // 4, MAX_DEFAULT_MEMORY)),
        kernel=image.kernel,
        initrd=image.initrd,
        rootfs=image.rootfs,
        rootfs_format=image.rootfs_format,
        disk=disk,
        shares=shares,
    )


def first(*values: _T | None) -> _T:
    """The first that says something."""
    return next(value for value in values if value is not None)
