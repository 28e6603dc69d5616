"""airlockd's sources, found without importing them: the plan takes their digest, the initrd step packs them."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING

from airlock_store.errors import BuildError

if TYPE_CHECKING:
    from collections.abc import Iterable


def airlockd_sources() -> tuple[Path, tuple[Path, ...]]:
    """The directory of the package airlockd, and its Python files relative to that, sorted. It is not imported."""
    from importlib.util import find_spec

    spec = find_spec("airlockd")
    if spec is None or not spec.submodule_search_locations:
        raise BuildError("airlockd is not installed", hint="Install airlock anew.")
    root = Path(next(iter(spec.submodule_search_locations)))
    return root, tuple(sorted(path.relative_to(root) for path in root.rglob("*.py")))


def airlockd_digest() -> str:
    """A digest of all of airlockd's code."""
    return digest_sources(*airlockd_sources())


def digest_sources(root: Path, files: Iterable[Path]) -> str:
    """A digest of the names and bytes of `files` below `root`."""
    digest = hashlib.sha256()
    for file in files:
        content = (root / file).read_bytes()
        digest.update(f"{file.as_posix()}\0{len(content)}\0".encode() + content)
    return digest.hexdigest()
