"""Watches by inotify of what lies in a 9p share. The supervisor has this where there is one.

Where 9p caches no metadata, Linux makes a new inode at each lookup (v9fs_vfs_lookup), and a watch stays with the inode
that was found when it was asked for: it never hears of anything that is done by another lookup. What somebody holds
open, by O_PATH too, is found by every lookup. So processes ask before each inotify_add_watch (asks.py), and what they
are about to watch is held here for as long as they live.

What is held is not looked up anew. If the host removes it, a lookup finds a thing that is gone, and nothing new can be
made in its place. So the directories in which held things lie are looked at in turn, and what is gone is let go.
"""

from __future__ import annotations

import os
import stat
from itertools import islice
from typing import TYPE_CHECKING, NamedTuple

from airlockd import linux

if TYPE_CHECKING:
    from collections.abc import Mapping

    from airlockd.asks import Question
    from airlockd.protocol.loop import Loop, Timer

_DONT_FOLLOW = 0x02000000  # linux/inotify.h
HELD = 8192
"""At most so many: the oldest go first. Each takes a descriptor here, and a fid of the share on the host."""
LOOKS, EVERY = 32, 1.0
"""So many directories are looked at, every so many seconds."""

Key = tuple[int, bytes]
"""The device of a share, and a path in it."""


class Mount(NamedTuple):
    """A line of /proc/PID/mountinfo: what of a device, from `root` down, is at `target`."""

    device: int
    root: bytes
    target: bytes


class _Held:
    """Something that is watched, by these processes."""

    def __init__(self, fd: int, mode: int) -> None:
        self.fd, self.mode = fd, mode
        self.owners: set[int] = set()


class _Directory:
    """One that held things lie in, and when it was changed as of the last look."""

    def __init__(self, fd: int, changed: int) -> None:
        self.fd, self.changed = fd, changed
        self.entries: set[Key] = set()


class _Owner(NamedTuple):
    """A process that has watches; `fd` tells of its end."""

    process: int
    fd: int
    keys: set[Key]


class Watches:
    """All of a sandbox. `shares` are the roots of those by 9p, by device."""

    def __init__(self, loop: Loop, shares: Mapping[int, int]) -> None:
        self._loop, self._shares = loop, shares
        self._held: dict[Key, _Held] = {}
        self._directories: dict[Key, _Directory] = {}
        self._owners: dict[int, _Owner] = {}
        self._mounts: dict[tuple[int, bytes], list[Mount]] = {}
        """By mount namespace and root directory, for a moment: watches come by the thousand."""
        self._timer: Timer | None = None
        self.handlers = {"inotify_add_watch": self._prepare}

    def _prepare(self, question: Question) -> bool:
        """Never answers: whether something can be watched is the kernel's to say."""
        (path,) = question.strings(1)
        found = locate(self._mounts_of(question.process), _absolute(question.process, path))
        if found is not None:
            owner = self._owner_of(_leader(question.process))
            # The number may be another's by now, and its end would be, too.
            question.require()
            self._hold(owner, *found, follow=not question.arguments[2] & _DONT_FOLLOW)
        return False

    def _owner_of(self, process: int) -> _Owner:
        owner = self._owners.get(process)
        if owner is None:
            owner = self._owners[process] = _Owner(process, os.pidfd_open(process), set())
            self._loop.on_readable(owner.fd, lambda: self._ended(owner))
        return owner

    def _hold(self, owner: _Owner, device: int, path: bytes, *, follow: bool) -> None:
        share = self._shares[device]
        fd = linux.open_beneath(share, path, os.O_PATH | (0 if follow else os.O_NOFOLLOW))
        try:
            # Where it really is, and not by what symlinks it was found.
            key = device, _place(fd)[len(_place(share)) :].strip(b"/")
            directory = self._directory_of(key)
        except OSError:
            os.close(fd)
            raise
        try:
            # After the look at the directory, whose next one would not notice that it is gone.
            held = _Held(fd, os.fstat(fd).st_mode)
        except OSError:
            os.close(fd)
            self._let_go(key)
            raise
        before = self._held.pop(key, None)
        if before is not None:
            # What is there now may be something else.
            held.owners |= before.owners
            os.close(before.fd)
        self._held[key] = held
        directory.entries.add(key)
        held.owners.add(owner.process)
        owner.keys.add(key)
        while len(self._held) > HELD:
            self._release(next(iter(self._held)))
        self._look_later()

    def _directory_of(self, key: Key) -> _Directory:
        parent = _parent(key)
        directory = self._directories.get(parent)
        if directory is None:
            fd = linux.open_beneath(self._shares[key[0]], parent[1], os.O_PATH | os.O_DIRECTORY)
            directory = self._directories[parent] = _Directory(fd, _changed(fd))
        return directory

    def _release(self, key: Key) -> None:
        held = self._held.pop(key)
        os.close(held.fd)
        for process in held.owners:
            self._owners[process].keys.discard(key)
        self._let_go(key)

    def _let_go(self, key: Key) -> None:
        parent = _parent(key)
        directory = self._directories[parent]
        directory.entries.discard(key)
        if not directory.entries:
            os.close(directory.fd)
            del self._directories[parent]

    def _ended(self, owner: _Owner) -> None:
        self._loop.forget(owner.fd)
        os.close(owner.fd)
        del self._owners[owner.process]
        for key in owner.keys:
            held = self._held[key]
            held.owners.discard(owner.process)
            if not held.owners:
                self._release(key)

    # ---- what the host removes

    def _look_later(self) -> None:
        if self._timer is None:
            self._timer = self._loop.call_later(EVERY, self._look)

    def _look(self) -> None:
        self._timer = None
        self._mounts.clear()
        for key in list(islice(self._directories, LOOKS)):
            directory = self._directories.pop(key)
            # At the end, so that each has its turn.
            self._directories[key] = directory
            changed = _changed(directory.fd)
            if changed == directory.changed:
                continue
            directory.changed = changed
            for entry in list(directory.entries):
                if _gone(self._held[entry]):
                    self._release(entry)
        if self._directories:
            self._look_later()

    def _mounts_of(self, process: int) -> list[Mount]:
        about = f"/proc/{process}"
        key = (os.stat(f"{about}/ns/mnt").st_ino, os.readlink(os.fsencode(f"{about}/root")))
        if key not in self._mounts:
            table = linux.read_file(f"{about}/mountinfo", 1 << 22)
            self._mounts[key] = parse_mounts(table, self._shares)
            self._look_later()
        return self._mounts[key]


def parse_mounts(table: bytes, devices: Mapping[int, int]) -> list[Mount]:
    """Those of /proc/PID/mountinfo that are of these devices, in its order: the later are above the earlier."""
    found = []
    # What comes after the last end of a line was cut off.
    for line in table.split(b"\n")[:-1]:
        fields = line.split(b" ", 5)
        major, _, minor = fields[2].partition(b":")
        device = os.makedev(int(major), int(minor))
        if device in devices:
            found.append(Mount(device, _unescape(fields[3]), _unescape(fields[4])))
    return found


def _unescape(field: bytes) -> bytes:
    """Of blanks, line ends and backslashes there are octal numbers."""
    first, *rest = field.split(b"\\")
    return first + b"".join(bytes([int(part[:3], 8)]) + part[3:] for part in rest)


def locate(mounts: list[Mount], path: bytes) -> Key | None:
    """Where an absolute path is in a share; None where it is in none, or is the share itself, which Linux holds."""
    best: Mount | None = None
    for mount in mounts:
        below = mount.target.rstrip(b"/") + b"/"
        if (path + b"/").startswith(below) and (best is None or len(mount.target) >= len(best.target)):
            best = mount
    if best is None:
        return None
    rest = path[len(best.target.rstrip(b"/")) :]
    inside = (best.root.rstrip(b"/") + rest).strip(b"/")
    return (best.device, inside) if inside else None


def _absolute(process: int, path: bytes) -> bytes:
    """As seen from the process's root, without `.` and `..`: by their names, so that symlinks can mislead it."""
    if not path.startswith(b"/"):
        base, root = (os.readlink(os.fsencode(f"/proc/{process}/{each}")) for each in ("cwd", "root"))
        if root != b"/":
            base = base.removeprefix(root)
        path = base + b"/" + path
    return b"/" + os.path.normpath(path).lstrip(b"/")


def _leader(thread: int) -> int:
    """The process that a thread is of. Raises OSError."""
    status = linux.read_file(f"/proc/{thread}/status")
    return int(status.partition(b"\nTgid:")[2].split(None, 1)[0])


def _place(fd: int) -> bytes:
    return os.readlink(b"/proc/self/fd/%d" % fd)


def _parent(key: Key) -> Key:
    return key[0], key[1].rpartition(b"/")[0] or b"."


def _changed(fd: int) -> int:
    """When a directory was changed, in nanoseconds; -1 where it is gone."""
    try:
        return os.fstat(fd).st_mtime_ns
    except OSError:
        return -1


def _gone(held: _Held) -> bool:
    """Whether the host has removed it, or something else is there, which Linux does not notice of what is held."""
    try:
        mode = os.fstat(held.fd).st_mode
        if stat.S_ISDIR(held.mode):
            os.close(os.open(f"/proc/self/fd/{held.fd}", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC))
    except OSError:
        return True
    # The permissions are those of what is there now, and those of a directory let it be entered.
    return stat.S_ISREG(held.mode) and bool(mode & ~held.mode & stat.S_IXUSR)
