"""Step `disk`: the root filesystem as an ext4 image, made from the tar without mounting and without root.

mke2fs is the toolbox's, whose version reads tars and takes every time from SOURCE_DATE_EPOCH: same tar, same bytes.
"""

from __future__ import annotations

import errno
import os
import tarfile
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from airlock_builder import tools
from airlock_builder.pack.toolbox import Toolbox
from airlock_builder.rootfs.mmdebstrap import EPOCH, TAR
from airlock_store.errors import BuildError
from airlock_store.sizes import MIB, format_size

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from airlock_builder.step import Work

IMAGE = "rootfs.ext4"
BLOCK = 4096
INODE = 256

_UUID = "6169726c-6f63-4b00-8000-000000000001"
"""Of every image's root filesystem: a machine has only one, and random ones would make other bytes."""
_RESERVED_INODES = 11
_DIRECTORY_ENTRY = 64  # bytes, with a name of usual length; what is more is in the slack


@dataclass(frozen=True, slots=True)
class Needs:
    """What a tree takes: inodes, and blocks of BLOCK bytes for data and directories."""

    inodes: int
    blocks: int


def build(work: Work) -> None:
    """Make the image. Raises BuildError, placed, when the tree does not fit into the size that the recipe gives."""
    tar = work.inputs["rootfs"] / TAR
    work.progress(None, "measuring the tree")
    with _open(tar, "r:") as archive:
        needs = measure(archive)
        if any(_has_bytes(member) for member in archive):
            tar = work.scratch / TAR
            with _open(tar, "w") as told:
                tell_bytes(archive, told)
    wanted = work.parameters["size"]
    size = needed_size(needs) if wanted is None else wanted // BLOCK * BLOCK
    at = work.step.payload["size_place"]
    larger = 'Give [image] a larger size, or "auto".'
    if size < needs.blocks * BLOCK:
        raise BuildError(
            f"the root filesystem takes at least {format_size(needs.blocks * BLOCK)}, "
            f"the image has {format_size(size)}",
            hint=larger,
            at=at,
        )
    while True:
        try:
            _write(work, tar, needs, size)
            return
        except OSError as error:
            if error.errno not in {errno.EFBIG, errno.EINVAL, errno.EOVERFLOW}:
                raise
            raise BuildError(
                f"a file of {format_size(size)} cannot be here: {error.strerror}", at=at
            ) from error
        except tools.ToolError as error:
            # In mke2fs's own words; on a disk that is full it has others.
            if not any("Could not allocate" in line for line in error.tail):
                raise
            if wanted is not None:
                message = f"the root filesystem does not fit into an image of {format_size(size)}"
                raise BuildError(message, hint=larger, at=at) from error
            # Directories of many long names take more than was reckoned.
            size += size // 4 // MIB * MIB + MIB


def tell_bytes(archive: tarfile.TarFile, told: tarfile.TarFile) -> None:
    """Copy a tar to one that says of each name whether it is text.

    tar writes names as they are, and mke2fs refuses what is not UTF-8 where nothing says that it need not be.
    """
    for member in archive:
        told.addfile(member, archive.extractfile(member) if member.isreg() else None)


def _open(tar: Path, mode: Literal["r:", "w"]) -> tarfile.TarFile:
    return tarfile.open(tar, mode, format=tarfile.PAX_FORMAT, encoding="utf-8", errors="surrogateescape")


def _has_bytes(member: tarfile.TarInfo) -> bool:
    """Whether its own name or that of what it links to is not UTF-8."""
    return any("\udc80" <= character <= "\udcff" for character in member.name + member.linkname)


def _write(work: Work, tar: Path, needs: Needs, size: int) -> None:
    """Write the image with that size. Raises ToolError, and OSError where no file can have it."""
    image = work.output / IMAGE
    epoch = (work.inputs["rootfs"] / EPOCH).read_text(encoding="utf-8").strip()
    with image.open("wb") as file:
        os.truncate(file.fileno(), size)
    toolbox = Toolbox(work.inputs["toolbox"].path, work.parameters["arch"])
    work.progress(None, "writing the filesystem")
    toolbox.run(
        "usr/sbin/mke2fs",
        *arguments(needs.inodes + _RESERVED_INODES, tar, image),
        log=work.log,
        env=tools.environment(
            SOURCE_DATE_EPOCH=epoch,
            MKE2FS_CONFIG=str(toolbox.root / "etc/mke2fs.conf"),
            E2FSPROGS_LIBMAGIC_SUPPRESS="1",
        ),
        cwd=work.scratch,
    )


def arguments(inodes: int, tar: Path, image: Path) -> list[str | Path]:
    """mke2fs's arguments. Pure."""
    return [
        *("-q", "-F", "-t", "ext4"),
        *("-b", str(BLOCK), "-I", str(INODE), "-N", str(inodes), "-m", "0"),
        *("-L", "airlock-image", "-U", _UUID),
        # Nobody ever writes to it: a journal would be dead weight, and so would room to grow into.
        *("-O", "^has_journal,^resize_inode"),
        *("-E", f"hash_seed={_UUID},lazy_itable_init=1,nodiscard,root_owner=0:0"),
        *("-d", tar),
        image,
    ]


def measure(members: Iterable[tarfile.TarInfo]) -> Needs:
    """What the members of a tar take in ext4, each file rounded up to whole blocks."""
    inodes = 1
    blocks = 1
    entries: dict[str, int] = {}
    for member in members:
        parent = os.path.dirname(member.name.rstrip("/"))
        entries[parent] = entries.get(parent, 0) + 1
        if member.islnk():
            continue
        inodes += 1
        if member.isreg():
            blocks += -(-member.size // BLOCK)
        elif member.isdir() or (member.issym() and len(member.linkname) >= 60):
            blocks += 1
        if any(name.startswith("SCHILY.xattr.") for name in member.pax_headers):
            blocks += 1
    blocks += sum(count * _DIRECTORY_ENTRY // BLOCK for count in entries.values())
    return Needs(inodes, blocks)


def needed_size(needs: Needs) -> int:
    """Bytes of an image that holds the tree with a little slack; a multiple of a MiB."""
    data = needs.blocks * BLOCK
    tables = (needs.inodes + _RESERVED_INODES) * INODE
    size = data + tables + data // 50 + 8 * MIB
    return -(-size // MIB) * MIB
