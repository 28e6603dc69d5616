"""From what a user calls an image (recipe, file or store path) to an image that boots, building it if need be.

Used by `airlock start`, `build`, `kernel` and `image inspect`.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from airlock_store.errors import StoreError

if TYPE_CHECKING:
    from airlock_builder.build import BuildResult
    from airlock_store.image import Image
    from airlock_store.store import Store, StorePath

DEFAULT_RECIPE = "base"


def project_image(here: Path) -> str:
    """The image that airlock.toml in `here` asks for, or else the default. Raises ConfigError."""
    from airlock_runner.config import find_config, load_config

    return (load_config(here).vm.image if find_config(here) else None) or DEFAULT_RECIPE


def stored(ref: str, store: Store, base: Path) -> Image | None:
    """The image that `ref` names as a path, or as the name of a directory in the store; None for recipes."""
    from airlock_store.image import MANIFEST, load_image

    for path in (base / Path(ref).expanduser(), store.root / ref):
        if (path / MANIFEST).is_file():
            return load_image(path.resolve())
    return None


def build(ref: str, store: Store, base: Path, *, quiet: bool, verbose: bool) -> BuildResult:
    """Build the recipe `ref`, doing only what the store lacks, with progress on stderr unless `quiet`."""
    from airlock.progress import reporter
    from airlock_builder.build import build as realise
    from airlock_builder.build import plan

    planned = plan(ref, base=base)
    with reporter(quiet=quiet, verbose=verbose) as told:
        return realise(planned, store, told)


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
