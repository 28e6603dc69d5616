"""What both sides need to keep a single file the same here and there: versions, safe opening, receiving.

Used by airlockd.files and by the runner's files.py. The rules of who wins are the runner's alone.
"""

from __future__ import annotations

import errno
import os
import stat
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from airlockd.protocol.link import Link

MAX_FILE = 16 * 1024 * 1024
"""Bytes of a file that is mounted by itself. It is held in memory while it is on its way."""

RACY_NS = 20_000_000
"""A file that was changed so short a time ago may be changed again without a sign: the clocks of files tick slowly."""

Version = tuple[int, int, int, int]
"""Inode, size, and the times of the last change to content and to anything, in nanoseconds."""


def _nothing() -> None:
    pass


def version(status: os.stat_result) -> Version:
    """What tells one content of a file from another without reading it."""
    return status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns


def version_at(directory: int, name: str) -> Version | None:
    """That of a regular file; None where there is none, a symlink included."""
    try:
        status = os.stat(name, dir_fd=directory, follow_symlinks=False)
    except OSError:
        return None
    return version(status) if stat.S_ISREG(status.st_mode) else None


def racy(seen: Version | None) -> bool:
    """Whether the file may have got another content since, and look the same."""
    return seen is not None and abs(time.time_ns() - seen[3]) < RACY_NS


def open_file(directory: int, name: str, flags: int = os.O_RDONLY) -> tuple[int, os.stat_result]:
    """A regular file and its status. Follows no symlink, waits for no pipe. Raises OSError."""
    fd = os.open(name, flags | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=directory)
    status = os.fstat(fd)
    if stat.S_ISREG(status.st_mode) and status.st_size <= MAX_FILE:
        return fd, status
    os.close(fd)
    if stat.S_ISREG(status.st_mode):
        raise OSError(errno.EFBIG, f"larger than {MAX_FILE >> 20} MB", name)
    raise OSError(errno.EINVAL, "not a regular file", name)


def read_file(directory: int, name: str) -> tuple[bytes, os.stat_result]:
    """The content of a regular file and the status that goes with it. Raises OSError, also where it is being changed
    without end.
    """
    fd, status = open_file(directory, name)
    with open(fd, "rb") as opened:
        for _ in range(10):
            data = opened.read(MAX_FILE + 1)
            before, status = status, os.fstat(fd)
            if version(before) == version(status) and len(data) == status.st_size:
                return data, status
            opened.seek(0)
    raise OSError(errno.EAGAIN, "it is being written to", name)


def replace_file(
    directory: int, name: str, data: bytes | bytearray, *, mode: int, owner: tuple[int, int]
) -> None:
    """Give `name` another content as a whole: readers see the old one or the new one. Raises OSError."""
    temporary = f".{name[:200]}.airlock-{os.getpid()}"
    try:
        os.unlink(temporary, dir_fd=directory)
    except FileNotFoundError:
        pass
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    fd = os.open(temporary, flags, 0o600, dir_fd=directory)
    try:
        try:
            write_all(fd, data)
            made = os.fstat(fd)
            if (made.st_uid, made.st_gid) != owner:
                os.fchown(fd, *owner)
            os.fchmod(fd, mode & 0o777)
            os.fsync(fd)
        finally:
            os.close(fd)
        os.rename(temporary, name, src_dir_fd=directory, dst_dir_fd=directory)
    except OSError:
        os.unlink(temporary, dir_fd=directory)
        raise


def overwrite_file(directory: int, name: str, data: bytes | bytearray, *, sync: bool = True) -> None:
    """Give the file that is there another content in its place, and on the disk with `sync`. Raises OSError."""
    fd, _status = open_file(directory, name, os.O_WRONLY)
    try:
        write_all(fd, data)
        # Last, so that no reader finds it empty.
        os.ftruncate(fd, len(data))
        if sync:
            os.fsync(fd)
    finally:
        os.close(fd)


def write_all(fd: int, data: bytes | bytearray) -> None:
    """Write every byte."""
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


class Sender:
    """Sends what is in memory on a stream, as fast as its credit allows."""

    def __init__(self, link: Link, stream: int, data: bytes, on_done: Callable[[], None] = _nothing) -> None:
        self._link, self._stream, self._rest, self._on_done = link, stream, memoryview(data), on_done
        self._done = False
        link.open(stream, self)
        self._send()

    def on_data(self, data: bytes | memoryview) -> None:
        """Nobody sends on this stream in our direction; drop it."""
        self._link.mux.consumed(self._stream, len(data))

    def on_end(self) -> None:
        """The other direction was never used."""

    def on_credit(self, amount: int) -> None:
        """Go on."""
        if not self._done:
            self._send()

    def on_reset(self) -> None:
        """Nobody wants the rest."""
        self._finish()

    def _send(self) -> None:
        mux = self._link.mux
        now = self._rest[: mux.credit(self._stream)]
        self._rest = self._rest[len(now) :]
        if now:
            mux.send_data(self._stream, now)
        if not self._rest:
            mux.send_end(self._stream)
            self._finish()

    def _finish(self) -> None:
        if not self._done:
            self._done = True
            self._on_done()


class Receiver:
    """Takes a stream into memory, MAX_FILE bytes at most. `on_done` gets what came, and what went wrong if something
    did.
    """

    def __init__(self, link: Link, stream: int, on_done: Callable[[bytearray, str | None], None]) -> None:
        self._link, self._stream, self._on_done = link, stream, on_done
        self._data = bytearray()
        self._done = False
        link.open(stream, self)

    def on_data(self, data: bytes | memoryview) -> None:
        """Keep it, unless it is too much."""
        if self._done:
            return
        self._data += data
        if len(self._data) > MAX_FILE:
            self._link.mux.reset(self._stream)
            self._finish(f"larger than {MAX_FILE >> 20} MB")
        else:
            self._link.mux.consumed(self._stream, len(data))

    def on_end(self) -> None:
        """That was all."""
        self._link.mux.send_end(self._stream)
        self._finish(None)

    def on_credit(self, amount: int) -> None:
        """Nothing is sent from here."""

    def on_reset(self) -> None:
        """The other end gave up."""
        self._finish("cut short")

    def _finish(self, problem: str | None) -> None:
        if not self._done:
            self._done = True
            self._on_done(self._data, problem)
