"""Connecting without waiting to checked addresses, in their order."""

from __future__ import annotations

import errno
import socket
import time
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

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
