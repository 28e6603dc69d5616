"""Unix sockets at paths of any length. The kernel allows 107 bytes, a project's directory may be deeper."""

from __future__ import annotations

import os
import socket
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator


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
    """A stream socket connected to `name` in this open directory. Raises OSError where nobody listens."""
    with _from(directory):
        handle = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            handle.connect(name)
        except OSError:
            handle.close()
            raise
    return handle


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
