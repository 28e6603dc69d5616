"""What is the same for every project, before READY: kernel filesystems, modules, ports, the image.

The supervisor calls it, in the order of this file.
"""

from __future__ import annotations

import os
from pathlib import Path

from airlockd import linux

MODULES = Path("/lib/modules")
IMAGE = "/image"
_EVERYBODYS = ("net/tun", "fuse")
_EVERY_COMMANDS = (
    "/etc/passwd", "/etc/group", "/etc/ld.so.cache", "/lib64/ld-linux-x86-64.so.2", "/lib/ld-linux-aarch64.so.1",
    "/usr/bin/sh", "/usr/bin/bash",
)  # fmt: skip
_SETTINGS = {
    # kcompactd would look for fragmented memory twice a second.
    "vm/compaction_proactiveness": b"0",
    # Nobody sees what the watchdog says of a processor that hangs; the host has one for the whole machine.
    "kernel/watchdog": b"0",
    # A group of its own for each session is for desktops. To make one is a good part of starting a command.
    "kernel/sched_autogroup_enabled": b"0",
}
_QUEUE = {"scheduler": b"none", "wbt_lat_usec": b"0"}
"""The host schedules what its disks do: a second scheduler before it, and throttling of writes, only take time."""
_BLOCK_DRIVER = Path("/sys/bus/virtio/drivers/virtio_blk")


def mount_kernel_filesystems() -> None:
    """/proc, /sys, /dev and what belongs below them, in airlockd's own root."""
    hidden = linux.MS_NOSUID | linux.MS_NODEV | linux.MS_NOEXEC
    linux.mount("proc", "/proc", "proc", hidden)
    linux.mount("sysfs", "/sys", "sysfs", hidden)
    linux.mount("devtmpfs", "/dev", "devtmpfs", linux.MS_NOSUID, "mode=0755")
    for name, kind, flags, options in (
        # Terminals are devices, which programs open by their names: /dev/stderr leads to one.
        ("pts", "devpts", linux.MS_NOSUID | linux.MS_NOEXEC, "mode=0620,ptmxmode=0666,gid=5"),
        # Programs map code there that they make: as on a host with systemd, it may be executed.
        ("shm", "tmpfs", linux.MS_NOSUID | linux.MS_NODEV, "mode=1777"),
        ("mqueue", "mqueue", hidden, ""),
    ):
        os.makedirs(f"/dev/{name}", exist_ok=True)
        linux.mount(kind, f"/dev/{name}", kind, flags, options)
    for link, target in (("fd", "/proc/self/fd"), ("stdin", "fd/0"), ("stdout", "fd/1"), ("stderr", "fd/2")):
        os.symlink(target, f"/dev/{link}")
    linux.mount("cgroup2", "/sys/fs/cgroup", "cgroup2", hidden, "nsdelegate")
    controllers = Path("/sys/fs/cgroup/cgroup.controllers").read_text().split()
    enable = " ".join(f"+{name}" for name in controllers)
    Path("/sys/fs/cgroup/cgroup.subtree_control").write_text(enable)


def let_it_rest() -> None:
    """Leave out what the kernel does for desktops, and what would wake an idle machine, and with it the host.

    Source: Linux Documentation/admin-guide/sysctl/.
    """
    for name, value in _SETTINGS.items():
        _set(f"/proc/sys/{name}", value)


def load_modules() -> None:
    """The modules of the initrd, in the order that the builder found."""
    for name in (MODULES / "order").read_text().split():
        linux.load_module(str(MODULES / f"{name}.ko"))


def open_devices() -> None:
    """Make those devices everybody's that udev would: rootless containers need them."""
    for name in _EVERYBODYS:
        try:
            os.chmod(f"/dev/{name}", 0o666)
        except FileNotFoundError:
            # A kernel without it.
            pass


def open_port(name: str) -> int:
    """The virtio-serial port of this name, opened; waits until the kernel has found it.

    The node's number depends on enumeration (FACTS.md), so the port is found by its name in sysfs.
    """
    # Watch first, look then: a port that appears in between is seen either way.
    appeared = linux.watch_created("/dev")
    try:
        while True:
            for port in Path("/sys/class/virtio-ports").iterdir():
                if _read(port / "name") == name and os.path.exists(f"/dev/{port.name}"):
                    return os.open(f"/dev/{port.name}", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
            os.read(appeared, 4096)
    finally:
        os.close(appeared)


def find_disk(serial: str) -> str | None:
    """The device of the block device with this serial, such as /dev/vda; None where there is none."""
    for block in Path("/sys/block").iterdir():
        if _read(block / "serial") == serial:
            return _taken(block.name)
    return None


def _taken(name: str) -> str:
    """The device of this name, with its queue set up."""
    for setting, value in _QUEUE.items():
        _set(f"/sys/block/{name}/queue/{setting}", value)
    return f"/dev/{name}"


def open_disk(device: str, size: int) -> tuple[int, str]:
    """A disk that nobody uses yet, opened for reading once the kernel knows that it has `size` bytes; and its device.

    A machine that was saved is restored with another disk, and the kernel asks for the size when its driver is bound.
    """
    fd = os.open(device, os.O_RDONLY | os.O_CLOEXEC)
    if os.lseek(fd, 0, os.SEEK_END) == size:
        return fd, device
    os.close(fd)
    owner = Path(f"/sys/class/block/{device.removeprefix('/dev/')}/device").resolve()
    for order in ("unbind", "bind"):
        (_BLOCK_DRIVER / order).write_text(owner.name)
    device = _taken(os.listdir(owner / "block")[0])
    return os.open(device, os.O_RDONLY | os.O_CLOEXEC), device


def mount_image(kind: str) -> None:
    """The image's root filesystem, read-only, at IMAGE. Raises OSError where the machine has no such device."""
    device = find_disk("airlock-image")
    if device is None:
        raise FileNotFoundError("the machine has no block device airlock-image")
    linux.mount(device, IMAGE, kind, linux.MS_RDONLY)


def read_ahead() -> None:
    """Have what nearly every command is made of in the page cache, and so in a saved machine's memory."""
    image = os.open(IMAGE, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    libraries = f"/usr/lib/{linux.MACHINE}-linux-gnu"
    for path in (*_EVERY_COMMANDS, f"{libraries}/libc.so.6", f"{libraries}/libtinfo.so.6"):
        try:
            fd = linux.open_in_root(image, path, os.O_RDONLY | os.O_NONBLOCK)
        except OSError:
            # Another distribution's image: its files are read when they are needed.
            continue
        while os.read(fd, 1 << 20):
            pass
        os.close(fd)
    os.close(image)


def _read(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""


def _set(path: str, value: bytes) -> None:
    try:
        linux.write_file(path, value)
    except OSError:
        # A kernel without what is set there, or that refuses it. It only saves time: no reason not to boot.
        pass
