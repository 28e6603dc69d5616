"""Step `image`: the files of the earlier steps under one roof, and the manifest that the runner reads."""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING

from airlock_builder.kernel.output import read_promised
from airlock_builder.pack import disk
from airlock_store.image import MANIFEST, Image, VmDefaults, encode_image

if TYPE_CHECKING:
    from airlock_builder.step import Work

_FILES = {"kernel": ("kernel", "config"), "initrd": ("initrd",), "disk": (disk.IMAGE,)}


def build(work: Work) -> None:
    """Link the files and write the manifest."""
    for role, files in _FILES.items():
        for file in files:
            work.store.link(work.inputs[role], file, work.output / file)
    parameters = work.parameters
    vm = parameters["vm"]
    image = Image(
        path=work.output,
        key=work.step.key,
        name=parameters["name"],
        summary=parameters["summary"],
        arch=parameters["arch"],
        kernel=work.output / "kernel",
        kernel_release=(work.inputs["kernel"] / "release").read_text(encoding="utf-8").strip(),
        kernel_options=read_promised(work.inputs["kernel"].path),
        initrd=work.output / "initrd",
        rootfs=work.output / disk.IMAGE,
        rootfs_format="ext4",
        rootfs_key=work.inputs["disk"].key,
        features=tuple(parameters["features"]),
        vm=VmDefaults(vm["memory"], vm["cpus"], vm["harden"], tuple(vm["command"]), vm["user"]),
        env=MappingProxyType(dict(parameters["env"])),
        brings=MappingProxyType(dict(parameters["brings"])),
    )
    (work.output / MANIFEST).write_bytes(encode_image(image))
