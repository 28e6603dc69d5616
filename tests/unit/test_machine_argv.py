"""The QEMU command line as a table: what each part of a machine's description adds to it."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path

import pytest

from airlock_runner.machine.argv import Channels, MachineSpec, Memory, Share, kernel_command_line, qemu_argv
from airlock_runner.machine.virtiofs import Daemon

SPEC = MachineSpec(
    qemu=Path("/usr/bin/qemu-system-x86_64"),
    arch="x86_64",
    accelerator="tcg",
    cpus=2,
    memory=512 * 1024**2,
    kernel=Path("/store/i/kernel"),
    initrd=Path("/store/i/initrd"),
    rootfs=Path("/store/i/rootfs.ext4"),
    rootfs_format="ext4",
    disk=Path("/project/.airlock/sandbox/disk.img"),
    shares=(),
)
CHANNELS = Channels(console=10, control=11, network=12, packets=13)


def pairs(argv: list[str]) -> set[tuple[str, str]]:
    return set(itertools.pairwise(argv))


def argv(**changes: object) -> list[str]:
    return qemu_argv(replace(SPEC, **changes), CHANNELS)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, ("-machine", "q35,usb=off,sata=off,smbus=off,vmport=off")),
        ({}, ("-accel", "tcg,thread=multi")),
        ({}, ("-cpu", "max,-erms,-fsrm,-smap,-pku")),
        ({}, ("-smp", "2")),
        ({"cpus": 1}, ("-smp", "1,maxcpus=2")),
        ({"cpus": 1, "accelerator": "kvm"}, ("-smp", "1")),
        ({}, ("-m", "512M")),
        ({}, ("-display", "none")),
        ({}, ("-sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny")),
        ({}, ("-chardev", "socket,id=control,fd=11")),
        ({}, ("-device", "virtserialport,bus=serial.0,nr=1,chardev=control,name=airlock.control")),
        ({}, ("-device", "virtserialport,bus=serial.0,nr=2,chardev=network,name=airlock.network")),
        ({}, ("-device", "virtserialport,bus=serial.0,nr=3,chardev=packets,name=airlock.packets")),
        ({}, ("-blockdev", "driver=file,node-name=image,filename=/store/i/rootfs.ext4,read-only=on")),
        (
            {},
            (
                "-device",
                "virtio-blk-pci,drive=disk,serial=airlock-disk,werror=report,rerror=report,disable-legacy=on,"
                "ioeventfd=off",
            ),
        ),
        ({}, ("-device", "virtio-serial-pci,id=serial,max_ports=4,disable-legacy=on,ioeventfd=off")),
        (
            {"accelerator": "kvm"},
            ("-device", "virtio-serial-pci,id=serial,max_ports=4,disable-legacy=on"),
        ),
        ({"arch": "aarch64"}, ("-cpu", "max,pauth-impdef=on")),
        # Which real processors do not know.
        ({"arch": "aarch64", "accelerator": "kvm"}, ("-cpu", "host")),
        ({"accelerator": "kvm"}, ("-accel", "kvm")),
        ({"accelerator": "kvm"}, ("-cpu", "host")),
        ({"accelerator": "hvf", "arch": "aarch64"}, ("-machine", "virt,gic-version=max,usb=off")),
        (
            {"rootfs": Path("/a,b/root")},
            ("-blockdev", "driver=file,node-name=image,filename=/a,,b/root,read-only=on"),
        ),
        (
            {"shares": (Share("project", Path("/p,q r")),)},
            ("-fsdev", "local,id=project,path=/p,,q r,security_model=none,multidevs=remap"),
        ),
        (
            {"shares": (Share("docs", Path("/d"), read_only=True),)},
            ("-fsdev", "local,id=docs,path=/d,security_model=none,multidevs=remap,readonly=on"),
        ),
        (
            {"shares": (Share("project", Path("/p")),)},
            ("-device", "virtio-9p-pci,fsdev=project,mount_tag=project,disable-legacy=on,ioeventfd=off"),
        ),
    ],
)
def test_what_is_there(changes: dict[str, object], expected: tuple[str, str]) -> None:
    assert expected in pairs(argv(**changes))


def test_a_share_over_virtiofs_needs_memory_that_its_daemon_can_reach() -> None:
    daemon = Daemon(Path("/v"), rust=True)
    shares = (Share("project", Path("/p"), daemon=daemon), Share("mount0", Path("/m"), read_only=True))
    words = qemu_argv(replace(SPEC, shares=shares), replace(CHANNELS, shares=(20,)))
    assert {
        ("-object", "memory-backend-memfd,id=ram,size=512M,share=on"),
        ("-machine", "q35,usb=off,sata=off,smbus=off,vmport=off,memory-backend=ram"),
        ("-chardev", "socket,id=project,fd=20"),
        ("-device", "vhost-user-fs-pci,chardev=project,tag=project"),
        ("-device", "virtio-9p-pci,fsdev=mount0,mount_tag=mount0,disable-legacy=on,ioeventfd=off"),
    } <= pairs(words)
    assert "memory-backend" not in " ".join(argv(shares=shares[1:]))


def test_a_restored_machine_reads_no_kernel() -> None:
    restored = argv(ram=Memory("/dev/fd/7", shared=False, incoming=8))
    assert {"-kernel", "-initrd", "-append"}.isdisjoint(restored)
    assert ("-incoming", "defer") in pairs(restored)
    assert ("-object", "memory-backend-file,id=ram,size=512M,mem-path=/dev/fd/7,share=off") in pairs(restored)
    saved = argv(ram=Memory("/ram", shared=True))
    assert ("-kernel", "/store/i/kernel") in pairs(saved)
    assert "-incoming" not in saved


def test_nothing_but_what_was_asked_for() -> None:
    words = argv()
    assert "-nodefaults" in words
    assert "-no-user-config" in words
    assert not {"-netdev", "-nic", "-net", "-monitor", "-vnc", "-usb", "-virtfs"} & set(words)
    assert not [word for word in words if "virtio-net" in word or "e1000" in word]


def test_the_image_is_never_writable() -> None:
    (image,) = [word for word in argv() if "node-name=image" in word]
    assert image.endswith("read-only=on")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({}, {"console=ttyS0", "panic=-1", "airlock.rootfs=ext4"}),
        ({}, {"mitigations=off", "tsc=nowatchdog", "no_timer_check"}),
        ({"arch": "aarch64"}, {"console=ttyAMA0"}),
    ],
)
def test_kernel_command_line(changes: dict[str, object], words: set[str]) -> None:
    assert words <= set(kernel_command_line(replace(SPEC, **changes)).split())  # type: ignore[arg-type]


def test_mitigations_stay_on_where_the_cpu_is_real() -> None:
    assert "mitigations=off" not in kernel_command_line(replace(SPEC, accelerator="kvm"))
