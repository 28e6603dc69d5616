"""The superblock as airlockd reads it: what e2fsprogs wrote is understood, anything else is refused."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airlockd.disk import LABEL, DiskError, Superblock, parse_superblock


def superblock(
    *, blocks: int = 2621440, log_size: int = 2, magic: int = 0xEF53, state: int = 1, label: str = LABEL
) -> bytes:
    """Fields at the offsets of the kernel's documentation of ext4's superblock."""
    raw = bytearray(1024)
    struct.pack_into("<I", raw, 0x4, blocks & 0xFFFFFFFF)
    struct.pack_into("<I", raw, 0x18, log_size)
    struct.pack_into("<HH", raw, 0x38, magic, state)
    raw[0x78 : 0x78 + len(label)] = label.encode()
    struct.pack_into("<I", raw, 0x150, blocks >> 32)
    return bytes(raw)


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        (superblock(), Superblock(10 * 1024**3, 4096, False)),
        (superblock(blocks=64 * 1024, log_size=0), Superblock(64 * 1024**2, 1024, False)),
        (superblock(blocks=2**33), Superblock(2**45, 4096, False)),
        (superblock(state=3), Superblock(10 * 1024**3, 4096, True)),
    ],
)
def test_understood(raw: bytes, expected: Superblock) -> None:
    assert parse_superblock(raw) == expected


@pytest.mark.parametrize(
    ("raw", "reason"),
    [
        (b"", "empty"),
        (bytes(1024), "did not write"),
        (superblock(magic=0x1234), "did not write"),
        (superblock(label="backup"), "did not write"),
        (superblock(log_size=60), "damaged"),
    ],
)
def test_refused(raw: bytes, reason: str) -> None:
    with pytest.raises(DiskError, match=reason):
        parse_superblock(raw)


@given(st.binary(min_size=1024, max_size=1024))
def test_any_bytes_are_an_answer_or_a_disk_error(raw: bytes) -> None:
    with pytest.raises(DiskError):
        parse_superblock(raw)
