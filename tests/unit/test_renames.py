"""Which calls the filter of renames has ask, and what is read of a process that asks."""

from __future__ import annotations

import ctypes
import errno
import os
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_harden import answer

from airlockd import renames

ALLOW, ASK = 0x7FFF0000, 0x7FC00000
X86_64, AARCH64 = 0xC000003E, 0xC00000B7


@pytest.mark.parametrize(
    ("machine", "architecture", "asking"),
    [("x86_64", X86_64, {82, 264, 316}), ("aarch64", AARCH64, {38, 276})],
)
def test_renames_alone_ask(machine: str, architecture: int, asking: set[int]) -> None:
    program = renames.program(machine)
    for number in range(600):
        assert answer(program, architecture, number) == (ASK if number in asking else ALLOW), number
        # Numbers of another architecture mean something else.
        assert answer(program, 0x40000003, number) == ALLOW
        assert answer(program, architecture, number | 0x40000000) == ALLOW


@given(st.binary(max_size=9000).map(lambda data: data.replace(b"\0", b"")), st.integers(0, 5000))
def test_a_path_is_read_across_pages(path: bytes, offset: int) -> None:
    memory = ctypes.create_string_buffer(b"x" * offset + path + b"\0rest")
    fd = os.open("/proc/self/mem", os.O_RDONLY)
    try:
        if len(path) < 4096:
            assert renames._string(fd, ctypes.addressof(memory) + offset) == path
        else:
            found = b""
            try:
                found = renames._string(fd, ctypes.addressof(memory) + offset)
            except OSError:
                pass
            # Too long for the kernel, too; which of both says so does not matter.
            assert found in (b"", path)
    finally:
        os.close(fd)


@pytest.mark.parametrize("address", [0, 1, (1 << 63) - 1, 1 << 63, (1 << 64) - 1])
def test_a_wild_address_is_an_error_and_no_more(address: int) -> None:
    fd = os.open("/proc/self/mem", os.O_RDONLY)
    try:
        with pytest.raises((OSError, OverflowError)):
            renames._string(fd, address)
    finally:
        os.close(fd)


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
    job = renames._Job(renames._Asked(-1, 0, 0, ("", ""), (b"", b"")), 0, -1, ready, go)
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
