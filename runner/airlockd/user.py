"""Users of the sandbox: who a name is, and turning into that user. Called by process.py in the child.

Read from the sandbox's own files, without the C library, whose name service would load code of the sandbox's.
"""

from __future__ import annotations

import os
import stat
from typing import TYPE_CHECKING, NamedTuple

from airlockd import linux

if TYPE_CHECKING:
    from collections.abc import Callable

_LIMIT = 1 << 20
_MAX_ID = (1 << 32) - 2


class User(NamedTuple):
    """A user as /etc/passwd and /etc/group know him; `groups` are the supplementary ones."""

    name: str
    uid: int
    gid: int
    home: str
    shell: str
    groups: tuple[int, ...] = ()

    def environment(self) -> dict[str, str]:
        """What a command finds out about its user by."""
        return {"HOME": self.home, "USER": self.name, "LOGNAME": self.name, "SHELL": self.shell}


ROOT = User("root", 0, 0, "/root", "/bin/sh")


def look_up(wanted: str, etc: str = "/etc", opener: Callable[[str, int], int] | None = None) -> User:
    """The user with this name or, if it is a number, this uid. `opener` is as for `open`. Raises LookupError.

    There is always a root, and always a user for a number: commands of images without a passwd are no error.
    """
    number = int(wanted) if wanted.isascii() and wanted.isdigit() else -1
    found: User | None = None
    for line in _lines(f"{etc}/passwd", opener):
        user = _parse(line)
        if user is not None and (user.name == wanted or user.uid == number):
            found = user
            break
    if found is None:
        if wanted == ROOT.name or number == 0:
            found = ROOT
        elif 0 < number <= _MAX_ID:
            found = User(wanted, number, number, "/", "/bin/sh")
        else:
            raise LookupError(f"the sandbox has no user {wanted}")
    return found._replace(groups=tuple(_groups(found.name, _lines(f"{etc}/group", opener))))


def ordinary(uid: int) -> bool:
    """Whether it is the number of a person, and not of a user that the system has for itself (Debian Policy 9.2.2)."""
    return 1000 <= uid < 60000


def runtime_directory(user: User) -> dict[str, str]:
    """The variable for a directory of this user's own that is gone with the sandbox, made as logind would make it.

    Programs keep there what no restart may find, rootless Podman for one. None for root, and none where it cannot be.
    """
    path = f"/run/user/{user.uid}"
    if not user.uid:
        return {}
    try:
        os.makedirs(os.path.dirname(path), exist_ok=True)
        try:
            os.mkdir(path, 0o700)
        except FileExistsError:
            status = os.lstat(path)
            usable = stat.S_ISDIR(status.st_mode) and status.st_uid == user.uid
            return {"XDG_RUNTIME_DIR": path} if usable else {}
        os.chown(path, user.uid, user.gid, follow_symlinks=False)
    except OSError:
        return {}
    return {"XDG_RUNTIME_DIR": path}


def become(user: User) -> None:
    """Turn this process into `user`, with the terminal or pipes on 0, 1 and 2 his own. Raises OSError."""
    if user.uid:
        for fd in range(3):
            # Programs open /dev/stdout, /dev/tty and the like anew. /dev/null is everybody's.
            if not stat.S_ISCHR(os.fstat(fd).st_mode) or os.isatty(fd):
                os.fchown(fd, user.uid, -1)
    # The primary group among them, as initgroups(3) has it.
    os.setgroups(sorted({user.gid, *user.groups}))
    os.setgid(user.gid)
    os.setuid(user.uid)


def _parse(line: str) -> User | None:
    fields = line.split(":")
    try:
        uid, gid = int(fields[2]), int(fields[3])
        home, shell = fields[5] or "/", fields[6] or "/bin/sh"
    except (IndexError, ValueError):
        return None
    return User(fields[0], uid, gid, home, shell) if 0 <= uid <= _MAX_ID and 0 <= gid <= _MAX_ID else None


def _groups(name: str, lines: list[str]) -> list[int]:
    found = []
    for line in lines:
        fields = line.split(":")
        if len(fields) == 4 and name in fields[3].split(",") and fields[2].isascii() and fields[2].isdigit():
            found.append(int(fields[2]))
    return [number for number in found if number <= _MAX_ID][:1024]


def _lines(path: str, opener: Callable[[str, int], int] | None) -> list[str]:
    try:
        fd = (opener or os.open)(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return []
    try:
        return linux.read_all(fd, _LIMIT).decode("utf-8", "surrogateescape").split("\n")
    except OSError:
        return []
    finally:
        os.close(fd)
