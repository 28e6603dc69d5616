"""A directory outside of the store in which mmdebstrap builds a tree: its mapped root must be able to reach it.

A killed builder's mess is the next one's to clear, once the last process that it started is gone.
"""

from __future__ import annotations

import fcntl
import os
import stat
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from airlock_builder import tools
from airlock_builder.step import digest_of
from airlock_store.errors import BuildError
from airlock_store.store import pass_on

if TYPE_CHECKING:
    from collections.abc import Iterator

    from airlock_builder.step import Work


@contextmanager
def room_for(work: Work) -> Iterator[Path]:
    """An empty directory, the same for the same step and store, locked for us and the programs that we start.

    It is below $TMPDIR, by default /var/tmp: trees are too large for a /tmp in memory. Raises BuildError.
    """
    parent = Path(tools.environment()["TMPDIR"])
    name = digest_of([os.fspath(work.store.root.absolute()), work.step.key])[:16]
    ours = f"airlock-{os.geteuid()}-"
    for left in parent.glob(f"{ours}*"):
        if left.name != ours + name:
            _sweep(left, work)
    room = parent / f"{ours}{name}"
    handle = _enter(room, work)
    try:
        yield room
    finally:
        _clear(room, work)
        os.close(handle)


def _enter(room: Path, work: Work) -> int:
    """Make or take over the directory. Its lock is held by all who inherit the handle, too."""
    while True:
        try:
            room.mkdir(exist_ok=True)
            handle = os.open(room, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        except OSError as error:
            raise BuildError(
                f"cannot work in {room}: {error.strerror}",
                hint="Set TMPDIR to a directory that you may write.",
            ) from error
        if os.fstat(handle).st_uid != os.geteuid():
            os.close(handle)
            raise BuildError(f"{room} belongs to somebody else", hint="Set TMPDIR to another directory.")
        fcntl.flock(handle, fcntl.LOCK_EX)
        if not os.fstat(handle).st_nlink:
            os.close(handle)
            continue
        if any(room.iterdir()):
            _clear(room, work)
            os.close(handle)
            continue
        # As root nobody maps anything, and a tree has programs that give whoever runs them more rights.
        others = 0 if os.geteuid() == 0 else stat.S_IXGRP | stat.S_IXOTH
        os.fchmod(handle, stat.S_IRWXU | others)
        return pass_on(handle)


def _sweep(room: Path, work: Work) -> None:
    """Remove another step's directory, unless somebody works there."""
    try:
        handle = os.open(room, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.fstat(handle).st_uid == os.geteuid():
            _clear(room, work)
    except (BlockingIOError, tools.ToolError):
        # What cannot be removed is in nobody's way.
        pass
    finally:
        os.close(handle)


def _clear(room: Path, work: Work) -> None:
    """Remove the directory with what the mapped users of an ordinary user own in it."""
    as_all = (
        ()
        if os.geteuid() == 0
        else (tools.find_program("unshare"), "--user", "--map-root-user", "--map-auto")
    )
    tools.run([*as_all, tools.find_program("rm"), "-rf", "--one-file-system", room], log=work.log)
