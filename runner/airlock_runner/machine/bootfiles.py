"""Whether a file can be a kernel or an initrd, by how it begins: QEMU and a kernel that panics tell it worse.

shape.py asks for those that a config names. A sandbox may have written the file: little of it is read.
"""

from __future__ import annotations

import os
import re
import struct
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

_HEAD = 4096
_MAX_HEADERS, _MAX_NOTES = 64, 64 << 10
_ELF, _ELF64_LITTLE, _PT_NOTE = b"\x7fELF", b"\x02\x01", 4
_MACHINES = {"x86_64": (62, 3), "aarch64": (183,)}
"""In the ELF header (elf.h). An x86 kernel may be one of 32 bits."""
_PVH = re.compile(rb"\x04\0\0\0[\x04\x08]\0\0\0\x12\0\0\0Xen\0")
"""The head and the name of the note with the PVH entry: XEN_ELFNOTE_PHYS32_ENTRY of Linux xen/interface/elfnote.h."""
_HEADERS = {
    # Linux Documentation/arch/x86/boot.rst, Documentation/arch/arm64/booting.rst and include/linux/pe.h.
    "x86_64": ((0x202, b"HdrS"),),
    # And what else QEMU unpacks by itself (hw/arm/boot.c): by gzip, zboot, U-Boot's.
    "aarch64": ((56, b"ARM\x64"), (0, b"\x1f\x8b"), (4, b"zimg"), (0, b"\x27\x05\x19\x56")),
}
_CPIO = (b"070701", b"070702")
_COMPRESSED = (
    b"\x1f\x8b", b"\x1f\x9e", b"BZh", b"\x5d\0\0", b"\xfd7zXZ\0", b"\x89LZO\0",
    b"\x02\x21\x4c\x18", b"\x28\xb5\x2f\xfd",
)  # fmt: skip
"""gzip (two), bzip2, lzma, xz, lzo, lz4 and zstd, as Linux knows them (lib/decompress.c)."""


def kernel_trouble(path: Path, arch: str) -> str | None:
    """Why no machine of `arch` boots the kernel in the file `path`, or None. Raises OSError."""
    fd = _open(path)
    try:
        head = os.pread(fd, _HEAD, 0)
        if head.startswith(_ELF):
            return _elf_trouble(fd, head, arch)
    finally:
        os.close(fd)
    for kind, headers in _HEADERS.items():
        if any(head.startswith(magic, offset) for offset, magic in headers):
            return None if kind == arch else f"is no kernel for {arch}, which the image is for"
    wanted = "a vmlinux nor a bzImage" if arch == "x86_64" else "an Image nor a vmlinux"
    return f"is no kernel for {arch}: neither {wanted}"


def initrd_trouble(path: Path) -> str | None:
    """Why no kernel takes the file `path` for an initrd, or None. Raises OSError."""
    fd = _open(path)
    try:
        # Linux skips zeros (init/initramfs.c).
        head = os.pread(fd, _HEAD, 0).lstrip(b"\0")
    finally:
        os.close(fd)
    if head.startswith((*_CPIO, *_COMPRESSED)):
        return None
    return (
        "is no initrd: neither a cpio archive (cpio -H newc) nor one that is compressed by "
        "gzip, bzip2, lzma, xz, lzo, lz4 (lz4 -l) or zstd"
    )


def _open(path: Path) -> int:
    return os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)


def _elf_trouble(fd: int, head: bytes, arch: str) -> str | None:
    machine = int.from_bytes(head[18:20], "little")
    if machine not in _MACHINES[arch]:
        return f"is no kernel for {arch}, which the image is for"
    if arch == "x86_64" and head[4:6] == _ELF64_LITTLE and not any(map(_PVH.search, _notes(fd, head))):
        return "is no kernel that QEMU can boot: an ELF file without a PVH entry (CONFIG_PVH)"
    return None


def _notes(fd: int, head: bytes) -> list[bytes]:
    """The segments of notes in an ELF file of 64 bits."""
    found: list[bytes] = []
    try:
        # Offsets are read with a sign: what is too large for one is none.
        (table,) = struct.unpack_from("<q", head, 32)
        size, count = struct.unpack_from("<HH", head, 54)
        for number in range(min(count, _MAX_HEADERS)):
            header = os.pread(fd, 56, table + number * size)
            kind, _, offset, _, _, length = struct.unpack_from("<IIqqqq", header)
            if kind == _PT_NOTE:
                found.append(os.pread(fd, min(max(length, 0), _MAX_NOTES), offset))
    except (OSError, OverflowError, struct.error):
        pass
    return found
