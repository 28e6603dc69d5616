"""Single files of the host in the sandbox: puts what the host sends, tells when it was changed here.

The supervisor calls it. A file is an ordinary one of the sandbox where programs may replace it by rename; root.py says
where. The host asks for a changed file when it wants it, and decides alone what becomes of it.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

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
    from collections.abc import Callable, Mapping, Sequence

    from airlockd.protocol.link import Link
    from airlockd.root import FilePlace


class _File:
    def __init__(self, place: FilePlace) -> None:
        self.place = place
        self.known: Version | None = None
        """The version that the host has, or None before the first."""
        self.racy = False

    def know(self, now: Version | None) -> None:
        """The host has this version."""
        self.known, self.racy = now, racy(now)

    def changed(self) -> bool:
        """Whether there is a version that the host does not have."""
        now = version_at(self.place.directory, self.place.name)
        return self.known is not None and now is not None and now != self.known


class Files:
    """All of a sandbox. `tell` says to the host that the file of this number has another content."""

    def __init__(self, link: Link, places: Sequence[FilePlace], tell: Callable[[int], None]) -> None:
        self._link, self._tell = link, tell
        self._files = {place.number: _File(place) for place in places}
        self._watch = Watch(link.loop)
        self._sending = 0
        self._then: Callable[[], None] | None = None
        for file in self._files.values():
            if not file.place.read_only:
                self._watch.add(file.place.directory, file.place.name, lambda file=file: self._look(file))  # type: ignore[misc]

    def put(self, header: Mapping[str, Any], answer: Callable[[dict[str, Any]], None]) -> None:
        """Take a version from the host. Answers when it is in place, or that it is not because there is one of here."""
        file, size, mode = self._files[header["file"]], int(header["size"]), int(header["mode"])

        def done(data: bytearray, problem: str | None) -> None:
            if problem is None and len(data) != size:
                problem = "cut short"
            if problem is None and file.changed():
                answer({"t": "reply", "changed": True})
                return
            try:
                if problem is None:
                    self._write(file.place, data, mode)
                    file.know(version_at(file.place.directory, file.place.name))
                    self._look_again(file)
            except OSError as error:
                problem = error.strerror
            answer({"t": "reply"} if problem is None else {"t": "error", "message": problem})

        (stream,) = header["streams"]
        Receiver(self._link, stream, done)

    def get(self, header: Mapping[str, Any], answer: Callable[[dict[str, Any]], None]) -> None:
        """Send the version of here; from now on the host has it."""
        (stream,) = header["streams"]
        if not self._files:
            # Asked for before the host heard that this is over.
            answer({"t": "reply"})
            self._link.refuse([stream])
            return
        file = self._files[header["file"]]
        # Known in any case: the host was asked once, and a file that cannot be sent must not hold up the end.
        file.known = version_at(file.place.directory, file.place.name)
        try:
            data, status = read_file(file.place.directory, file.place.name)
        except OSError:
            self._link.loop.call_later(0, self._settle_again)
            raise
        file.know(version(status))
        self._look_again(file)
        self._sending += 1
        answer({"t": "reply", "size": status.st_size, "mtime": status.st_mtime_ns})
        Sender(self._link, stream, data, self._sent)

    def settle(self, then: Callable[[], None]) -> None:
        """Call `then` once the host has every file as it is here. No process of the sandbox is left to change one."""
        changed = [
            file
            for file in self._files.values()
            if not file.place.read_only and (file.changed() or file.racy)
        ]
        if not changed and not self._sending:
            self._close()
            then()
            return
        self._then = then
        for file in changed:
            self._tell(file.place.number)

    def _sent(self) -> None:
        self._sending -= 1
        self._settle_again()

    def _settle_again(self) -> None:
        if self._then is not None:
            then, self._then = self._then, None
            self.settle(then)

    def _look(self, file: _File) -> None:
        if file.changed():
            self._tell(file.place.number)

    def _look_again(self, file: _File) -> None:
        def look() -> None:
            if file.racy:
                file.racy = False
                self._tell(file.place.number)

        if file.racy and not file.place.read_only:
            self._link.loop.call_later(2 * RACY_NS / 1e9, look)

    def _close(self) -> None:
        self._watch.close()
        for file in self._files.values():
            os.close(file.place.directory)
            file.racy = False
        self._files = {}

    @staticmethod
    def _write(place: FilePlace, data: bytearray, mode: int) -> None:
        if place.bound:
            # It is mounted elsewhere: another inode would not be seen there.
            overwrite_file(place.directory, place.name, data)
            os.chmod(place.name, mode & 0o777, dir_fd=place.directory)
            os.chown(place.name, *place.owner, dir_fd=place.directory)
        else:
            replace_file(place.directory, place.name, data, mode=mode, owner=place.owner)
