"""The QEMU command line, made by one pure function from a frozen value. The session and the tests call it."""

from __future__ import annotations

import os
import sys
from dataclasses import KW_ONLY, dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from airlock_runner.machine.virtiofs import Daemon


@dataclass(frozen=True, slots=True)
class Share:
    """A host directory offered under `tag` (at most 31 bytes): over 9p, or over virtio-fs by this `daemon`."""

    tag: str
    source: Path
    read_only: bool = False
    daemon: Daemon | None = None


@dataclass(frozen=True, slots=True)
class Channels:
    """Connected sockets that QEMU inherits, by descriptor number."""

    console: int
    control: int
    network: int
    packets: int
    monitor: int | None = None
    _: KW_ONLY
    shares: tuple[int, ...] = ()
    """One for each share that a daemon serves, in their order."""


@dataclass(frozen=True, slots=True)
class Memory:
    """A file that is the machine's RAM. `shared`: what the guest writes goes to the file, and not only to its copy.

    `incoming` is the descriptor of the saved device state to go on from, or None for a cold boot.
    """

    file: str
    shared: bool
    incoming: int | None = None


@dataclass(frozen=True, slots=True)
class MachineSpec:
    """Everything that decides a machine. Memory in bytes. `arch` as uname names it."""

    qemu: Path
    arch: str
    accelerator: str
    cpus: int
    memory: int
    kernel: Path
    initrd: Path
    rootfs: Path
    rootfs_format: str
    disk: Path
    shares: tuple[Share, ...]
    ram: Memory | None = None
    sandboxed: bool = sys.platform.startswith("linux")


_MIB = 1024 * 1024
_CONSOLES = {"x86_64": "ttyS0", "aarch64": "ttyAMA0"}
# q35 and not microvm: under TCG, early boots hang on microvm now and then, on q35 they do not (FACTS.md).
_TCG_CPUS = {
    # With the first two the guest's kernel copies by `rep movsb`, a byte at a time under TCG: half as fast. With SMAP
    # each copy from or to a program leaves the translated code twice, and with protection keys there is one more thing
    # to switch and flush: together a sixth of what a connection costs. They guard the guest's kernel and programs
    # against bugs of their own, which is nothing that the host relies on.
    "x86_64": "max,-erms,-fsrm,-smap,-pku",
    # Pointers are signed at every call of a function. By QEMU's own way instead of the architecture's, a boot takes
    # half the time (QEMU docs/system/arm/cpu-features.rst).
    "aarch64": "max,pauth-impdef=on",
}
_MACHINES = {"x86_64": "q35,usb=off,sata=off,smbus=off,vmport=off", "aarch64": "virt,gic-version=max,usb=off"}


def qemu_argv(spec: MachineSpec, channels: Channels) -> list[str]:
    """The command line for `spec`: no NIC, no default devices, nothing of the host but what `spec` names."""
    argv = [
        os.fspath(spec.qemu),
        *("-name", "airlock"),
        *("-nodefaults", "-no-user-config", "-no-reboot"),
        *("-display", "none"),
        *("-machine", _MACHINES[spec.arch] + (",memory-backend=ram" if _memory(spec) else "")),
        *("-accel", _accelerator(spec)),
        *("-cpu", "host" if spec.accelerator != "tcg" else _TCG_CPUS[spec.arch]),
        *("-smp", _processors(spec)),
        *("-m", f"{spec.memory // _MIB}M"),
        *_memory(spec),
        *_boot(spec),
        *("-chardev", f"socket,id=console,fd={channels.console}"),
        *("-serial", "chardev:console"),
        *("-object", "rng-builtin,id=rng"),
        *_virtio(spec, "rng", "rng=rng"),
        *_virtio(spec, "serial", "id=serial,max_ports=4"),
        *_port("control", channels.control, 1),
        *_port("network", channels.network, 2),
        *_port("packets", channels.packets, 3),
        *_disk(spec, "image", spec.rootfs, read_only=True),
        *_disk(spec, "disk", spec.disk, read_only=False),
        *_shares(spec, channels.shares),
    ]
    if channels.monitor is not None:
        argv += [
            "-chardev",
            f"socket,id=monitor,fd={channels.monitor}",
            "-mon",
            "chardev=monitor,mode=control",
        ]
    if spec.sandboxed:
        sandbox = "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny"
        argv += ["-sandbox", sandbox]
    return argv


def kernel_command_line(spec: MachineSpec) -> str:
    """What the guest's kernel is told."""
    words = [
        f"console={_CONSOLES[spec.arch]}",
        "loglevel=6",
        "panic=-1",
        f"airlock.rootfs={spec.rootfs_format}",
    ]
    if spec.accelerator == "tcg":
        # An emulated CPU does not speculate: the work-arounds would only cost time.
        # Its TSC is made of the host's clock: comparing the two twice a second only keeps an idle machine awake.
        words += ["mitigations=off", "tsc=nowatchdog"]
        if spec.arch == "x86_64":
            # Linux tries out within a few ticks whether the timer's interrupt arrives, and panics if not, which
            # on a busy host happens by chance (1 of 47 boots). Under KVM, Linux leaves this check out by itself.
            words.append("no_timer_check")
    return " ".join(words)


def _processors(spec: MachineSpec) -> str:
    """How many there are.

    With room for no second one, TCG makes the guest's atomic operations of plain loads and stores (QEMU tcg/tcg-op.c,
    CF_PARALLEL). But it is by them that Linux orders memory, and a driver races with the threads of QEMU and virtiofsd
    that serve its device: each can take the other for awake, and then a request is never answered.
    """
    return "1,maxcpus=2" if spec.accelerator == "tcg" and spec.cpus == 1 else str(spec.cpus)


def _accelerator(spec: MachineSpec) -> str:
    return "tcg,thread=multi" if spec.accelerator == "tcg" else spec.accelerator


def _boot(spec: MachineSpec) -> Sequence[str]:
    """Nothing for a saved machine, which has it all in its RAM: QEMU would only read and keep the files."""
    if spec.ram is not None and spec.ram.incoming is not None:
        return ()
    return (
        *("-kernel", os.fspath(spec.kernel)),
        *("-initrd", os.fspath(spec.initrd)),
        *("-append", kernel_command_line(spec)),
    )


def _memory(spec: MachineSpec) -> list[str]:
    ram = spec.ram
    size = spec.memory // _MIB
    if ram is None:
        # What serves a share reads and writes the guest's memory.
        shared = any(share.daemon for share in spec.shares)
        return ["-object", f"memory-backend-memfd,id=ram,size={size}M,share=on"] if shared else []
    share = "on" if ram.shared else "off"
    backend = f"memory-backend-file,id=ram,size={size}M,mem-path={_escape(ram.file)},share={share}"
    return ["-object", backend, *(("-incoming", "defer") if ram.incoming is not None else ())]


def _port(name: str, fd: int, number: int) -> Sequence[str]:
    return (
        *("-chardev", f"socket,id={name},fd={fd}"),
        *("-device", f"virtserialport,bus=serial.0,nr={number},chardev={name},name=airlock.{name}"),
    )


def _virtio(spec: MachineSpec, kind: str, options: str) -> Sequence[str]:
    """A device that the guest notifies of what it has for it.

    KVM takes that note for QEMU's main loop, by an eventfd. Under TCG it is QEMU itself that writes to the eventfd of
    a queue, polls those of all queues in every round, and reads them: there, who notifies does the work at once.
    """
    at_once = ",ioeventfd=off" if spec.accelerator == "tcg" else ""
    return ("-device", f"virtio-{kind}-pci,{options},disable-legacy=on{at_once}")


def _disk(spec: MachineSpec, name: str, path: Path, *, read_only: bool) -> Sequence[str]:
    access = "read-only=on" if read_only else "read-only=off,discard=unmap,detect-zeroes=unmap"
    return (
        *("-blockdev", f"driver=file,node-name={name},filename={_escape(path)},{access}"),
        # By default a full host disk would pause the machine, without a word to anybody.
        *_virtio(spec, "blk", f"drive={name},serial=airlock-{name},werror=report,rerror=report"),
    )


def _shares(spec: MachineSpec, connections: Sequence[int]) -> list[str]:
    argv: list[str] = []
    connected = iter(connections)
    for share in spec.shares:
        if share.daemon is not None:
            argv += ["-chardev", f"socket,id={share.tag},fd={next(connected)}"]
            argv += ["-device", f"vhost-user-fs-pci,chardev={share.tag},tag={share.tag}"]
            continue
        access = ",readonly=on" if share.read_only else ""
        options = (
            f"local,id={share.tag},path={_escape(share.source)},security_model=none,multidevs=remap{access}"
        )
        argv += ["-fsdev", options]
        argv += _virtio(spec, "9p", f"fsdev={share.tag},mount_tag={share.tag}")
    return argv


def _escape(path: Path | str) -> str:
    """QEMU's options end at a comma; a doubled one stands for itself."""
    return os.fspath(path).replace(",", ",,")
