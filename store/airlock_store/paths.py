"""Names in the store: where it lies, how a key and a name become a store path. Used by the store and by whoever plans.

Everything here is pure but `default_root` and `expand_home`, which read the environment.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from airlock_store.errors import ConfigError, StoreError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from airlock_store.errors import Location

KEY_LENGTH = 32
"""Hex digits of a key: half a sha256, 128 bits."""

_PATH_NAME = re.compile(rf"([0-9a-f]{{{KEY_LENGTH}}})-([A-Za-z0-9+_.-]+)")
_NAME_LIMIT = 100


@dataclass(frozen=True, slots=True)
class StorePath:
    """A complete directory in a store. Nobody writes to it any more."""

    path: Path
    key: str
    name: str

    def __fspath__(self) -> str:
        return os.fspath(self.path)

    def __truediv__(self, file: str) -> Path:
        return self.path / file


def default_root(environ: Mapping[str, str]) -> Path:
    """`$AIRLOCK_STORE`, or `airlock/store` in the platform's directory for user data. Raises StoreError for no path."""
    if chosen := environ.get("AIRLOCK_STORE"):
        try:
            return expand_home(chosen).absolute()
        except ConfigError as error:
            raise StoreError(f"AIRLOCK_STORE: {error.message}") from error
    import platformdirs

    return platformdirs.user_data_path("airlock", appauthor=False) / "store"


def expand_home(path: str, at: Location | None = None) -> Path:
    """`path` with a home in place of `~` or `~USER` at its beginning. Raises ConfigError, placed `at`, for nobody's."""
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise ConfigError(f"{path!r}: there is no such user", at=at) from error


def sanitise(name: str) -> str:
    """`name` with everything replaced that has no place in a file name."""
    cleaned = re.sub(r"[^A-Za-z0-9+_.-]+", "-", name).strip("-.")[:_NAME_LIMIT]
    return cleaned or "unnamed"


def directory_name(key: str, name: str) -> str:
    """The name of the store path of `key` and `name`. Raises StoreError for what is not a key."""
    full = f"{key}-{sanitise(name)}"
    if not _PATH_NAME.fullmatch(full):
        raise StoreError(f"not a store key: {key!r}")
    return full


def parse(path: Path) -> StorePath | None:
    """`path` as a store path if its last component looks like one."""
    match = _PATH_NAME.fullmatch(path.name)
    return StorePath(path, match[1], match[2]) if match else None
