"""The machine that an image, a config and this host come to."""

from __future__ import annotations

import bz2
import gzip
import lzma
import os
import struct
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import zstandard

from airlock_runner import shape
from airlock_runner.config import load_config
from airlock_store.errors import ConfigError
from airlock_store.image import Image, VmDefaults

if TYPE_CHECKING:
    from airlock_runner.machine.argv import MachineSpec

GIB = 1024**3
IMAGE = Image(
    path=Path("/store/x-base"), key="x" * 32, name="base", summary="", arch="x86_64", kernel=Path("/k"),
    kernel_release="6", initrd=Path("/i"), rootfs=Path("/r"), rootfs_format="ext4", rootfs_key="r",
)  # fmt: skip


def elf(note: bytes, machine: int = 62, table: int = 64) -> bytes:
    """The head of an ELF file of 64 bits with one segment, of notes, at its end."""
    header = b"\x7fELF\x02\x01".ljust(18, b"\0") + struct.pack(
        "<HIqqqIHHH", machine, 1, 0, table, 0, 0, 64, 56, 1
    )
    segment = struct.pack("<IIqqqqqq", 4, 0, 120, 0, 0, len(note), 0, 0)
    return header.ljust(64, b"\0") + segment + note


PVH = struct.pack("<III4sI", 4, 4, 18, b"Xen", 0x1000000)
KERNELS = {
    "vmlinux": elf(b"\0" * 20 + PVH),
    "bzImage": b"MZ".ljust(0x202, b"\0") + b"HdrS",
    "arm vmlinux": elf(b"", machine=183),
    "arm Image": b"MZ".ljust(56, b"\0") + b"ARM\x64",
    "arm zboot": b"MZ\0\0zimg",
}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    path = tmp_path / "project"
    path.mkdir()
    return path


def spec(root: Path, text: str = "", image: Image = IMAGE) -> MachineSpec:
    (root / "airlock.toml").write_text(text)
    return shape.machine_spec(
        image, load_config(root), root=root, qemu=Path("/qemu"), disk=Path("/disk"), shares=()
    )


def refusal(root: Path, text: str) -> str:
    with pytest.raises(ConfigError) as caught:
        spec(root, text)
    return str(caught.value).removeprefix(f"{root}/airlock.toml:")


@pytest.mark.parametrize(("total", "memory"), [(8 * GIB, 2 * GIB), (16 * GIB, 4 * GIB), (64 * GIB, 4 * GIB)])
def test_left_out_it_has_all_cpus_and_a_quarter_of_the_memory(
    root: Path, monkeypatch: pytest.MonkeyPatch, total: int, memory: int
) -> None:
    sizes = {"SC_PAGE_SIZE": 4096, "SC_PHYS_PAGES": total // 4096}
    monkeypatch.setattr(os, "sysconf", sizes.__getitem__)
    monkeypatch.setattr(os, "cpu_count", lambda: 7)
    made = spec(root)
    assert (made.cpus, made.memory) == (7, memory)


def test_the_project_has_the_word_over_the_image(root: Path) -> None:
    image = replace(IMAGE, vm=VmDefaults(memory=GIB // 2, cpus=3))
    made = spec(root, image=image)
    assert (made.cpus, made.memory) == (3, GIB // 2)
    made = spec(root, '[vm]\ncpus = 2\nmemory = "1 GB"\n', image)
    assert (made.cpus, made.memory) == (2, GIB)


def test_a_kernel_and_an_initrd_of_ones_own(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", os.fspath(tmp_path))
    made = spec(root)
    assert (made.kernel, made.initrd) == (IMAGE.kernel, IMAGE.initrd)
    (root / "vmlinux").write_bytes(KERNELS["bzImage"])
    (tmp_path / "initrd").write_bytes(b"070701")
    made = spec(root, '[vm]\nkernel = "./vmlinux"\ninitrd = "~/initrd"\n')
    assert (made.kernel, made.initrd) == (root / "vmlinux", tmp_path / "initrd")


def test_what_cannot_be_booted_from_is_refused_at_its_place(root: Path, tmp_path: Path) -> None:
    assert refusal(root, '[vm]\nkernel = "none"\n').startswith(f"2:1: kernel {root}/none is not there")
    assert refusal(root, '[vm]\ninitrd = "."\n').startswith(f"2:1: initrd {root} is not a file")
    # Something that ran in the sandbox may have made it.
    (tmp_path / "secret").touch()
    (root / "initrd").symlink_to("../secret")
    assert f"initrd {root}/initrd leads out of {root}" in refusal(root, '[vm]\ninitrd = "initrd"\n')
    (tmp_path / "alias").symlink_to(root)
    assert f"leads out of {root}" in refusal(root, f'[vm]\ninitrd = "{tmp_path}/alias/initrd"\n')


@pytest.mark.parametrize("name", KERNELS)
def test_a_kernel_is_for_the_images_processor(root: Path, name: str) -> None:
    (root / "k").write_bytes(KERNELS[name])
    ours, other = ("aarch64", "x86_64") if name.startswith("arm") else ("x86_64", "aarch64")
    assert spec(root, '[vm]\nkernel = "k"\n', replace(IMAGE, arch=ours)).kernel == root / "k"
    with pytest.raises(
        ConfigError, match=f"kernel {root}/k is no kernel for {other}, which the image is for"
    ):
        spec(root, '[vm]\nkernel = "k"\n', replace(IMAGE, arch=other))


@pytest.mark.parametrize(
    ("key", "content", "said"),
    [
        ("kernel", b"", "is no kernel for x86_64: neither a vmlinux nor a bzImage"),
        ("kernel", b"#!/bin/sh\n", "is no kernel for x86_64: neither a vmlinux nor a bzImage"),
        ("kernel", b"\x7fELF", "is no kernel for x86_64, which the image is for"),
        ("kernel", elf(b"\0" * 64), "is no kernel that QEMU can boot: an ELF file without a PVH entry"),
        ("kernel", elf(PVH, table=-1), "is no kernel that QEMU can boot"),
        ("kernel", elf(PVH, table=(1 << 63) - 1), "is no kernel that QEMU can boot"),
        ("kernel", elf(PVH)[:100], "is no kernel that QEMU can boot"),
        ("initrd", b"", "is no initrd: neither a cpio archive"),
        ("initrd", b"\0" * 5000, "is no initrd: neither a cpio archive"),
        ("initrd", b"070707", "is no initrd: neither a cpio archive"),
        ("initrd", b"\x04\x22\x4d\x18", "is no initrd: neither a cpio archive"),
        ("initrd", KERNELS["bzImage"], "is no initrd: neither a cpio archive"),
    ],
)
def test_what_is_no_kernel_or_initrd_is_told_before_it_is_booted(
    root: Path, key: str, content: bytes, said: str
) -> None:
    (root / "file").write_bytes(content)
    assert refusal(root, f'[vm]\n{key} = "file"\n').startswith(f"2:1: {key} {root}/file {said}")


@pytest.mark.parametrize(
    "content",
    [
        b"070701",
        b"\0" * 512 + b"070702",
        # It is part of the test's name, by which pytest's workers know it.
        gzip.compress(b"070701", mtime=0),
        bz2.compress(b"070701"),
        lzma.compress(b"070701"),
        lzma.compress(b"070701", lzma.FORMAT_ALONE),
        zstandard.compress(b"070701"),
        b"\x02\x21\x4c\x18",
        b"\x89LZO\0\r\n\x1a\n",
    ],
)
def test_an_initrd_is_packed_in_any_way_that_linux_knows(root: Path, content: bytes) -> None:
    (root / "file").write_bytes(content)
    assert spec(root, '[vm]\ninitrd = "file"\n').initrd == root / "file"


@pytest.mark.parametrize(("cpus", "told"), [(1, False), (8, False), (9, True), (255, True)])
def test_more_emulated_cpus_than_take_turns_in_time(
    monkeypatch: pytest.MonkeyPatch, cpus: int, told: bool
) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    assert bool(shape.too_many_emulated(cpus)) is told


def test_both_are_told_where_neither_can_be_booted_from(root: Path) -> None:
    said = refusal(root, '[vm]\nkernel = "none"\ninitrd = "."\n')
    assert "2:1: kernel " in said
    assert "3:1: initrd " in said


def test_memory_is_never_more_than_the_host_has_nor_too_little(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def on_host(total: int, image: Image) -> int:
        sizes = {"SC_PAGE_SIZE": 4096, "SC_PHYS_PAGES": total // 4096}
        monkeypatch.setattr(os, "sysconf", sizes.__getitem__)
        return spec(root, image=image).memory

    # An image is made for hosts that nobody knows yet.
    assert on_host(2 * GIB, replace(IMAGE, vm=VmDefaults(memory=8 * GIB))) == 2 * GIB
    assert on_host(GIB // 2, IMAGE) == GIB // 4
