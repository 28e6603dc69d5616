"""Servers of this machine for tests to connect to: each connection in a thread, until the block ends."""

from __future__ import annotations

import errno
import random
import socket
import threading
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


@contextmanager
def serving(handle: Callable[[socket.socket], object], where: Any = ("127.0.0.1", 0)) -> Iterator[int]:
    """A server at a free port of the loopback, which it gives, or at a path; what breaks off is no error of its."""
    family = socket.AF_UNIX if isinstance(where, str) else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind(where)
    listener.listen(4096)

    def serve(connected: socket.socket) -> None:
        with connected, suppress(OSError):
            handle(connected)

    def accept() -> None:
        while True:
            try:
                connected, _ = listener.accept()
            except OSError:
                return
            threading.Thread(target=serve, args=(connected,), daemon=True).start()

    thread = threading.Thread(target=accept, daemon=True)
    thread.start()
    try:
        yield listener.getsockname()[1] if family == socket.AF_INET else 0
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join()


def echo(connected: socket.socket) -> None:
    """Says what it is told, as it is told, and ends when the other side does."""
    while data := connected.recv(65536):
        connected.sendall(data)


def echo_whole(connected: socket.socket) -> None:
    """Says what it was told, once the other side has ended its half."""
    said = b""
    while data := connected.recv(65536):
        said += data
    connected.sendall(said)


def free_port() -> int:
    """A port at which nobody listens now, and that no connection from this machine gets."""
    # Those that the kernel gives to whoever asks for any may be in use by then, for tests run beside each other.
    for port in random.sample(range(10000, 30000), 1000):
        with suppress(OSError), socket.create_server(("127.0.0.1", port)):
            return port
    raise OSError(errno.EADDRINUSE, "no port is free")
