"""Watches by inotify of what lies in a share. The supervisor has this where there is a share.

Where 9p caches no metadata, Linux makes a new inode at each lookup (v9fs_vfs_lookup), and a watch stays with the inode
that was found when it was asked for: it never hears of anything that is done by another lookup. What somebody holds
open, by O_PATH too, is found by every lookup. So processes ask before each inotify_add_watch (asks.py), and what they
are about to watch is held here for as long as they live.

Of what the host changes inotify does not hear by itself, over virtiofs neither. The host watches the directories in
which held things lie, and says what was changed in them; that gets its owner once more, the same, which is an event
(IN_ATTRIB) and changes nothing but the time of that. What the sandbox changed itself is left out.

What is held is not looked up anew. If the host removes it, a lookup finds a thing that is gone, and nothing new can be
made in its place. So what is gone when the host says that something was changed is let go. Directories that the host
cannot watch are looked at in turn.
"""

from __future__ import annotations

import os
import stat
import time
from itertools import islice
from typing import TYPE_CHECKING, NamedTuple

from airlockd import linux, mountinfo
from airlockd.protocol.inotify import CHANGES, IGNORED, Inotify

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from airlockd.asks import Question
    from airlockd.mountinfo import Mount, Place
    from airlockd.protocol.loop import Loop, Timer

_DONT_FOLLOW = 0x02000000  # linux/inotify.h
HELD = 8192
"""At most so many: the oldest go first. Each takes a descriptor here, and a fid of the share on the host."""
LOOKS, EVERY = 32, 1.0
"""So many directories that the host cannot watch are looked at, every so many seconds."""
MOUNTS_SECONDS = 1.0
"""For so long a table of mounts is taken for what it is: watches come by the thousand."""
OWN, OWN_SECONDS = 4096, 3.0
"""Changes of the sandbox's own that are remembered, and for how long: until the host has told of them, too."""


class Share(NamedTuple):
    """A share's tag and its root directory."""

    tag: str
    fd: int


class _Held:
    """Something that is watched, by these processes."""

    def __init__(self, fd: int, owners: set[int]) -> None:
        self.fd, self.owners = fd, owners
        self.mode = 0


class _Directory:
    """One that is held, or held things lie below. `number` is that of the watch of its changes."""

    def __init__(self, fd: int, number: int) -> None:
        self.fd, self.number = fd, number
        self.entries: set[Place] = set()
        """What is held below it, and itself."""
        self.changed: int | None = None
        """Where the host cannot watch it: when it was changed as of the last look."""


class _Owner(NamedTuple):
    """A process that has watches; `fd` tells of its end."""

    process: int
    fd: int
    places: set[Place]


class Watches:
    """All of a sandbox. `shares` are by device. `tell` has the host watch a directory of a share, or no longer."""

    def __init__(
        self, loop: Loop, shares: Mapping[int, Share], tell: Callable[[str, bytes, bool], None]
    ) -> None:
        self._loop, self._shares, self._tell = loop, shares, tell
        self._held: dict[Place, _Held] = {}
        self._directories: dict[Place, _Directory] = {}
        self._remade: list[Place] = []
        self._owners: dict[int, _Owner] = {}
        self._devices = {share.tag: device for device, share in shares.items()}
        self._mounts: dict[tuple[int, bytes], list[Mount]] = {}
        """By mount namespace and root directory."""
        self._mounts_since = 0.0
        self._timer: Timer | None = None
        self._inotify: Inotify | None = None
        self._by_number: dict[int, Place] = {}
        self._own: dict[tuple[Place, bytes], float] = {}
        self.handlers = {"inotify_add_watch": self._prepare}

    # ---- what is watched

    def _prepare(self, question: Question) -> bool:
        """Never answers: whether something can be watched is the kernel's to say."""
        (path,) = question.strings(1)
        found = mountinfo.locate(self._mounts_of(question.process), _absolute(question.process, path))
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
        share = self._shares[device].fd
        fd = linux.open_beneath(share, path or b".", os.O_PATH | (0 if follow else os.O_NOFOLLOW))
        # Where it really is, and not by what symlinks it was found.
        place = device, _path(fd)[len(_path(share)) :].strip(b"/")
        before = self._held.get(place)
        held = _Held(fd, set() if before is None else before.owners)
        try:
            self._enter(place)
            # After the host was told to watch what is around it, and so says when this goes.
            held.mode = os.fstat(fd).st_mode
            if stat.S_ISDIR(held.mode):
                self._directory_of(place).entries.add(place)
        except OSError:
            os.close(fd)
            if before is not None:
                self._release(place)
            else:
                self._leave(place)
            raise
        if before is not None:
            # What is there now may be something else.
            os.close(before.fd)
            del self._held[place]
        self._held[place] = held
        held.owners.add(owner.process)
        owner.places.add(place)
        while len(self._held) > HELD:
            self._release(next(iter(self._held)))
        while self._remade:
            each = self._remade.pop()
            self._check(self._directories.get(each), each)

    def _enter(self, place: Place) -> None:
        """Have all directories above a place watched."""
        above = _above(place)
        # Where what is around it is another than before, what is around that may be, too.
        known = bool(above) and self._is_there(above[-1])
        for each in above:
            directory = self._directories.get(each) if known else None
            (directory or self._directory_of(each)).entries.add(place)

    def _is_there(self, place: Place) -> bool:
        """Whether what is watched as the directory at a place was neither moved nor removed by the sandbox."""
        directory, share = self._directories.get(place), self._shares[place[0]]
        expected = _path(share.fd) + b"/" * bool(place[1]) + place[1]
        return directory is not None and _path(directory.fd) == expected

    def _directory_of(self, place: Place) -> _Directory:
        """The directory at a place, watched from now on."""
        directory = self._directories.get(place)
        if directory is not None and self._is_there(place):
            return directory
        device, path = place
        share = self._shares[device]
        fd = linux.open_beneath(share.fd, path or b".", os.O_PATH | os.O_DIRECTORY)
        try:
            if self._inotify is None:
                self._inotify = Inotify(self._loop, self._on_change)
            made = _Directory(fd, self._inotify.add(fd, CHANGES))
        except OSError:
            os.close(fd)
            raise
        if directory is not None:
            # The sandbox removed or moved it and made another, in which these may be missing.
            made.entries = directory.entries
            self._remade.append(place)
            self._let_go(place, directory)
        self._directories[place] = made
        self._by_number[made.number] = place
        self._tell(share.tag, path, True)
        return made

    def _release(self, place: Place) -> None:
        held = self._held.pop(place)
        os.close(held.fd)
        for process in held.owners:
            self._owners[process].places.discard(place)
        self._leave(place)

    def _leave(self, place: Place) -> None:
        for each in (*_above(place), place):
            directory = self._directories.get(each)
            if directory is not None:
                directory.entries.discard(place)
                if not directory.entries:
                    self._let_go(each, directory)

    def _let_go(self, place: Place, directory: _Directory) -> None:
        assert self._inotify is not None
        self._inotify.remove(directory.number)
        self._by_number.pop(directory.number, None)
        os.close(directory.fd)
        del self._directories[place]
        self._tell(self._shares[place[0]].tag, place[1], False)

    def _ended(self, owner: _Owner) -> None:
        self._loop.forget(owner.fd)
        os.close(owner.fd)
        del self._owners[owner.process]
        for place in owner.places:
            held = self._held[place]
            held.owners.discard(owner.process)
            if not held.owners:
                self._release(place)

    def _check(self, directory: _Directory | None, place: Place) -> None:
        """Let go what is gone at a place in a directory, and below it."""
        below = place[1] + b"/" if place[1] else b""
        for entry in list(directory.entries) if directory is not None else ():
            held = self._held.get(entry)
            if held is not None and (entry == place or entry[1].startswith(below)) and _gone(held):
                self._release(entry)

    # ---- where the host cannot watch

    def unwatched(self, tag: str, path: bytes) -> None:
        """The host cannot watch this directory."""
        directory = self._directories.get((self._devices[tag], path))
        if directory is not None:
            # Looked at the next time, whatever happened since it was opened.
            directory.changed = 0
            self._look_later()

    def _look_later(self) -> None:
        if self._timer is None:
            self._timer = self._loop.call_later(EVERY, self._look)

    def _look(self) -> None:
        self._timer = None
        unwatched = (place for place, each in self._directories.items() if each.changed is not None)
        for place in list(islice(unwatched, LOOKS)):
            directory = self._directories.pop(place, None)
            if directory is None:
                # It went with what lay around it.
                continue
            # At the end, so that each has its turn.
            self._directories[place] = directory
            changed = _changed(directory.fd)
            if changed != directory.changed:
                directory.changed = changed
                self._check(directory, place)
            self._look_later()

    # ---- what the host changes

    def changed(self, tag: str, path: bytes, names: Sequence[bytes]) -> None:
        """The host says what was changed in a directory; an empty name is the directory itself."""
        place = self._devices[tag], path
        if place not in self._directories or self._inotify is None:
            return
        # The sandbox's own changes were here before the host can tell of them.
        self._inotify.read()
        touched = []
        for name in names:
            entry = place[0], path + b"/" + name if path and name else path + name
            if entry in self._held or entry in self._directories:
                self._check(self._directories.get(place), entry)
            directory = self._directories.get(place)
            if directory is None:
                break
            if self._is_own(place, name):
                continue
            if name and _touch(directory.fd, name):
                touched.append((place, name))
            else:
                # It is gone, which is a change of the directory.
                _touch(directory.fd, b".")
                touched.append((_around(place), path.rpartition(b"/")[2]))
        # What was done here must not hide what the host does next.
        self._inotify.read()
        for each in touched:
            self._own.pop(each, None)

    def _on_change(self, number: int, mask: int, name: bytes) -> None:
        place = self._by_number.get(number)
        if place is None:
            return
        if mask & IGNORED:
            del self._by_number[number]
        elif name:
            if len(self._own) >= OWN:
                self._own.clear()
            self._own[place, name] = time.monotonic()

    def _is_own(self, place: Place, name: bytes) -> bool:
        """Whether it was the sandbox that changed this; the next time it may be the host."""
        when = self._own.pop((place, name), None)
        return when is not None and time.monotonic() - when < OWN_SECONDS

    def _mounts_of(self, process: int) -> list[Mount]:
        about = f"/proc/{process}"
        key = (os.stat(f"{about}/ns/mnt").st_ino, os.readlink(os.fsencode(f"{about}/root")))
        now = time.monotonic()
        if now - self._mounts_since > MOUNTS_SECONDS:
            self._mounts, self._mounts_since = {}, now
        if key not in self._mounts:
            self._mounts[key] = mountinfo.parse(linux.read_file(f"{about}/mountinfo", 1 << 22), self._shares)
        return self._mounts[key]


def _around(place: Place) -> Place:
    """The directory that it lies in."""
    return place[0], place[1].rpartition(b"/")[0]


def _above(place: Place) -> list[Place]:
    """All directories that it lies in, from that of the share on."""
    parts = place[1].split(b"/") if place[1] else []
    return [(place[0], b"/".join(parts[:count])) for count in range(len(parts))]


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


def _path(fd: int) -> bytes:
    return os.readlink(b"/proc/self/fd/%d" % fd)


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


def _touch(directory: int, name: bytes) -> bool:
    """Have who watches it hear of something; whether it is there. Its owner is set to what it is."""
    try:
        fd = linux.open_beneath(directory, name, os.O_PATH | os.O_NOFOLLOW)
    except OSError:
        return False
    try:
        owner = os.fstat(fd).st_uid
        try:
            os.chown(f"/proc/self/fd/{fd}", owner, -1)
        except OSError:
            # It is another's, or cannot be changed: nobody hears.
            pass
    except OSError:
        # Something is held below it, and it is gone.
        return False
    finally:
        os.close(fd)
    return True
