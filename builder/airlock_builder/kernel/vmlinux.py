"""The ELF kernel inside a bzImage, which QEMU boots by its PVH entry: nothing to unpack. For the kernel step."""

from __future__ import annotations

import lzma
import struct
import zlib

import zstandard

from airlock_store.errors import BuildError

_SECTOR = 512
_SETUP_SECTORS, _MAGIC, _PAYLOAD = 0x1F1, 0x202, 0x248
_GZIP, _XZ, _ZSTD = b"\x1f\x8b", b"\xfd7zXZ\0", b"\x28\xb5\x2f\xfd"
_LIMIT = 512 << 20


def bootable(kernel: bytes) -> bytes:
    """What QEMU boots fastest: the ELF kernel of an x86 bzImage; the image of another architecture as it is.

    Under TCG, unpacking takes a third of a boot to READY. The place of the payload: Linux
    Documentation/arch/x86/boot.rst, fields setup_sects, payload_offset and payload_length. Raises BuildError.
    """
    if kernel[_MAGIC : _MAGIC + 4] != b"HdrS":
        return kernel
    setup = (kernel[_SETUP_SECTORS] or 4) + 1
    offset, length = struct.unpack_from("<II", kernel, _PAYLOAD)
    start = setup * _SECTOR + offset
    elf = _unpack(kernel[start : start + length])
    if elf[:4] != b"\x7fELF":
        raise BuildError("the kernel's payload is not an ELF file")
    return elf


def _unpack(payload: bytes) -> bytes:
    """What the kernel's build packed; behind it stand four bytes with its size, which the decompressors leave."""
    try:
        if payload.startswith(_ZSTD):
            return zstandard.ZstdDecompressor().decompressobj().decompress(payload)
        if payload.startswith(_XZ):
            return lzma.LZMADecompressor().decompress(payload, _LIMIT)
        if payload.startswith(_GZIP):
            return zlib.decompressobj(wbits=31).decompress(payload, _LIMIT)
    except (zstandard.ZstdError, lzma.LZMAError, zlib.error) as error:
        raise BuildError(f"the kernel's payload cannot be unpacked: {error}") from error
    raise BuildError(f"the kernel is compressed in a way that is not known ({payload[:4].hex()})")
