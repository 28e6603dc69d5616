"""What a kernel is asked for: from features, fragments and a recipe's own options to one value per option.

Pure. `plan` makes a KernelRequest of a recipe, the kernel's steps and `airlock kernel` take `wanted_options` of it.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from airlock_store.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from airlock_builder.kernel.versions import Version
    from airlock_store.errors import Location


@dataclass(frozen=True, slots=True)
class Override:
    """An option of a recipe, in `[kernel.options]`, and where it is written."""

    value: str
    at: Location


@dataclass(frozen=True, slots=True)
class KernelRequest:
    """A kernel as a recipe asks for it. `arch` is uname's name.

    `features` has the fragments of each feature, included ones first; `sources` the text of each fragment.
    `modules` and `waivers` are the texts of these files of kernel-configs/.
    """

    provider: str
    arch: str
    version: Version
    features: Mapping[str, tuple[str, ...]]
    sources: Mapping[str, str]
    options: Mapping[str, Override] = field(default_factory=dict)
    modules: str = ""
    waivers: str = ""

    def parameters(self) -> dict[str, Any]:
        """What decides the kernel's config, for the key of a step.

        Fragments count by their bytes and are not rendered for it: planning is on the way of every start, and Jinja2
        alone would take as long as all the rest of it.
        """
        return {
            "provider": self.provider,
            "arch": self.arch,
            "version": list(self.version),
            "features": {name: list(fragments) for name, fragments in self.features.items()},
            # Objects lose their order in a key.
            "order": list(self.features),
            "sources": {name: _digest(text) for name, text in self.sources.items()},
            "options": {name: override.value for name, override in self.options.items()},
            "modules": _digest(self.modules),
            "waivers": _digest(self.waivers),
        }


@dataclass(frozen=True, slots=True)
class Asked:
    """Somebody asks for a value: `who` is a feature or the recipe, `place` a line of a fragment or of the recipe."""

    value: str
    who: str
    place: str

    def __str__(self) -> str:
        return f"{self.who} ({self.place})"


@dataclass(frozen=True, slots=True)
class Wanted:
    """An option, the value that it must have, and who asked, last who decided."""

    option: str
    value: str
    asked: tuple[Asked, ...]

    @property
    def by(self) -> Asked:
        """Who decided."""
        return self.asked[-1]


def wanted_options(request: KernelRequest) -> dict[str, Wanted]:
    """All options that `request` asks for, sorted by name.

    Raises ConfigError where two lines disagree and the recipe does not decide, and for what is wrong in a fragment.
    """
    asked: dict[str, list[Asked]] = {}
    for option, one in _asked_by_features(request):
        if one not in (known := asked.setdefault(option, [])):
            known.append(one)
    for option, override in request.options.items():
        asked.setdefault(option, []).append(
            Asked(override.value, "the recipe", f"{override.at.path.name}:{override.at.line}")
        )
    problems = [
        _conflict(option, who)
        for option, who in sorted(asked.items())
        if option not in request.options and len({each.value for each in who}) > 1
    ]
    if problems:
        raise ConfigError.of(problems)
    return {
        option: Wanted(option, who[-1].value, _with_same_value_last(who))
        for option, who in sorted(asked.items())
    }


def _asked_by_features(request: KernelRequest) -> list[tuple[str, Asked]]:
    from airlock_builder.kernel.fragments import render

    variables = {
        "arch": request.arch,
        "version": request.version,
        "features": frozenset(request.features),
        "provider": request.provider,
    }
    rendered = {name: render(name, text, variables) for name, text in request.sources.items()}
    return [
        (line.option, Asked(line.value, feature, line.place))
        for feature, fragments in request.features.items()
        for name in fragments
        for line in rendered[name]
    ]


def _with_same_value_last(who: list[Asked]) -> tuple[Asked, ...]:
    """Those that the recipe overrules come first."""
    return tuple(sorted(who, key=lambda asked: asked.value == who[-1].value))


def _conflict(option: str, who: list[Asked]) -> ConfigError:
    one = who[0]
    other = next(each for each in who if each.value != one.value)
    return ConfigError(
        f"CONFIG_{option}: {one} asks for {one.value}, {other} for {other.value}",
        hint=f'Decide in the recipe: [kernel.options] {option} = "{one.value}"',
    )


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
