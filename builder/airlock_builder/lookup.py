"""Where recipes and kernel features are found. Called by recipe and build.

The user's directories come first, then those that ship with airlock.
"""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from airlock_store.errors import ConfigError, Location
from airlock_store.image import MANIFEST
from airlock_store.paths import expand_home

if TYPE_CHECKING:
    from collections.abc import Iterator


class FoundRecipe(NamedTuple):
    """A recipe that can be named. `summary` is empty where the file cannot be read."""

    name: str
    path: Path
    summary: str


def find_recipes() -> list[FoundRecipe]:
    """All recipes that a name finds, sorted by it."""
    found: dict[str, Path] = {}
    for directory in recipe_directories():
        with suppress(OSError):
            for name in os.listdir(directory):
                path = directory / name
                if path.suffix == ".toml" and os.path.isfile(path):
                    found.setdefault(path.stem, path)
    return [FoundRecipe(name, path, _summary(path)) for name, path in sorted(found.items())]


def resolve(ref: str, base: Path, at: Location | None) -> Path:
    """The file of the recipe `ref`; a relative path starts from `base`. Raises ConfigError, placed `at`."""
    if "/" in ref or ref.endswith(".toml"):
        path = (base / expand_home(ref, at)).absolute()
        if os.path.isdir(path):
            problem = f"{str(path)!r} is neither an image, which has a file {MANIFEST}, nor a recipe"
            raise ConfigError(problem, hint="a recipe is a file, NAME.toml", at=at)
        if not os.path.isfile(path):
            raise ConfigError(f"there is no recipe {str(path)!r}", at=at)
        return path.resolve()
    for directory in recipe_directories():
        path = directory / f"{ref}.toml"
        if os.path.isfile(path):
            return path.resolve()
    raise ConfigError(f"no recipe is named {ref!r}", hint=_suggestion(ref), at=at)


def recipe_directories() -> Iterator[Path]:
    """The directories that names are looked for in, in that order; not all of them exist or can be searched."""
    import platformdirs

    for directory in os.environ.get("AIRLOCK_RECIPES", "").split(":"):
        if directory:
            # That of a user who does not exist is as good as any other that is not there.
            with suppress(ConfigError):
                yield expand_home(directory).absolute()
    yield platformdirs.user_config_path("airlock", appauthor=False) / "recipes"
    yield shipped("recipes")


def shipped(name: str) -> Path:
    """The directory `name` that comes with airlock: beside the packages in a checkout, in the prefix else."""
    checkout = Path(__file__).resolve().parents[2]
    if (checkout / "pyproject.toml").is_file() and (checkout / name).is_dir():
        return checkout / name
    return Path(sys.prefix, "share", "airlock", name)


def _suggestion(ref: str) -> str:
    import difflib

    names = [recipe.name for recipe in find_recipes()]
    close = difflib.get_close_matches(ref, names, n=3) or names
    start = "Nearest" if close is not names else "Known"
    return f"{start}: {', '.join(close)}" if close else "Set AIRLOCK_RECIPES to a directory with recipes."


def _summary(path: Path) -> str:
    import tomllib

    from airlock_store.document import read_text

    try:
        summary = tomllib.loads(read_text(path))["recipe"]["summary"]
    except (ConfigError, ValueError, RecursionError, KeyError, TypeError):
        return ""
    return summary if isinstance(summary, str) else ""
