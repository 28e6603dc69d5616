"""Verdicts on the kernel of a recipe without building its image: for `airlock kernel check`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from airlock_builder.kernel.dotconfig import parse_config
from airlock_builder.kernel.output import CONFIG, RELEASE
from airlock_builder.kernel.verify import OptionsLostError, verify
from airlock_builder.kernel.waivers import parse_waivers
from airlock_builder.kernel.wanted import wanted_options
from airlock_builder.plan import kernel_request, kernel_steps
from airlock_builder.realise import Realiser
from airlock_store.errors import BuildError

if TYPE_CHECKING:
    from airlock_builder.kernel.verify import Verdict
    from airlock_builder.plan import Ingredients
    from airlock_builder.recipe import LoadedRecipe
    from airlock_builder.step import Reporter
    from airlock_store.store import Store


@dataclass(frozen=True, slots=True)
class Checked:
    """Verdicts on all options. `release` is the kernel's, or None where an option is lost."""

    verdicts: tuple[Verdict, ...]
    release: str | None


def check_kernel(loaded: LoadedRecipe, made: Ingredients, store: Store, reporter: Reporter) -> Checked:
    """Have the kernel's config resolved, or fetch a prebuilt one, and judge it; nothing is compiled.

    Raises ConfigError, BuildError, MissingToolError or StoreError, but not for options that are lost.
    """
    step = kernel_steps(loaded, made)[0]
    try:
        with store.in_use():
            path = Realiser(store, reporter).realise(step)
    except BuildError as error:
        if isinstance(error.__cause__, OptionsLostError):
            return Checked(error.__cause__.verdicts, None)
        raise
    request = kernel_request(loaded, made)
    verdicts = verify(
        wanted_options(request),
        parse_config((path / CONFIG).read_text(encoding="utf-8"), path / CONFIG),
        version=request.version,
        arch=request.arch,
        waivers=parse_waivers(request.waivers, Path("waivers.toml")),
        modules=request.provider == "debian",
    )
    return Checked(tuple(verdicts), (path / RELEASE).read_text(encoding="utf-8").strip())
