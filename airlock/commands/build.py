"""`airlock build`: a recipe becomes an image in the store."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from airlock.cli import command, directories, face, recipes
from airlock.output import note, say, say_json, say_table, space_of
from airlock_store.sizes import format_size

if TYPE_CHECKING:
    from airlock_builder.build import BuildResult
    from airlock_store.store import Store


@command(
    "build",
    examples=[
        "airlock build",
        "airlock build base",
        "airlock build --warm",
        "airlock build ./my-image.toml --json",
    ],
)
@click.argument("recipe", required=False, shell_complete=recipes)
@click.option(
    "--store", "directory", metavar="DIR", shell_complete=directories,
    help="Build into this store instead of the usual one.",
)  # fmt: skip
@click.option("--warm", is_flag=True, help="Also save the machine state that makes the first start fast.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
@click.option("-v", "--verbose", is_flag=True, help="Show what the tools write.")
def build(*, recipe: str | None, directory: str | None, warm: bool, as_json: bool, verbose: bool) -> None:
    """Build the image of RECIPE: a name, or the path of a TOML file.

    Without RECIPE, the image that airlock.toml here asks for, or else 'base'. Only what the store lacks is done;
    with -q, only the image's store path is printed.
    """
    from airlock import images
    from airlock_store.paths import expand_home
    from airlock_store.store import Store

    store = Store(expand_home(directory).absolute(), "--store") if directory else Store.open()
    ref = images.project_image(Path.cwd()) if recipe is None else recipe
    result = images.build(ref, store, Path.cwd(), quiet=face().quiet, verbose=verbose)
    if warm:
        _warm(result, store)
    if as_json:
        say_json(_as_json(result))
    elif face().quiet:
        say(str(result.image.path))
    else:
        _say_result(result)


def _warm(result: BuildResult, store: Store) -> None:
    """Save the state for a sandbox as airlock.toml here wants it, or of the default shape."""
    from airlock import images
    from airlock_runner.config import ProjectConfig, find_config, load_config
    from airlock_runner.machine.states import States
    from airlock_runner.probe import warm
    from airlock_store.image import load_image

    here = Path.cwd()
    image = load_image(result.image.path)
    config = load_config(here, under=images.brought_by(image)) if find_config(here) else ProjectConfig()
    states = States.of_store(store.root)
    warm(
        image,
        config,
        here,
        states,
        accelerator="auto",
        note=lambda text: None if face().quiet else note(text),
    )


def _say_result(result: BuildResult) -> None:
    from airlock.progress import duration

    say_table(
        [
            (
                step.kind,
                step.name,
                "cached" if step.cached else duration(step.seconds),
                format_size(space_of(step.path)),
            )
            for step in result.steps
        ],
        heads=("STEP", "NAME", "TIME", "SIZE"),
    )
    say(f"\n{result.image.path}  ({format_size(space_of(result.image.path))})")


def _as_json(result: BuildResult) -> dict[str, object]:
    return {
        "path": result.image.path,
        "key": result.image.key,
        "name": result.image.name,
        "size": space_of(result.image.path),
        "steps": [
            {
                "kind": step.kind,
                "name": step.name,
                "key": step.key,
                "path": step.path,
                "seconds": round(step.seconds, 3),
                "cached": step.cached,
            }
            for step in result.steps
        ],
    }
