"""Gives an ordinary user of the sandbox the number of the host's user, whose the project's files are.

An image's user has the number that its recipe gave, and a share shows the numbers of the host. Where they differ, the
user could read the project and write nothing there. Called by root, before anything of the sandbox's runs.
"""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING

from airlockd import linux

if TYPE_CHECKING:
    from collections.abc import Iterable

    from airlockd.user import User

_LIMIT = 1 << 20
_NEW = ".passwd.airlock"


class NumberTakenError(Exception):
    """Another user of the sandbox has the number."""


def adopt(root: int, account: User, owner: int, also: Iterable[str]) -> User:
    """Give `account` the number `owner` in the filesystem below the descriptor `root`, with what it owns in its home.

    `also` are directories of airlockd's own in which that is done besides. /etc/passwd comes last: where this is cut
    short, it is done again. Raises NumberTakenError, and OSError.
    """
    etc = linux.open_in_root(root, "/etc", os.O_PATH | os.O_DIRECTORY)
    try:
        flags = os.O_NOFOLLOW | os.O_NONBLOCK
        passwd = renumbered(linux.read_file("passwd", _LIMIT, directory=etc, flags=flags), account, owner)
        try:
            home = linux.open_in_root(root, account.home, os.O_RDONLY | os.O_DIRECTORY)
        except (FileNotFoundError, NotADirectoryError):
            pass
        else:
            _give_all(home, account.uid, owner)
        for path in also:
            directory = linux.open_without_symlinks(path, os.O_RDONLY | os.O_DIRECTORY)
            _give_all(directory, account.uid, owner)
        _replace_passwd(etc, passwd)
    finally:
        os.close(etc)
    return account._replace(uid=owner)


def renumbered(passwd: bytes, account: User, owner: int) -> bytes:
    """The file with another number in the line of this user. Raises NumberTakenError, and OSError without that line."""
    if len(passwd) == _LIMIT:
        raise OSError(errno.EFBIG, os.strerror(errno.EFBIG), "/etc/passwd")
    lines = [line.split(b":") for line in passwd.split(b"\n")]
    numbers = [_number(fields) for fields in lines]
    if owner in numbers:
        raise NumberTakenError
    for fields, number in zip(lines, numbers, strict=True):
        if fields[0] == os.fsencode(account.name) and number == account.uid:
            fields[2] = b"%d" % owner
            return b"\n".join(map(b":".join, lines))
    raise OSError(errno.ENOENT, "no such user", "/etc/passwd")


def _number(fields: list[bytes]) -> int:
    try:
        return int(fields[2])
    except (IndexError, ValueError):
        return -1


def _give_all(directory: int, old: int, new: int) -> None:
    """Give what is in the tree at this descriptor, itself too, and belongs to `old`, to `new`. Closes it."""
    try:
        if os.fstat(directory).st_uid != old:
            # Not a directory of this user's, whatever /etc/passwd says: / for one.
            return
        for _, directories, files, fd in os.fwalk(".", dir_fd=directory):
            for name in (*directories, *files):
                if os.stat(name, dir_fd=fd, follow_symlinks=False).st_uid == old:
                    os.chown(name, new, -1, dir_fd=fd, follow_symlinks=False)
        os.fchown(directory, new, -1)
    finally:
        os.close(directory)


def _replace_passwd(etc: int, content: bytes) -> None:
    there = os.stat("passwd", dir_fd=etc)
    try:
        os.unlink(_NEW, dir_fd=etc)
    except FileNotFoundError:
        pass
    linux.write_file(_NEW, content, os.O_CREAT | os.O_EXCL, directory=etc)
    if os.stat(_NEW, dir_fd=etc).st_size != len(content):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "/etc/passwd")
    os.chmod(_NEW, there.st_mode & 0o7777, dir_fd=etc)
    os.replace(_NEW, "passwd", src_dir_fd=etc, dst_dir_fd=etc)
