"""Connecting without waiting: to checked addresses in their order, or to a Unix socket."""

from __future__ import annotations

import errno
import os
import socket
import stat
import time
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

from airlock_runner.sockets import connect_in

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from airlock_runner.net.addresses import Address
    from airlockd.protocol.loop import Loop

ATTEMPT_SECONDS = 4.0
"""For each address but the last, which has as long as the kernel and the whole dial give it."""

_KNOWN = {
    errno.ECONNREFUSED: "ECONNREFUSED",
    errno.EHOSTUNREACH: "EHOSTUNREACH",
    errno.ENETUNREACH: "ENETUNREACH",
    errno.ETIMEDOUT: "ETIMEDOUT",
    errno.ECONNRESET: "ECONNRESET",
    errno.EACCES: "EACCES",
    errno.EPERM: "EACCES",
    errno.ENOENT: "ECONNREFUSED",
    errno.ENOTDIR: "ECONNREFUSED",
    errno.ELOOP: "ECONNREFUSED",
    errno.EADDRNOTAVAIL: "ENETUNREACH",
    errno.EAFNOSUPPORT: "ENETUNREACH",
    errno.ENETDOWN: "ENETUNREACH",
}


def errno_name(number: int) -> str:
    """What the guest is told of an error of the host's."""
    return _KNOWN.get(number, "EHOSTUNREACH")


class Endpoint(NamedTuple):
    """An address that was checked, and a port."""

    address: Address
    port: int


_FAMILIES = {4: socket.AF_INET, 6: socket.AF_INET6}


class Dial:
    """Tries endpoints until one answers; then calls `connected(socket, endpoint)`, or `failed(errno)` for none.

    Both are called from the loop, or at once. `tick` is to be called now and then, for the time limit of an attempt.
    """

    def __init__(
        self,
        loop: Loop,
        endpoints: Sequence[Endpoint],
        connected: Callable[[socket.socket, Endpoint], None],
        failed: Callable[[int], None],
    ) -> None:
        self._loop, self._endpoints = loop, list(endpoints)
        self._connected, self._failed = connected, failed
        self._socket: socket.socket | None = None
        self._error: int | None = None
        self._since = 0.0

    def start(self) -> None:
        """Try the next one."""
        while self._endpoints:
            target = self._endpoints.pop(0)
            try:
                handle = socket.socket(_FAMILIES[target.address.version], socket.SOCK_STREAM)
            except OSError as error:
                self._note(error.errno)
                continue
            handle.setblocking(False)
            result = _connect(handle, target)
            if result == errno.EINPROGRESS and target.address.is_loopback:
                # On this host it is there by now, or refused: no need to wait for the loop to say so.
                result = _ask_again(handle, target)
            if result == errno.EINPROGRESS:
                self._socket, self._since = handle, time.monotonic()
                self._loop.on_writable(handle.fileno(), partial(self._settled, target))
                return
            if not result and not _is_itself(handle):
                self._connected(handle, target)
                return
            handle.close()
            self._note(result or errno.ECONNREFUSED)
        self._failed(self._error or errno.EHOSTUNREACH)

    def tick(self, now: float) -> None:
        """Go on to the next address where one does not answer."""
        if self._socket is not None and self._endpoints and now - self._since > ATTEMPT_SECONDS:
            self._drop()
            self._note(errno.ETIMEDOUT)
            self.start()

    def cancel(self) -> None:
        """Give up; nothing is called any more."""
        self._endpoints.clear()
        self._drop()

    def _settled(self, target: Endpoint) -> None:
        handle = self._socket
        assert handle is not None
        result = handle.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if not result and _is_itself(handle):
            result = errno.ECONNREFUSED
        if result:
            self._drop()
            self._note(result)
            self.start()
            return
        self._loop.forget(handle.fileno())
        self._socket = None
        self._connected(handle, target)

    def _drop(self) -> None:
        if self._socket is not None:
            self._loop.forget(self._socket.fileno())
            self._socket.close()
            self._socket = None

    def _note(self, number: int | None) -> None:
        # That one family has no route says less than what an address of the other answered.
        if self._error is None or number not in (errno.ENETUNREACH, errno.EADDRNOTAVAIL):
            self._error = number


def connect_unix(path: Path, guarded: Path | None) -> socket.socket:
    """A non-blocking socket connected to the Unix socket at `path`. Raises OSError; BlockingIOError: try again.

    `guarded` is a directory above `path` that a sandbox can write to: from there down, no symlink is followed.
    """
    if not hasattr(os, "O_PATH"):
        return _connect_by_path(path, guarded)
    flags = os.O_PATH | os.O_CLOEXEC
    if guarded is None:
        found = os.open(path, flags)
    else:
        found = os.open(guarded, flags)
        for part in path.relative_to(guarded).parts:
            try:
                deeper = os.open(part, flags | os.O_NOFOLLOW, dir_fd=found)
            finally:
                os.close(found)
            found = deeper
    try:
        if not stat.S_ISSOCK(os.fstat(found).st_mode):
            raise ConnectionRefusedError(errno.ECONNREFUSED, f"{path} is not a socket")
        handle = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        handle.setblocking(False)
        try:
            # The very inode that was looked at, at whatever depth it lies.
            handle.connect(f"/proc/self/fd/{found}")
        except OSError:
            handle.close()
            raise
    finally:
        os.close(found)
    return handle


def _connect_by_path(path: Path, guarded: Path | None) -> socket.socket:
    """The same where the kernel has no O_PATH (macOS)."""
    if guarded is not None and path.resolve() != guarded.resolve() / path.relative_to(guarded):
        raise ConnectionRefusedError(errno.ECONNREFUSED, f"{path} leads elsewhere by a symlink")
    parent = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        handle = connect_in(parent, path.name)
    finally:
        os.close(parent)
    handle.setblocking(False)
    return handle


def _connect(handle: socket.socket, target: Endpoint) -> int:
    # What comes from the guest was gathered there; and a peer that vanished should be noticed some day.
    handle.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    handle.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    try:
        return handle.connect_ex((str(target.address), target.port))
    except OSError as error:
        return error.errno or errno.EHOSTUNREACH


def _ask_again(handle: socket.socket, target: Endpoint) -> int:
    result = handle.connect_ex((str(target.address), target.port))
    return {errno.EISCONN: 0, errno.EALREADY: errno.EINPROGRESS}.get(result, result)


def _is_itself(handle: socket.socket) -> bool:
    """Where nobody listens at a port that the kernel just gave our end, a socket connects to itself."""
    try:
        return bool(handle.getsockname() == handle.getpeername())
    except OSError:
        return False
