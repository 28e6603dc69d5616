"""From what a user calls an image (recipe, file or store path) to an image that boots, building it if need be.

Used by `airlock start`, `build`, `kernel` and `image inspect`.
"""

from __future__ import annotations

import signal
from contextlib import contextmanager
from typing import TYPE_CHECKING

from airlock_store.errors import StoreError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from airlock_builder.build import BuildResult, Plan
    from airlock_store.document import Document
    from airlock_store.image import Image
    from airlock_store.store import Store, StorePath

DEFAULT_RECIPE = "base"


def project_image(here: Path) -> str:
    """The image that airlock.toml in `here` asks for, or else the default. Raises ConfigError."""
    from airlock_runner.config import configured_image

    return configured_image(here) or DEFAULT_RECIPE


def stored(ref: str, store: Store, base: Path) -> Image | None:
    """The image that `ref` names as a path, or as the name of a directory in the store; None for recipes.

    What has no slash is no path: in a project's directory a sandbox could have put an image of that name there.
    """
    from airlock_store.image import MANIFEST, load_image
    from airlock_store.paths import expand_home

    path = base / expand_home(ref) if "/" in ref else store.root / ref
    return load_image(path.resolve()) if (path / MANIFEST).is_file() else None


def build(ref: str, store: Store, base: Path, *, quiet: bool, verbose: bool) -> BuildResult:
    """Build the recipe `ref`, doing only what the store lacks, with progress on stderr unless `quiet`."""
    from airlock_builder.build import plan

    return realise(plan(ref, base=base), store, quiet=quiet, verbose=verbose)


def realise(planned: Plan, store: Store, *, quiet: bool, verbose: bool) -> BuildResult:
    """The image of a plan, with progress on stderr unless `quiet`."""
    from airlock.progress import reporter
    from airlock_builder.build import build

    # An image that is there takes less time than a display that has nothing to show.
    there = store.find(planned.image_key, planned.image_name) is not None
    with _ended_in_order(), reporter(quiet=quiet or there, verbose=verbose) as told:
        return build(planned, store, told)


@contextmanager
def _ended_in_order() -> Iterator[None]:
    """SIGTERM, and SIGHUP of a terminal that is closed, end a build as Ctrl-C does, and then this process as ever."""
    got: list[int] = []

    def interrupt(number: int, _frame: object) -> None:
        got.append(number)
        signal.raise_signal(signal.SIGINT)

    # A job in the background of a script ignores Ctrl-C.
    ours = (signal.SIGTERM, signal.SIGHUP) if callable(signal.getsignal(signal.SIGINT)) else ()
    previous = {
        number: signal.signal(number, interrupt)
        for number in ours
        if signal.getsignal(number) is signal.SIG_DFL
    }
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
        if got:
            signal.raise_signal(got[0])


def described(ref: str, store: Store, base: Path) -> tuple[Document, Document]:
    """What the image of `ref`, built or not, brings to a project's config, and what it suggests: two layers.

    Each value has the place where the recipe, or else the image's manifest, has it. Raises AirlockError.
    """
    from airlock_builder.build import plan
    from airlock_runner.config.json_text import parse_json
    from airlock_runner.config.layers import image_layer, suggestion_layer
    from airlock_store.document import read_text
    from airlock_store.image import MANIFEST
    from airlock_store.sizes import exact_size

    image = stored(ref, store, base)
    if image is None:
        planned = plan(ref, base=base)
        recipe = planned.recipe.document
        suggested = suggestion_layer(
            recipe.data.get("vm", {}), recipe.data.get("env", {}), recipe.path, recipe.where
        )
        return brought_by_plan(planned), suggested
    path = image.path / MANIFEST
    where = parse_json(read_text(path), path).where
    vm = {
        "cpus": image.vm.cpus,
        "memory": exact_size(image.vm.memory) if image.vm.memory is not None else None,
        "harden": image.vm.harden,
        "user": image.vm.user,
    }
    inner = {place[1:]: at for place, at in where.items() if place[0] == "brings"}
    return image_layer(image.brings, path, inner), suggestion_layer(vm, image.env, path, where)


def brought_by(image: Image) -> Document:
    """What an image brings."""
    from airlock_runner.config.layers import image_layer
    from airlock_store.image import MANIFEST

    return image_layer(image.brings, image.path / MANIFEST)


def brought_by_plan(planned: Plan) -> Document:
    """What the image of a plan will bring."""
    from airlock_runner.config.layers import image_layer

    recipe = planned.recipe.document
    return image_layer(planned.image.parameters["brings"], recipe.path, recipe.where)


def find(ref: str, store: Store, base: Path) -> Image:
    """The image of `ref` without building anything. Raises StoreError when the store lacks it."""
    from airlock_builder.build import plan
    from airlock_store.image import load_image

    image = stored(ref, store, base)
    if image is not None:
        return image
    planned = plan(ref, base=base)
    path = store.find(planned.image_key, planned.image_name)
    if path is None:
        raise StoreError(f"the image of {ref!r} is not in the store", hint=f"airlock build {ref}")
    return load_image(path.path)


def in_store(image: Image, store: Store) -> StorePath | None:
    """The store path of `image`, if it lies in this store and not elsewhere."""
    from airlock_store.paths import parse

    return parse(image.path) if image.path.parent == store.root.resolve() else None
