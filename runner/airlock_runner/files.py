"""Single files of the host in a sandbox, kept the same on both sides while it runs. The session calls it.

No share can offer one file without its directory, and no mount survives that an editor replaces the file. So the
sandbox has a copy, and each finished write is carried over, whole. The sandbox never gets to name a path: it sends
bytes, and here is decided what becomes of them. docs/configuration.md has the rules for the user.
"""

from __future__ import annotations

import hashlib
import os
import stat
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from airlock_runner.config import place_if_said
from airlock_runner.text import one_line
from airlock_store.errors import MachineError
from airlockd.protocol.files import (
    RACY_NS,
    Receiver,
    Sender,
    Version,
    overwrite_file,
    racy,
    read_file,
    replace_file,
    version,
    version_at,
)
from airlockd.protocol.watch import Watch

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from airlock_runner.control import Control
    from airlock_runner.project import Project
    from airlockd.protocol.frames import Header
    from airlockd.protocol.loop import Loop

PAUSE_SECONDS = 0.05
"""Between two transfers that the sandbox asks for: it may ask without end."""

MAX_TOLD = 20
"""Different troubles of a session that are told."""


@dataclass(frozen=True, slots=True)
class FileMount:
    """A file of the host that is mounted by itself. `source` is a real path; `number` is what the wire calls it."""

    number: int
    name: str
    source: Path
    target: str
    read_only: bool


class _File:
    """One file: what both sides have, and what is to be done. Raises OSError where its directory is not there."""

    def __init__(self, mount: FileMount) -> None:
        self.mount = mount
        self.name = mount.source.name
        self.directory = _open_directory(mount.source.parent)
        self.agreed: Version | None = None
        """The host's version that the sandbox has, too."""
        self.digest = b""
        """Of the content that the sandbox has, as far as known: a version may be another and have the same."""
        self.put = True
        self.get = False
        self.parted = False
        """Given up: no version of either side is put over the other's."""

    def changed(self) -> bool:
        """Whether the host has a version that the sandbox lacks."""
        now = version_at(self.directory, self.name)
        return now is not None and now != self.agreed and not self.parted


class Files:
    """All of a session. One transfer at a time: what is held in memory is bounded by one file."""

    def __init__(
        self, loop: Loop, control: Control, project: Project, note: Callable[[int, str], None]
    ) -> None:
        self._loop, self._control, self._project, self._note = loop, control, project, note
        self._files: list[_File] = []
        self._watch = Watch(loop)
        self._busy = False
        self._told: set[str] = set()
        self._then: Callable[[], None] | None = None
        self._failed: Callable[[MachineError], None] | None = None

    def start(
        self,
        mounts: Sequence[FileMount],
        then: Callable[[], None],
        failed: Callable[[MachineError], None],
    ) -> None:
        """Put all of them; `then` once they are there, or `failed` for the first that cannot be."""
        self._then, self._failed = then, failed
        for mount in mounts:
            try:
                file = _File(mount)
            except OSError as error:
                self._trouble(mount, f"{mount.source} cannot be read: {error.strerror}")
                return
            self._files.append(file)
            self._watch.add(file.directory, file.name, lambda file=file: self._look(file))  # type: ignore[misc]
        self._next()

    def changed(self, header: Header) -> None:
        """The sandbox says that it has another version of a file."""
        number = header.get("file")
        if isinstance(number, int) and 0 <= number < len(self._files):
            file = self._files[number]
            # What is read-only is so here, whatever the sandbox says.
            file.get = not file.mount.read_only
            self._next()

    def close(self) -> None:
        """Let go of everything."""
        self._watch.close()
        for file in self._files:
            os.close(file.directory)
        self._files = []

    # ---- one transfer after the other

    def _next(self) -> None:
        if self._busy:
            return
        for file in self._files:
            if file.get:
                self._get(file)
            elif file.put:
                self._put(file)
            else:
                continue
            return
        if self._then is not None:
            then, self._then, self._failed = self._then, None, None
            then()

    def _look(self, file: _File) -> None:
        if file.changed():
            file.put = True
            self._next()

    def _agree(self, file: _File, now: Version | None, digest: bytes) -> None:
        """Both sides have this."""
        file.agreed, file.digest = now, digest

        def look_closely() -> None:
            try:
                if (
                    self._files
                    and hashlib.sha256(read_file(file.directory, file.name)[0]).digest() != file.digest
                ):
                    file.put = not file.parted
                    self._next()
            except OSError:
                # Whoever removes it meanwhile has not changed it.
                pass

        if racy(now):
            self._loop.call_later(2 * RACY_NS / 1e9, look_closely)

    def _put(self, file: _File) -> None:
        """To the sandbox."""
        file.put = False
        try:
            data, status = read_file(file.directory, file.name)
        except OSError as error:
            self._trouble(file.mount, f"{file.mount.source} cannot be read: {error.strerror}")
            self._next()
            return
        self._busy = True

        def done(header: Header) -> None:
            if header.get("changed"):
                # Both were: get that one first, and judge.
                file.get = not file.mount.read_only
            else:
                self._agree(file, version(status), hashlib.sha256(data).digest())
            self._done()

        def refused(header: Header) -> None:
            self._trouble(
                file.mount, f"it cannot be put at {file.mount.target}: {_message(header)}", "target"
            )
            self._done()

        stream = self._control.number()
        arguments = {
            "file": file.mount.number,
            "size": status.st_size,
            # The sandbox's user may do what ours may.
            "mode": stat.S_IMODE(status.st_mode) & (0o555 if file.mount.read_only else 0o777),
            "streams": [stream],
        }
        self._control.call("put_file", arguments, done, refused)
        Sender(self._control.link, stream, data)

    def _get(self, file: _File) -> None:
        """From the sandbox."""
        file.get = False
        self._busy = True
        reply: Header = {}

        def done(data: bytearray, problem: str | None) -> None:
            if not reply:
                # Refused; `refused` tells why.
                return
            if problem is None and len(data) != reply.get("size"):
                # It was written to meanwhile: the end of that will be told.
                problem = "it was changed while it was read"
            if problem is None:
                self._take(file, data, reply.get("mtime"))
            else:
                self._note(1, f"mount {file.mount.name}: {problem}")
            self._loop.call_later(PAUSE_SECONDS, self._done)

        def refused(header: Header) -> None:
            self._trouble(file.mount, f"{file.mount.target} cannot be taken over: {_message(header)}")
            self._loop.call_later(PAUSE_SECONDS, self._done)

        stream = self._control.number()
        Receiver(self._control.link, stream, done)
        arguments = {"file": file.mount.number, "streams": [stream]}
        self._control.call("get_file", arguments, reply.update, refused)

    def _done(self) -> None:
        self._busy = False
        if self._files:
            self._next()

    # ---- who wins

    def _take(self, file: _File, data: bytearray, written: object) -> None:
        """The sandbox's version is here: `data`, written at that time, as it says."""
        if file.parted:
            return
        digest = hashlib.sha256(data).digest()
        try:
            ours, _status = read_file(file.directory, file.name)
        except FileNotFoundError:
            # Deleted, which is no version of it.
            ours = None
        except OSError as error:
            if digest != file.digest:
                file.digest = digest
                told = f"{file.mount.source} cannot be read ({error.strerror}); the sandbox's version is"
                self._keep(file, data, told)
            return
        now = version_at(file.directory, file.name)
        if ours is not None and ours == bytes(data):
            self._agree(file, now, digest)
            return
        if digest == file.digest:
            # Nothing new: it was only touched, or looked at again.
            file.put = file.changed()
            return
        # A version may differ by its mode alone, or by having been touched.
        both = ours is not None and now != file.agreed and hashlib.sha256(ours).digest() != file.digest
        file.digest = digest
        if both and ours is not None:
            theirs_is_newer = (
                isinstance(written, int) and now is not None and now[2] <= min(written, time.time_ns())
            )
            if not self._conflict(file, data, ours, theirs_is_newer=theirs_is_newer):
                return
        try:
            _write(file, data)
            self._agree(file, version_at(file.directory, file.name), digest)
        except OSError as error:
            told = f"{file.mount.source} cannot be written ({error.strerror}); the sandbox's version is"
            self._keep(file, data, told)

    def _conflict(self, file: _File, theirs: bytearray, ours: bytes, *, theirs_is_newer: bool) -> bool:
        """Whether the sandbox's version is to be written. The other is kept."""
        told = f"{file.mount.source} was changed on the host and in the sandbox at the same time; "
        if theirs_is_newer:
            return self._keep(file, ours, f"{told}the sandbox's version is newer and stays, the host's is")
        file.put = self._keep(file, theirs, f"{told}the host's version is newer and stays, the sandbox's is")
        return False

    def _keep(self, file: _File, data: bytes | bytearray, told: str) -> bool:
        """Whether the loser is safe. If not, nobody wins: the two sides are left as they are."""
        try:
            path = self._project.keep(file.mount.name, data)
        except OSError as error:
            file.parted = True
            self._note(0, f"mount {file.mount.name}: {told} not kept ({error.strerror}): "
                          "from now on host and sandbox keep what each has")  # fmt: skip
            return False
        self._note(0, f"mount {file.mount.name}: {told} kept as {path}")
        return True

    def _trouble(self, mount: FileMount, text: str, key: str = "source") -> None:
        """Ends the start while it starts; later it is only told. `key` is the one whose value is to blame."""
        text = f"mount {mount.name}: {text}"
        if self._failed is None:
            # The sandbox can make it say so as often as it likes.
            if text not in self._told and len(self._told) < MAX_TOLD:
                self._told.add(text)
                self._note(0, text)
            return
        failed, self._then, self._failed = self._failed, None, None
        said = (place_if_said(self._project.root, "mounts", mount.name, each) for each in (key, "source"))
        at = next((place for place in said if place), None)
        failed(MachineError(text, at=at))


def _message(header: Header) -> str:
    return one_line(str(header.get("message")), 200)


def _open_directory(path: Path) -> int:
    """A descriptor of a real path's directory: a symlink that somebody has put on the way since is not followed."""
    # Directories on the way need not be readable.
    flags = getattr(os, "O_PATH", os.O_RDONLY) | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
    current = os.open("/", flags)
    for part in path.parts[1:]:
        try:
            following = os.open(part, flags, dir_fd=current)
        finally:
            os.close(current)
        current = following
    return current


def _write(file: _File, data: bytearray) -> None:
    """As a whole where that can be done; in its place where the file has other names, or its directory is not ours."""
    try:
        status = os.stat(file.name, dir_fd=file.directory, follow_symlinks=False)
    except FileNotFoundError:
        # Deleted meanwhile, which nobody took for a change.
        own = (os.geteuid(), os.getegid())
        replace_file(file.directory, file.name, data, mode=0o644, owner=own)
        return
    if not stat.S_ISREG(status.st_mode):
        raise OSError(0, "it is no regular file any more")
    if status.st_nlink == 1:
        try:
            owner = (status.st_uid, status.st_gid)
            replace_file(file.directory, file.name, data, mode=stat.S_IMODE(status.st_mode), owner=owner)
            return
        except OSError:
            # Also a file that is itself a mount.
            pass
    overwrite_file(file.directory, file.name, data)
