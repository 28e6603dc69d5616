"""What a store path holds: the list of its files with digests (`store.json`). Written and checked by the store.

The bytes depend on the files alone (no times, no owners), so that the same build gives the same manifest.
"""

from __future__ import annotations

import hashlib
import json
import os
import stat
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from airlock_store.errors import StoreError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path

MANIFEST = "store.json"
SCHEMA = 1
FILE_MODE = 0o444
PROGRAM_MODE = 0o555
DIRECTORY_MODE = 0o755


@dataclass(frozen=True, slots=True)
class FileEntry:
    """A regular file: digest in hex, size in bytes, permission bits."""

    sha256: str
    size: int
    mode: int


@dataclass(frozen=True, slots=True)
class LinkEntry:
    """A symbolic link."""

    target: str


Entry = FileEntry | LinkEntry


@dataclass(frozen=True, slots=True)
class Contents:
    """The whole of `store.json`. Paths in `files` are relative, with slashes, sorted."""

    key: str
    name: str
    kind: str = ""
    references: tuple[str, ...] = ()
    files: Mapping[str, Entry] = field(default_factory=dict)

    @property
    def size(self) -> int:
        """Bytes in all files (nominal: holes count)."""
        return sum(entry.size for entry in self.files.values() if isinstance(entry, FileEntry))


def survey(root: Path, digest: Callable[[Path, os.stat_result], str]) -> dict[str, Entry]:
    """Entries of all files and links under `root` but the manifest. Raises StoreError for devices and the like."""
    entries: dict[str, Entry] = {}
    for path, status in walk(root):
        if stat.S_ISDIR(status.st_mode) or path == root / MANIFEST:
            continue
        relative = path.relative_to(root).as_posix()
        if stat.S_ISLNK(status.st_mode):
            entries[relative] = LinkEntry(os.readlink(path))
        elif stat.S_ISREG(status.st_mode):
            entries[relative] = FileEntry(digest(path, status), status.st_size, stat.S_IMODE(status.st_mode))
        else:
            raise StoreError(f"{path}: neither a file, a directory nor a link; such things cannot be stored")
    return entries


def walk(root: Path) -> Iterator[tuple[Path, os.stat_result]]:
    """Everything under `root`, in an order that depends on the names alone; links are not followed."""
    for child in sorted(root.iterdir()):
        status = child.lstat()
        yield child, status
        if stat.S_ISDIR(status.st_mode):
            yield from walk(child)


def sha256_of(path: Path) -> str:
    """The digest of a file's bytes, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def encode(contents: Contents) -> bytes:
    """The bytes of `store.json`."""
    files: dict[str, dict[str, Any]] = {}
    for path, entry in sorted(contents.files.items()):
        if isinstance(entry, FileEntry):
            files[path] = {"mode": f"{entry.mode:04o}", "sha256": entry.sha256, "size": entry.size}
        else:
            files[path] = {"target": entry.target}
    document = {
        "schema": SCHEMA,
        "key": contents.key,
        "name": contents.name,
        "kind": contents.kind,
        "references": sorted(contents.references),
        "files": files,
    }
    return (json.dumps(document, indent=1, sort_keys=True) + "\n").encode()


def read(path: Path) -> Contents:
    """The manifest of the store path `path`. Raises StoreError when there is none or it is not understood."""
    try:
        document = json.loads((path / MANIFEST).read_bytes())
        if document["schema"] != SCHEMA:
            raise StoreError(
                f"{path}: store schema {document['schema']} is not known",
                hint="Update airlock, or remove the path.",
            )
        files: dict[str, Entry] = {}
        for name, entry in document["files"].items():
            if "target" in entry:
                files[name] = LinkEntry(str(entry["target"]))
            else:
                files[name] = FileEntry(str(entry["sha256"]), int(entry["size"]), int(entry["mode"], 8))
        return Contents(
            key=str(document["key"]),
            name=str(document["name"]),
            kind=str(document["kind"]),
            references=tuple(map(str, document["references"])),
            files=files,
        )
    except (OSError, ValueError, OverflowError, RecursionError, KeyError, TypeError, AttributeError) as error:
        raise StoreError(
            f"{path}: not a store path ({error})", hint="Remove it; a build makes it anew."
        ) from error
