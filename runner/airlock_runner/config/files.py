"""Where config files are and how each is read: slots, in which the first of several spellings counts.

Called by `airlock_runner.config.layers`.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from airlock_store.document import read_text, read_toml

if TYPE_CHECKING:
    from collections.abc import Sequence

    from airlock_store.document import Document

SUFFIXES = (".toml", ".json", ".yaml", ".yml")
PROJECT, LOCAL = "airlock", "airlock.local"
USER_DIRECTORY = ".airlock"
PRESETS = "presets"


@dataclass(frozen=True, slots=True)
class Slot:
    """A place for one config file. `ignored` are files that lie there too but come after `path`."""

    path: Path
    ignored: tuple[Path, ...] = ()


def project_slot(root: Path) -> Slot | None:
    """The config of the project at `root` that its people share: airlock.toml, .json, .yaml or .yml."""
    return _slot([root / PROJECT])


def local_slot(root: Path) -> Slot | None:
    """What one developer has on top of it: airlock.local.toml and so on."""
    return _slot([root / LOCAL])


def user_slot(home: Path | None) -> Slot | None:
    """What the user has for all projects: ~/.airlock/config.toml and so on, else ~/.airlock.toml and so on."""
    return _slot([home / USER_DIRECTORY / "config", home / USER_DIRECTORY]) if home else None


def preset_slot(home: Path | None, name: str) -> Slot | None:
    """The preset `name`: ~/.airlock/presets/NAME.toml and so on."""
    return _slot([home / USER_DIRECTORY / PRESETS / name]) if home else None


def home_directory() -> Path | None:
    """The user's home, or None for a user without one."""
    try:
        return Path.home()
    except RuntimeError:
        return None


def fingerprint(root: Path) -> dict[str, tuple[int, ...]]:
    """What tells by name whether a config file of the project was changed since: what a sandbox cannot forge.

    It can set a file's modification time, but not the time of the change of its inode.
    """
    found: dict[str, tuple[int, ...]] = {}
    for name in (f"{stem}{suffix}" for stem in (PROJECT, LOCAL) for suffix in SUFFIXES):
        try:
            status = (root / name).stat()
        except OSError:
            continue
        found[name] = (status.st_dev, status.st_ino, status.st_size, status.st_ctime_ns)
    return found


def read_config(path: Path) -> Document:
    """The document in `path`, read as its suffix says. Raises ConfigError with the place of what is wrong."""
    if path.suffix == ".toml":
        return read_toml(path)
    if path.suffix == ".json":
        from airlock_runner.config.json_text import parse_json

        return parse_json(read_text(path), path)
    from airlock_runner.config.yaml_text import parse_yaml

    return parse_yaml(read_text(path), path)


def _slot(stems: Sequence[Path]) -> Slot | None:
    # What cannot be read is there too: silence about a broken link would be a config that nobody applies.
    candidates = (stem.with_name(stem.name + suffix) for stem in stems for suffix in SUFFIXES)
    found = [path for path in candidates if path.is_symlink() or path.exists()]
    return Slot(found[0], tuple(found[1:])) if found else None
