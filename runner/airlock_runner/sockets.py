"""Unix sockets at paths of any length. The kernel allows 107 bytes, a project's directory may be deeper."""

from __future__ import annotations

import errno
import os
import socket
import stat
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


def bind_in(directory: int, name: str) -> socket.socket:
    """A stream socket bound to `name` in this open directory, for its owner only. Raises OSError."""
    with _from(directory):
        previous = os.umask(0o177)
        try:
            handle = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            handle.bind(name)
        finally:
            os.umask(previous)
    return handle


def connect_in(directory: int, name: str) -> socket.socket:
    """A stream socket connected to `name` in this open directory, a symlink not followed.

    Raises OSError where nobody listens.
    """
    if hasattr(os, "O_PATH"):
        return _connect_to(_open(name, directory), blocking=True)
    if not stat.S_ISSOCK(os.stat(name, dir_fd=directory, follow_symlinks=False).st_mode):
        raise _no_socket(name)
    with _from(directory):
        handle = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            handle.connect(name)
        except OSError:
            handle.close()
            raise
    return handle


def connect_at(path: Path, guarded: Path | None) -> socket.socket:
    """A non-blocking socket connected to the Unix socket at `path`. Raises OSError; BlockingIOError: try again.

    `guarded` is a directory above `path` that a sandbox can write to: from there down, no symlink is followed.
    """
    if hasattr(os, "O_PATH"):
        return _connect_to(_open_at(path, guarded), blocking=False)
    _check_at(path, guarded)
    parent = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        handle = connect_in(parent, path.name)
    finally:
        os.close(parent)
    handle.setblocking(False)
    return handle


def is_socket_at(path: Path, guarded: Path | None) -> bool:
    """Whether there is a socket that `connect_at` would connect to, as far as can be seen from here."""
    try:
        if hasattr(os, "O_PATH"):
            os.close(_open_at(path, guarded))
            return True
        _check_at(path, guarded)
        return path.is_socket()
    except (OSError, ValueError):
        # No right to look there, or no path at all.
        return False


def _open_at(path: Path, guarded: Path | None) -> int:
    """The very inode of a socket, to look at or to connect to, at whatever depth it lies. Raises OSError."""
    if guarded is None:
        return _open(os.fspath(path), None, follow=True)
    found = os.open(guarded, os.O_PATH | os.O_CLOEXEC)
    try:
        *way, name = path.relative_to(guarded).parts
        for part in way:
            if part == "..":
                raise _no_socket(path)
            deeper = os.open(part, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=found)
            os.close(found)
            found = deeper
        return _open(name, found)
    finally:
        os.close(found)


def _open(name: str, directory: int | None, *, follow: bool = False) -> int:
    flags = os.O_PATH | os.O_CLOEXEC | (0 if follow else os.O_NOFOLLOW)
    found = os.open(name, flags, dir_fd=directory)
    if not stat.S_ISSOCK(os.fstat(found).st_mode):
        os.close(found)
        raise _no_socket(name)
    return found


def _connect_to(found: int, *, blocking: bool) -> socket.socket:
    """Connected to this open inode, which is closed."""
    handle = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    handle.setblocking(blocking)
    try:
        handle.connect(f"/proc/self/fd/{found}")
    except OSError:
        handle.close()
        raise
    finally:
        os.close(found)
    return handle


def _check_at(path: Path, guarded: Path | None) -> None:
    """The same look where the kernel has no O_PATH (macOS)."""
    if guarded is not None and path.resolve() != guarded.resolve() / path.relative_to(guarded):
        raise ConnectionRefusedError(errno.ECONNREFUSED, f"{path} leads elsewhere by a symlink")


def _no_socket(name: str | Path) -> OSError:
    return ConnectionRefusedError(errno.ECONNREFUSED, f"{name} is not a socket")


@contextmanager
def _from(directory: int) -> Iterator[None]:
    """Work in `directory` for a moment; only one thread of ours ever runs here."""
    before = os.open(".", os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fchdir(directory)
        yield
    finally:
        os.fchdir(before)
        os.close(before)
