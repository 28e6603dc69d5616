"""Processes of the sandbox that ask airlockd before the kernel does what they call: seccomp_unotify(2).

What is asked about, and who answers, is given by name of the system call: renames.py and watches.py have the reasons.
A process has one filter that asks, because the kernel allows no second one.
"""

from __future__ import annotations

import errno
import fcntl
import os
import select
import socket
import struct
from typing import TYPE_CHECKING, NamedTuple

from airlockd import linux

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from airlockd.protocol.loop import Loop

_CALLS = {
    "x86_64": (0xC000003E, {"rename": 82, "renameat": 264, "renameat2": 316, "inotify_add_watch": 254}),
    "aarch64": (0xC00000B7, {"renameat": 38, "renameat2": 276, "inotify_add_watch": 27}),
}
"""Of each architecture: its number for filters (linux/audit.h), and those of the calls that it has."""

_LOAD, _EQUAL, _RETURN = 0x20, 0x15, 0x06
_ALLOW, _ASK = 0x7FFF0000, 0x7FC00000
_NUMBER, _ARCHITECTURE = 0, 4
# linux/seccomp.h
_RECEIVE, _SEND, _STILL_THERE = 0xC0502100, 0xC0182101, 0x40082102
_NOTIFICATION, _ANSWER, _GO_ON = struct.Struct("=QIIiIQ6Q"), struct.Struct("=QqiI"), 1
_PAGE, _PATH_MAX = 4096, 4096


class Question(NamedTuple):
    """What a process asks: `number` is the kernel's, of this question to this listener; `process` may be a thread."""

    listener: int
    number: int
    process: int
    call: str
    arguments: tuple[int, ...]

    def strings(self, *arguments: int) -> list[bytes]:
        """The paths that these arguments point at. Raises OSError and OverflowError."""
        memory = os.open(f"/proc/{self.process}/mem", os.O_RDONLY | os.O_CLOEXEC)
        try:
            return [_string(memory, self.arguments[each]) for each in arguments]
        finally:
            os.close(memory)

    def require(self) -> None:
        """Raises OSError where whoever asked this is there no more, so that his number may be another's."""
        fcntl.ioctl(self.listener, _STILL_THERE, struct.pack("=Q", self.number))

    def answer(self, code: int | None) -> None:
        """This errno, or 0; None has the kernel do it."""
        flags = _GO_ON if code is None else 0
        try:
            fcntl.ioctl(self.listener, _SEND, _ANSWER.pack(self.number, 0, -(code or 0), flags))
        except OSError:
            # It was killed meanwhile.
            pass


class Asks:
    """All of a sandbox. Made before READY, so that a restored machine has it."""

    def __init__(self, loop: Loop) -> None:
        self._loop = loop
        self._handlers: dict[str, Callable[[Question], bool]] = {}
        self._program = b""
        self._names = {number: name for name, number in _CALLS[linux.MACHINE][1].items()}
        self._here, self._there = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        loop.on_readable(self._here.fileno(), self._take)

    def about(self, handlers: Mapping[str, Callable[[Question], bool]]) -> None:
        """Ask about these calls, by name, too. Their handlers say whether they answer themselves.

        Where they do not, or raise OSError or ValueError, the kernel does what was called, as if nobody had asked.
        """
        self._handlers.update(handlers)
        self._program = program(linux.MACHINE, self._handlers)

    def ask(self) -> None:
        """In a child: it and all of its children ask from now on. A kernel that cannot do that has it as it was."""
        if not self._program:
            return
        try:
            listener = linux.seccomp_listener(self._program)
        except OSError:
            return
        rights = struct.pack("=i", listener)
        self._there.sendmsg([b"\0"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)])
        os.close(listener)

    def _take(self) -> None:
        _, messages, _, _ = self._here.recvmsg(1, socket.CMSG_SPACE(4), socket.MSG_CMSG_CLOEXEC)
        for _, _, rights in messages:
            (fd,) = struct.unpack("=i", rights)
            self._loop.on_readable(fd, lambda fd=fd: self._serve(fd))  # type: ignore[misc]

    def _serve(self, listener: int) -> None:
        poller = select.poll()
        poller.register(listener, select.POLLIN)
        if not any(events & select.POLLIN for _, events in poller.poll(0)):
            # Nobody is left who could ask; receiving would wait for ever.
            self._loop.forget(listener)
            os.close(listener)
            return
        notification = bytearray(_NOTIFICATION.size)
        try:
            fcntl.ioctl(listener, _RECEIVE, notification)
        except OSError:
            # It was killed meanwhile.
            return
        number, process, _, call, _, _, *arguments = _NOTIFICATION.unpack(notification)
        question = Question(listener, number, process, self._names[call], tuple(arguments))
        try:
            if self._handlers[question.call](question):
                return
        except (OSError, OverflowError, ValueError):
            # It is gone, or what it asks is nothing that the kernel would do either.
            pass
        question.answer(None)


def program(machine: str, calls: Iterable[str]) -> bytes:
    """The filter that has these calls ask, as classic BPF, for `machine` as uname names it. Raises KeyError.

    What an architecture has not need not be asked about.
    """
    architecture, known = _CALLS[machine]
    numbers = sorted(known[name] for name in calls if name in known)
    code = [(_LOAD, 0, 0, _ARCHITECTURE), (_EQUAL, 0, len(numbers) + 1, architecture), (_LOAD, 0, 0, _NUMBER)]
    code += [(_EQUAL, len(numbers) - index, 0, number) for index, number in enumerate(numbers)]
    code += [(_RETURN, 0, 0, _ALLOW), (_RETURN, 0, 0, _ASK)]
    return b"".join(struct.pack("=HBBI", *each) for each in code)


def _string(memory: int, address: int) -> bytes:
    """A path in the memory of a process. Raises OSError and OverflowError."""
    found = b""
    while len(found) < _PATH_MAX:
        part = os.pread(memory, _PAGE - address % _PAGE, address)
        text, end, _ = part.partition(b"\0")
        found += text
        if end:
            return found
        if not part:
            break
        address += len(part)
    raise OSError(errno.EFAULT, os.strerror(errno.EFAULT))
