"""Which calls the filter has ask, and what is read of a process that asks."""

from __future__ import annotations

import ctypes
import os

import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_harden import answer

from airlockd import asks

ALLOW, ASK = 0x7FFF0000, 0x7FC00000
X86_64, AARCH64 = 0xC000003E, 0xC00000B7
RENAMES = ("rename", "renameat", "renameat2")


@pytest.mark.parametrize(
    ("machine", "architecture", "calls", "asking"),
    [
        ("x86_64", X86_64, RENAMES, {82, 264, 316}),
        ("x86_64", X86_64, (*RENAMES, "inotify_add_watch"), {82, 254, 264, 316}),
        ("aarch64", AARCH64, RENAMES, {38, 276}),
        ("aarch64", AARCH64, ("inotify_add_watch",), {27}),
    ],
)
def test_what_is_named_asks_alone(
    machine: str, architecture: int, calls: tuple[str, ...], asking: set[int]
) -> None:
    program = asks.program(machine, calls)
    for number in range(600):
        assert answer(program, architecture, number) == (ASK if number in asking else ALLOW), number
        # Numbers of another architecture mean something else.
        assert answer(program, 0x40000003, number) == ALLOW
        assert answer(program, architecture, number | 0x40000000) == ALLOW


@given(st.binary(max_size=9000).map(lambda data: data.replace(b"\0", b"")), st.integers(0, 5000))
def test_a_path_is_read_across_pages(path: bytes, offset: int) -> None:
    memory = ctypes.create_string_buffer(b"x" * offset + path + b"\0rest")
    address = ctypes.addressof(memory) + offset
    question = asks.Question(-1, 0, os.getpid(), "rename", (0, address))
    if len(path) < 4096:
        assert question.strings(1, 1) == [path, path]
    else:
        found = [b""]
        try:
            found = question.strings(1)
        except OSError:
            pass
        # Too long for the kernel, too; which of both says so does not matter.
        assert found in ([b""], [path])


@pytest.mark.parametrize("address", [0, 1, (1 << 63) - 1, 1 << 63, (1 << 64) - 1])
def test_a_wild_address_is_an_error_and_no_more(address: int) -> None:
    with pytest.raises((OSError, OverflowError)):
        asks.Question(-1, 0, os.getpid(), "rename", (address,)).strings(0)
