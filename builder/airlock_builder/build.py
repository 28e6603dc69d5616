"""The builder's front door: `plan` says what an image is made of, `build` makes what the store lacks of it.

Called by the face. `plan` touches neither store nor network and is quick enough for every start.
"""

from __future__ import annotations

import hashlib
import platform
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from airlock_builder.features import NEEDED, load_configs, select
from airlock_builder.kernel.toolchain import compiler_of
from airlock_builder.lookup import shipped
from airlock_builder.pack.airlockd import airlockd_digest
from airlock_builder.plan import DEBIAN_ARCHITECTURES, Ingredients, Plan, make_plan
from airlock_builder.realise import Realiser, Silent, StepResult
from airlock_builder.recipe import load_recipe
from airlock_builder.step import Reporter
from airlock_builder.tools import look_up
from airlock_store.errors import BuildError, ConfigError

if TYPE_CHECKING:
    from airlock_builder.recipe import LoadedRecipe
    from airlock_store.errors import Location
    from airlock_store.store import Store, StorePath

__all__ = ["BuildResult", "Plan", "Reporter", "StepResult", "build", "ingredients", "plan"]


@dataclass(frozen=True, slots=True)
class BuildResult:
    """The image, and every step that was looked at, in the order in which they ended."""

    image: StorePath
    steps: tuple[StepResult, ...]


def plan(ref: str, *, base: Path | None = None) -> Plan:
    """The plan for the recipe `ref` (a name, or a path relative to `base`, by default the current directory).

    Raises ConfigError for what is wrong in the recipe.
    """
    loaded = load_recipe(ref, base or Path.cwd())
    made = ingredients(loaded)
    if NEEDED not in made.features:
        raise ConfigError(
            f"none of these features includes {NEEDED!r}, without which airlockd cannot work",
            at=loaded.document.at(("kernel", "features")),
        )
    return make_plan(loaded, made)


def ingredients(loaded: LoadedRecipe, arch: str | None = None) -> Ingredients:
    """What an image of `loaded` is made of on this machine, or for another architecture (as uname names it).

    Raises ConfigError for features that are not known, BuildError for an architecture.
    """
    host = _uname(platform.machine())
    arch = _uname(arch) if arch else host
    if arch not in DEBIAN_ARCHITECTURES:
        raise BuildError(
            f"images cannot be built for {arch}", hint=f"Known: {', '.join(DEBIAN_ARCHITECTURES)}."
        )
    configs = load_configs(shipped("kernel-configs"))
    return Ingredients(
        arch=arch,
        host=host,
        features=select(configs.features, _wanted_features(loaded)),
        configs=configs,
        airlockd_digest=airlockd_digest(),
        mmdebstrap_digest=_digest_of_program("mmdebstrap"),
        compiler=compiler_of(arch) if loaded.recipe.kernel.provider == "compiled" else "",
    )


def build(plan: Plan, store: Store, reporter: Reporter | None = None) -> BuildResult:
    """The image of `plan`, built as far as the store lacks it.

    Raises BuildError, MissingToolError or StoreError; KeyboardInterrupt leaves neither processes nor half paths.
    """
    realiser = Realiser(store, reporter or Silent())
    if found := store.find(plan.image_key, plan.image_name):
        realiser.realise(plan.image)
        return BuildResult(found, tuple(realiser.results))
    if any(step.kind == "rootfs" and not store.find(step.key, step.name) for step in plan.steps):
        # What is missing for the last of it is better told before the packages are fetched.
        from airlock_builder.rootfs import mmdebstrap

        mmdebstrap.require()
    with store.in_use():
        image = realiser.realise(plan.image)
    return BuildResult(image, tuple(realiser.results))


def _uname(arch: str) -> str:
    """Linux's name of an architecture that other systems name otherwise."""
    return {"arm64": "aarch64", "amd64": "x86_64"}.get(arch, arch)


def _wanted_features(loaded: LoadedRecipe) -> list[tuple[str, Location]]:
    names = loaded.recipe.kernel.features
    return [(name, loaded.document.at(("kernel", "features", n))) for n, name in enumerate(names)]


def _digest_of_program(name: str) -> str:
    """A digest of the program that steps run: a script that carries its version in it. Empty where there is none."""
    found = look_up(name)
    return hashlib.sha256(found.read_bytes()).hexdigest() if found else ""
