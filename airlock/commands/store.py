"""`airlock store`: cleaning, verifying and finding the place where images are kept."""

from __future__ import annotations

from pathlib import Path

import click

from airlock.cli import face, group
from airlock.output import say, say_json
from airlock_store.errors import StoreError
from airlock_store.sizes import format_size


@group("store", examples=["airlock store gc"])
def store() -> None:
    """Clean, verify and locate the store of images and their parts."""


@store.command("gc", examples=["airlock store gc", "airlock store gc --states"])
@click.option(
    "--states", "all_states", is_flag=True, help="Remove all saved machine states, and nothing else."
)
def gc(all_states: bool) -> None:
    """Remove what no project and no named root keeps, and the saved machine states of images that are gone."""
    from airlock_runner.machine.states import States
    from airlock_store.store import Store

    opened = Store.open()
    states = States.of_store(opened.root)
    if all_states:
        freed = states.prune()
        if not face().quiet:
            say(f"all saved machine states removed, {format_size(freed)} freed")
        return
    collected = opened.gc()
    states.prune([image.path for image in opened.images()])
    if not face().quiet:
        for path in collected.removed:
            say(str(path.path))
        say(f"{len(collected.removed)} paths removed, {format_size(collected.freed)} freed")


@store.command("verify", examples=["airlock store verify", 'airlock store verify "$(airlock -q build base)"'])
@click.argument("paths", metavar="[PATH]...", nargs=-1)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def verify(paths: tuple[str, ...], as_json: bool) -> int:
    """Compare every file of PATH, or of the whole store, with its recorded digest. Exit code 1 if any differs."""
    from airlock_store.paths import parse
    from airlock_store.store import Store

    opened = Store.open()
    chosen = []
    for name in paths:
        path = parse(Path(name).absolute())
        if path is None:
            raise StoreError(f"{name} is not a store path", hint=f"store paths lie in {opened.root}")
        chosen.append(path)
    found = []
    for path in chosen or opened.paths():
        try:
            problems = opened.verify(path)
            lines = [f"{path.path}: {problem}" for problem in problems]
        except StoreError as error:
            problems = (error.message,)
            lines = [error.message]
        found.append({"path": path.path, "problems": problems})
        if not problems and not face().quiet:
            lines = [f"{path.path}: good"]
        if not as_json:
            for line in lines:
                say(line)
    if as_json:
        say_json(found)
    return 1 if any(each["problems"] for each in found) else 0


@store.command("path", examples=["du -sh $(airlock store path)"])
def path() -> None:
    """Print where the store is. AIRLOCK_STORE chooses another place."""
    from airlock_store.store import Store

    say(str(Store.open().root))
