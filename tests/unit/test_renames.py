"""What is read of a process that asks before a rename, and who carries that out."""

from __future__ import annotations

import errno
import os
import struct

import pytest

from airlockd import renames
from airlockd.asks import Question


def test_rights_are_those_by_which_files_are_judged() -> None:
    status = b"Name:\tx: y\nUid:\t1\t2\t3\t4\nGid:\t5\t6\t7\t8\nGroups:\t9 10 \nCapEff:\t000001ffFFffffff\nV:\t1 kB\n"
    assert renames._credentials(status) == (4, 8, [9, 10], (1 << 41) - 1)


class _Loop:
    def forget(self, fd: int) -> None:
        pass


@pytest.mark.parametrize("word", [b"short", struct.pack("=QQ", 1, 2)])
def test_an_odd_word_of_the_helper_is_an_error_of_that_rename(word: bytes) -> None:
    """The helper has the rights of whoever asked, and so may be his."""
    ready, there_ready = os.pipe()
    there_go, go = os.pipe()
    os.write(there_ready, word)
    asker = renames.Renames.__new__(renames.Renames)
    asker._loop, asker._places = _Loop(), {}  # type: ignore[assignment]
    job = renames._Job(
        renames._Asked(Question(-1, 0, 0, "rename", ()), ("", ""), (b"", b"")), 0, -1, ready, go
    )
    asker._overwrite(job)
    assert (job.problem, job.go, os.read(there_go, 1)) == (errno.EIO, -1, b"")
    for fd in (ready, there_ready, there_go):
        os.close(fd)


def test_who_renames_for_another_has_nothing_else_open() -> None:
    """Its /proc/self/fd is part of the other's paths."""
    opened = [os.open("/", os.O_RDONLY) for _ in range(5)]
    kept = opened[1], opened[3]
    read, write = os.pipe()
    child = os.fork()
    if not child:
        renames._close_all_but(*kept, write)
        # A directory that is listed is open itself.
        left = {int(name) for name in os.listdir("/proc/self/fd")} - {0, 1, 2, *kept, write}
        os.write(write, b"%d" % len([fd for fd in left if os.path.exists(f"/proc/self/fd/{fd}")]))
        os._exit(0)
    os.waitpid(child, 0)
    assert os.read(read, 10) == b"0"
    for fd in (*opened, read, write):
        os.close(fd)
