"""Renames to a single file of the host that lies in a share. The supervisor has one where there is such a file.

It is mounted there, since its content does not belong into that directory of the host; and to what is mounted nothing
can be renamed: the kernel says EBUSY. Editors do just that. So the processes of such a sandbox ask before each rename
(asks.py). What is renamed to such a file is copied into it and removed; all else the kernel does, as if nobody had
asked. So whatever goes wrong here before something was changed, the kernel has the last word.
"""

from __future__ import annotations

import ctypes
import errno
import os
import stat
import struct
from typing import TYPE_CHECKING, NamedTuple

from airlockd import linux
from airlockd.protocol.files import MAX_FILE, overwrite_file, write_all

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from airlockd.asks import Question
    from airlockd.protocol.loop import Loop
    from airlockd.root import FilePlace

_CALLS: dict[str, tuple[int | None, int, int | None, int, int | None]] = {
    "rename": (None, 0, None, 1, None),
    "renameat": (0, 1, 2, 3, None),
    "renameat2": (0, 1, 2, 3, 4),
}
"""Which arguments are directory and path of both, and flags."""

_AT_FDCWD = -100
_KERNEL = 255
"""Exit code of a helper: this is the kernel's to do."""


class _Asked(NamedTuple):
    """A rename: who asks, and paths with the directories that they start from."""

    question: Question
    bases: tuple[str, str]
    paths: tuple[bytes, bytes]


class _Job:
    """One that is carried out: by a helper, who does as the process would, but for what only airlockd can do."""

    def __init__(self, asked: _Asked, helper: int, data: int, ready: int, go: int) -> None:
        self.asked, self.helper, self.data, self.ready, self.go = asked, helper, data, ready, go
        self.problem = 0


class Renames:
    """All of a sandbox. `children` is where the supervisor looks up who wants to hear of a child's end."""

    def __init__(
        self,
        loop: Loop,
        places: Sequence[FilePlace],
        children: dict[int, Callable[[int], None]],
    ) -> None:
        self._loop, self._children = loop, children
        self._names = {os.fsencode(place.target.rpartition("/")[2]) for place in places}
        self._places = {_identity(os.stat(place.name, dir_fd=place.directory)): place for place in places}
        self.handlers = dict.fromkeys(_CALLS, self._decide)

    def _decide(self, question: Question) -> bool:
        asked = self._concerned(question)
        if asked is not None:
            self._carry_out(asked)
        return asked is not None

    def _concerned(self, question: Question) -> _Asked | None:
        """What is to be done here, if this concerns one of the files: by its name, which is cheap to see."""
        old_base, old, new_base, new, flags = _CALLS[question.call]
        arguments = question.arguments
        if flags is not None and arguments[flags]:
            return None
        (target,) = question.strings(new)
        if target.rpartition(b"/")[2] not in self._names:
            return None
        (source,) = question.strings(old)
        bases = [
            "cwd" if fd == _AT_FDCWD else f"fd/{fd}"
            for fd in (
                _AT_FDCWD if each is None else ctypes.c_int(arguments[each] & 0xFFFFFFFF).value
                for each in (old_base, new_base)
            )
        ]
        return _Asked(question, (bases[0], bases[1]), (source, target))

    def _carry_out(self, asked: _Asked) -> None:
        data = os.memfd_create("renamed", os.MFD_CLOEXEC)
        ready, there_ready = os.pipe()
        there_go, go = os.pipe()
        try:
            helper = os.fork()
            if not helper:
                os.close(go)
                self._help(asked, data, there_ready, there_go)
        except OSError:
            for fd in (data, ready, go):
                os.close(fd)
            raise
        finally:
            os.close(there_ready)
            os.close(there_go)
        job = _Job(asked, helper, data, ready, go)
        self._loop.on_readable(ready, lambda: self._overwrite(job))
        self._children[helper] = lambda status: self._done(job, status)

    def _overwrite(self, job: _Job) -> None:
        """The helper has read the new content, and may do all else that is to be done."""
        which = os.read(job.ready, 16)
        self._loop.forget(job.ready)
        if not which:
            return
        try:
            device, inode = struct.unpack("=QQ", which)
            place = self._places[device, inode]
            data = os.pread(job.data, os.fstat(job.data).st_size, 0)
            # Here, and not in the helper: what the host sends is written by this process too, one after the other.
            # A rename promises no more than that it is seen; the host gets it in any case.
            overwrite_file(place.directory, place.name, data, sync=False)
            os.write(job.go, b"\0")
        except OSError as error:
            job.problem = error.errno or errno.EIO
        except (struct.error, KeyError):
            # Not the helper's word.
            job.problem = errno.EIO
        os.close(job.go)
        job.go = -1

    def _done(self, job: _Job, status: int) -> None:
        self._loop.forget(job.ready)
        for fd in (job.ready, job.data, job.go):
            if fd >= 0:
                os.close(fd)
        code = os.waitstatus_to_exitcode(status)
        if job.problem:
            code = job.problem
        elif code < 0:
            code = errno.EINTR
        job.asked.question.answer(None if code == _KERNEL else code)

    def _help(self, asked: _Asked, data: int, ready: int, go: int) -> None:
        """In the helper: never returns."""
        code = _KERNEL
        try:
            # Who asks has the same rights soon, and must get no others by it: tracing it, or having it executed.
            linux.prctl(linux.PR_SET_DUMPABLE, 0)
            linux.prctl(linux.PR_SET_NO_NEW_PRIVS, 1)
            # A path may lead through /proc/self/fd, which is here what the helper has open.
            _close_all_but(asked.question.listener, data, ready, go)
            code = self._as_the_process(asked, data, ready, go)
        except OSError:
            pass
        finally:
            os._exit(code)

    def _as_the_process(self, asked: _Asked, data: int, ready: int, go: int) -> int:
        """With its rights, from its directories. Gives the errno, or _KERNEL; raises OSError as long as that holds."""
        about = f"/proc/{asked.question.process}"
        identity = _credentials(linux.read_file(f"{about}/status"))
        if os.stat(f"{about}/ns/user").st_ino != os.stat("/proc/self/ns/user").st_ino:
            # What it may do as root of a user namespace it may do there.
            identity = (*identity[:3], 0)
        bases = [os.open(f"{about}/{base}", os.O_PATH | os.O_CLOEXEC) for base in asked.bases]
        root = os.open(f"{about}/root", os.O_PATH | os.O_CLOEXEC)
        namespace = os.open(f"{about}/ns/mnt", os.O_RDONLY | os.O_CLOEXEC)
        # All of this was of the process that asks, and not of the next one by its number.
        asked.question.require()
        os.close(asked.question.listener)
        linux.setns(namespace, linux.CLONE_NEWNS)
        os.fchdir(root)
        os.chroot(".")
        user, group, groups, capabilities = identity
        os.setgroups(groups)
        os.setresgid(group, group, group)
        os.setresuid(user, user, user)
        if not user:
            # Root need not be almighty. (Others have none by now. What Landlock forbids a process cannot be seen.)
            linux.limit_capabilities(capabilities)
        parents, names = [], []
        for base, path in zip(bases, asked.paths, strict=True):
            parent, slash, name = path.rpartition(b"/")
            flags = os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC
            parents.append(os.open(parent + slash or b".", flags, dir_fd=base))
            names.append(name)
        target = _identity(os.stat(names[1], dir_fd=parents[1], follow_symlinks=False))
        source = os.open(
            names[0], os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=parents[0]
        )
        status = os.fstat(source)
        if (
            target not in self._places
            or _identity(status) in self._places
            or not stat.S_ISREG(status.st_mode)
            or not all(
                os.access(b".", os.W_OK | os.X_OK, dir_fd=parent, effective_ids=True) for parent in parents
            )
        ):
            return _KERNEL
        if status.st_size > MAX_FILE:
            return errno.EFBIG
        # No more room than that: a share has all of it at hand for the host.
        content = linux.read_all(source, status.st_size + 1)
        if len(content) != status.st_size:
            # Somebody is writing to it.
            return _KERNEL
        write_all(data, content)
        os.write(ready, struct.pack("=QQ", *target))
        if not os.read(go, 1):
            return errno.EIO
        try:
            os.unlink(names[0], dir_fd=parents[0])
        except OSError as error:
            return error.errno or errno.EIO
        return 0


def _close_all_but(*kept: int) -> None:
    """Of the descriptors above standard error."""
    start = 3
    for fd in sorted(kept):
        os.closerange(start, fd)
        start = fd + 1
    os.closerange(start, os.sysconf("SC_OPEN_MAX"))


def _identity(status: os.stat_result) -> tuple[int, int]:
    return status.st_dev, status.st_ino


def _credentials(status: bytes) -> tuple[int, int, list[int], int]:
    """User, group, further groups and capabilities by which files are judged, from /proc/PID/status."""
    fields = dict(line.split(b":", 1) for line in status.splitlines() if b":" in line)
    user, group = (int(fields[name].split()[3]) for name in (b"Uid", b"Gid"))
    return user, group, [int(each) for each in fields[b"Groups"].split()], int(fields[b"CapEff"], 16)
