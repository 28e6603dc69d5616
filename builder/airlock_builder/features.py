"""Kernel features: what a recipe may ask of the kernel, and the fragments that say which options this takes.

Called by build and `airlock kernel`. All data is in `kernel-configs/`: features.toml, fragments, two more tables.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from airlock_store.errors import ConfigError, Location

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from pathlib import Path

NEEDED = "sandbox"
"""The feature without which airlockd cannot work."""
FRAGMENT_SUFFIX = ".config.j2"

_KINDS = {"includes": "feature", "fragments": "fragment"}


@dataclass(frozen=True, slots=True)
class Feature:
    """`[features.NAME]`. `fragments` are names of files in kernel-configs, without their suffix."""

    summary: str
    includes: tuple[str, ...] = ()
    fragments: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Features:
    """The whole of features.toml."""

    features: Mapping[str, Feature] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class KernelConfigs:
    """What `kernel-configs/` holds: features, the texts of all fragments by name, the texts of two tables."""

    features: Mapping[str, Feature]
    fragments: Mapping[str, str] = field(default_factory=dict)
    modules: str = ""
    waivers: str = ""

    def sources(self, features: Iterable[Feature]) -> dict[str, str]:
        """The texts of the fragments of `features`, each once."""
        return {name: self.fragments[name] for feature in features for name in feature.fragments}


def load_configs(directory: Path) -> KernelConfigs:
    """Read `kernel-configs/`. Raises ConfigError for what is wrong in features.toml, or a file that is missing."""
    from airlock_store.document import read_toml
    from airlock_store.schema import decode

    document = read_toml(directory / "features.toml")
    known = decode(document, Features).features
    fragments = {
        path.name.removesuffix(FRAGMENT_SUFFIX): path.read_text(encoding="utf-8")
        for path in sorted(directory.glob(f"*{FRAGMENT_SUFFIX}"))
    }
    for name, feature in known.items():
        for key, names, there in (
            ("includes", feature.includes, known.keys()),
            ("fragments", feature.fragments, fragments.keys()),
        ):
            for index, each in enumerate(names):
                if each not in there:
                    at = document.at(("features", name, key, index))
                    raise ConfigError(f"no {_KINDS[key]} is named {each!r}", at=at)
    return KernelConfigs(
        known,
        fragments,
        (directory / "modules.toml").read_text(encoding="utf-8"),
        (directory / "waivers.toml").read_text(encoding="utf-8"),
    )


def select(known: Mapping[str, Feature], wanted: Sequence[tuple[str, Location]]) -> dict[str, Feature]:
    """The features that are wanted, with places, and those that they include: included ones first, each once.

    Raises ConfigError for a name that is not known.
    """
    chosen: dict[str, Feature] = {}
    visited: set[str] = set()

    def visit(name: str) -> None:
        if name not in visited:
            visited.add(name)
            for included in known[name].includes:
                visit(included)
            chosen[name] = known[name]

    for name, at in wanted:
        if name not in known:
            raise ConfigError(f"no kernel feature is named {name!r}", hint=_suggestion(name, known), at=at)
        visit(name)
    return chosen


def _suggestion(name: str, known: Mapping[str, Feature]) -> str:
    import difflib

    if close := difflib.get_close_matches(name, known, n=1):
        return f"did you mean {close[0]!r}?"
    return f"known features: {', '.join(known)}"
