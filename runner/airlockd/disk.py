"""The project's disk: format it once, check what it is, grow it, and empty what was moved to its trash.

Done in the guest, with the image's own e2fsprogs, so that the host never parses a filesystem that a guest wrote.
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct
from typing import TYPE_CHECKING, NamedTuple

from airlockd import boot, linux

if TYPE_CHECKING:
    from collections.abc import Callable

DISK = "/disk"
LABEL = "airlock-disk"
_SUPERBLOCK, _SUPERBLOCK_SIZE = 1024, 1024
_MAGIC = 0xEF53
_HAS_ERRORS = 2
_EXT4_IOC_RESIZE_FS = 0x40086610


_RESERVE, _RESERVE_SIZE = f"{DISK}/reserve", 128 << 10


class DiskError(Exception):
    """The disk cannot be used; the message is for the user."""


class Superblock(NamedTuple):
    """What matters of an ext4 superblock: bytes of filesystem and of a block, and whether errors were recorded."""

    size: int
    block_size: int
    has_errors: bool


def mount(device: str, size: int, new: bool) -> str:
    """Mount the project's disk at DISK; its file has `size` bytes. `new`: it was made just now, so it is formatted.

    Gives its device, which may be another than `device` by then.

    Raises DiskError for a disk that is not airlock's or is cut short: it is never formatted again in silence.
    """
    fd, device = boot.open_disk(device, size)
    try:
        # A device consists of whole sectors.
        size = os.lseek(fd, 0, os.SEEK_END)
        if new:
            run(["mke2fs", "-q", "-F", "-t", "ext4", "-L", LABEL, "-m", "0", *_FORMAT, device], device)
        superblock = parse_superblock(os.pread(fd, _SUPERBLOCK_SIZE, _SUPERBLOCK))
        if superblock.size > size:
            raise DiskError(
                f"disk.img is cut short: its filesystem has {superblock.size} bytes, the file has {size}"
            )
        if superblock.has_errors:
            _check(device)
        try:
            _mount(device)
        except OSError:
            # Nothing is recorded of what was damaged from outside.
            _check(device)
            try:
                _mount(device)
            except OSError as error:
                raise DiskError(
                    f"disk.img cannot be mounted, though e2fsck found no fault: {error.strerror}"
                ) from None
    finally:
        # Not before it is mounted: of a device that nobody has open, the kernel forgets what it knows.
        os.close(fd)
    if size // superblock.block_size > superblock.size // superblock.block_size:
        _grow(size // superblock.block_size)
    return device


def _mount(device: str) -> None:
    linux.mount(device, DISK, "ext4", linux.MS_NOATIME, _OPTIONS)


def _check(device: str) -> None:
    run(["e2fsck", "-p", "-f", device], device, accept=(0, 1))


_FORMAT = (
    # The file is new, so what is not written to it is zero, and it stays sparse.
    *("-E", "assume_storage_prezeroed=1,nodiscard"),
    # Of a 10 GB disk, each mount would read 512 blocks of it one by one: a tenth of all that a start costs.
    *("-O", "^orphan_file"),
)
# Maps of free blocks are read when they are needed, and not all of them after each mount.
_OPTIONS = "discard,errors=remount-ro,no_prefetch_block_bitmaps"


def parse_superblock(raw: bytes) -> Superblock:
    """Offsets: Linux Documentation/filesystems/ext4/super.rst. Raises DiskError."""
    if len(raw) < _SUPERBLOCK_SIZE:
        raise DiskError("disk.img is empty")
    magic, state = struct.unpack_from("<HH", raw, 0x38)
    label = raw[0x78:0x88].rstrip(b"\0")
    if magic != _MAGIC or label != LABEL.encode():
        raise DiskError("disk.img holds something that airlock did not write")
    low, log_size = struct.unpack_from("<I", raw, 0x4)[0], struct.unpack_from("<I", raw, 0x18)[0]
    high = struct.unpack_from("<I", raw, 0x150)[0]
    if log_size > 6:
        raise DiskError("disk.img has a damaged superblock")
    block_size = 1024 << log_size
    return Superblock((high << 32 | low) * block_size, block_size, bool(state & _HAS_ERRORS))


def run(command: list[str], device: str, accept: tuple[int, ...] = (0,)) -> None:
    """Run one of the initrd's tools to its end. Raises DiskError with its status."""
    pid = os.posix_spawn(f"/usr/sbin/{command[0]}", command, {"PATH": "/usr/sbin", "LC_ALL": "C"})
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    if status not in accept:
        raise DiskError(f"{command[0]} failed on {device} with status {status}")


def directory(path: str, mode: int = 0o777) -> bool:
    """Make the directory `path` of the disk where it is missing; gives whether it was.

    Root without harden can write to the disk past all that the sandbox sees of it, so no symlink is followed. What is
    found stays as it is: nobody but airlockd runs yet. Raises DiskError and OSError.
    """
    made = False
    while True:
        try:
            os.close(linux.open_without_symlinks(path, os.O_PATH | os.O_DIRECTORY))
            return made
        except FileNotFoundError:
            os.makedirs(path, mode)
            made = True
        except OSError as error:
            if error.errno not in (errno.ELOOP, errno.ENOTDIR):
                raise
            name = path.removeprefix(f"{DISK}/")
            raise DiskError(
                f"disk.img holds something that airlock did not write: {name} is no directory"
            ) from None


def make_room_for(work: Callable[[], None]) -> None:
    """Do `work`, on a full disk with what is kept for that; and keep it, unless the disk is still full. Raises OSError.

    So the sandbox of a full disk can be started, to delete something.
    """
    try:
        work()
    except OSError as error:
        if error.errno != errno.ENOSPC or not os.path.lexists(_RESERVE):
            raise
        os.unlink(_RESERVE)
        work()
        return
    if not os.path.lexists(_RESERVE):
        fd = os.open(_RESERVE, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            os.posix_fallocate(fd, 0, _RESERVE_SIZE)
        except OSError:
            os.unlink(_RESERVE)
        finally:
            os.close(fd)


def discard(directory: str, trash: str) -> None:
    """Move `directory` away at once; `empty` deletes it later, however large it is. `trash` is there."""
    number = len(os.listdir(trash))
    while os.path.lexists(f"{trash}/{number}"):
        number += 1
    os.rename(directory, f"{trash}/{number}")


def empty(trash: str) -> int | None:
    """Delete what lies in `trash`, in a child whose pid is returned; None where there is nothing to do."""
    if not os.path.isdir(trash) or not os.listdir(trash):
        return None
    pid = os.fork()
    if pid:
        return pid
    try:
        os.nice(19)
        fd = os.open(trash, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        _delete_below(fd)
    finally:
        os._exit(0)


def _delete_below(directory: int) -> None:
    for entry in list(os.scandir(directory)):
        if entry.is_dir(follow_symlinks=False):
            child = os.open(entry.name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=directory)
            _delete_below(child)
            os.close(child)
            os.rmdir(entry.name, dir_fd=directory)
        else:
            os.unlink(entry.name, dir_fd=directory)


def _grow(blocks: int) -> None:
    fd = os.open(DISK, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.ioctl(fd, _EXT4_IOC_RESIZE_FS, struct.pack("=Q", blocks))
    except OSError as error:
        raise DiskError(f"the disk's filesystem cannot grow: {error.strerror}") from error
    finally:
        os.close(fd)
