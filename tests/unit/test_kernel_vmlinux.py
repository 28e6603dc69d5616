"""The kernel inside a bzImage: every compression that Debian used, and what is not one."""

from __future__ import annotations

import gzip
import lzma
import struct
from typing import TYPE_CHECKING

import pytest
import zstandard
from hypothesis import assume, given
from hypothesis import strategies as st

from airlock_builder.kernel.modules import without_signature
from airlock_builder.kernel.vmlinux import bootable
from airlock_store.errors import BuildError

if TYPE_CHECKING:
    from collections.abc import Callable

ELF = b"\x7fELF" + bytes(range(256)) * 40


def bzimage(payload: bytes, setup_sectors: int = 27, offset: int = 0x2C4) -> bytes:
    """The fields of a boot sector that matter, and a payload with its size behind it, as the kernel's build does."""
    packed = payload + struct.pack("<I", len(ELF))
    image = bytearray((setup_sectors + 1) * 512 + offset)
    image[0x1F1] = setup_sectors
    image[0x202:0x206] = b"HdrS"
    struct.pack_into("<II", image, 0x248, offset, len(packed))
    return bytes(image) + packed + b"trailer"


@pytest.mark.parametrize(
    "pack", [zstandard.ZstdCompressor().compress, lzma.compress, gzip.compress], ids=["zstd", "xz", "gzip"]
)
def test_the_elf_comes_out(pack: Callable[[bytes], bytes]) -> None:
    assert bootable(bzimage(pack(ELF))) == ELF


def test_what_is_no_bzimage_stays_as_it_is() -> None:
    assert bootable(ELF) == ELF


@pytest.mark.parametrize(
    ("payload", "reason"),
    [
        (b"LZIP" + bytes(50), "not known"),
        (zstandard.ZstdCompressor().compress(b"no kernel"), "not an ELF"),
        (b"\x28\xb5\x2f\xfd" + b"\xff" * 50, "cannot be unpacked"),
        (b"\xfd7zXZ\0" + b"\xff" * 50, "cannot be unpacked"),
    ],
)
def test_damage_is_an_error(payload: bytes, reason: str) -> None:
    with pytest.raises(BuildError, match=reason):
        bootable(bzimage(payload))


@given(st.binary(max_size=200), st.binary(max_size=60))
def test_only_the_signature_goes(module: bytes, signature: bytes) -> None:
    trailer = bytes(8) + struct.pack(">I", len(signature))
    assert without_signature(module + signature + trailer + b"~Module signature appended~\n") == module
    assume(not module.endswith(b"~Module signature appended~\n"))
    assert without_signature(module) == module
