"""`airlock config`: what the config files of this project come to, and what a config file may say."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from airlock.cli import group
from airlock.output import in_comment, note, say, say_json, say_toml
from airlock_store.errors import AirlockError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from airlock_runner.config.effective import Setting
    from airlock_runner.config.layers import Layers
    from airlock_store.document import Document
    from airlock_store.errors import Location


@group("config", examples=["airlock config show", "airlock config schema > airlock.schema.json"])
def config() -> None:
    """Show or approve the configuration of this project, or print the schema of config files."""


@config.command("show", examples=["airlock config show", "airlock config show --json"])
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def show(as_json: bool) -> None:
    """Print what all config files and the image come to, with the place that each value was written at.

    References such as ${TOKEN} are printed as they are written, not what they stand for.
    """
    from airlock_runner.config.effective import settings
    from airlock_runner.config.layers import read_layers, without_disabled
    from airlock_runner.config.load import whole
    from airlock_store.errors import ConfigError
    from airlock_store.services import lay

    layers = read_layers(Path.cwd())
    brought, suggested = _of_image()
    document = lay(brought, layers.document)
    if problems := whole(without_disabled(document))[1]:
        raise ConfigError.of(problems)
    found = settings(lay(suggested, document))
    if as_json:
        say_json(_as_json(layers, found))
    else:
        say_toml("\n".join([*_heading(layers), *_as_toml(found)]))


@config.command("approve", examples=["airlock config approve"])
def approve() -> None:
    """Show what a sandbox may have changed in this project's config files while it ran, and agree to it.

    Asks on a terminal, after all of it was shown. A start asks for this too, if it is not much, and refuses without a
    terminal.
    """
    from airlock_runner import approval

    root = Path.cwd()
    now = approval.snapshot(root)
    lines = approval.changes(root, now)
    if not lines:
        note("There is nothing to approve: no sandbox has changed the config here.")
        return
    asks = sys.stdin.isatty() and sys.stderr.isatty()
    say("\n".join(["To approve:" if asks else "Approved:", *(f"    {line}" for line in lines)]))
    if asks and not click.confirm("Agree to all of it?", err=True):
        raise AirlockError("not approved", hint="undo what was changed")
    approval.approve(root, now)


@config.command("schema", examples=["airlock config schema > airlock.schema.json"])
def schema() -> None:
    """Print the JSON Schema of config files: for editors, and for whoever writes configs by program."""
    from airlock_runner.config.schema import json_schema

    say_json(json_schema())


def _of_image() -> tuple[Document, Document]:
    """What the image brings and what it suggests, if that can be known."""
    from airlock import images
    from airlock_store.document import Document
    from airlock_store.errors import AirlockError
    from airlock_store.store import Store

    here = Path.cwd()
    try:
        return images.described(images.project_image(here), Store.open(), here)
    except AirlockError:
        # The config is what was asked for; `airlock start` tells what is wrong with the image.
        return Document({}, here), Document({}, here)


def _as_json(layers: Layers, found: Iterable[Setting]) -> dict[str, Any]:
    return {
        "files": [slot.path for slot in layers.slots],
        "ignored": [path for slot in layers.slots for path in slot.ignored],
        "settings": [
            {
                "key": each.place,
                "value": each.value,
                "from": each.at and _place(each.at),
                "elements": [_place(at) for at in each.elements],
                "unset": each.unset or None,
            }
            for each in found
        ],
    }


def _place(at: Location) -> dict[str, Any]:
    return {"file": at.path, "line": at.line, "column": at.column}


def _heading(layers: Layers) -> Iterator[str]:
    if not layers.slots:
        yield "# no config file"
    for slot in layers.slots:
        yield f"# {_short(slot.path)}"
        for path in slot.ignored:
            yield f"# {_short(path)} is not read: {slot.path.name} comes first"


def _as_toml(found: Iterable[Setting]) -> Iterator[str]:
    import tomlkit

    table: tuple[str | int, ...] = ()
    for each in found:
        if each.place[:-1] != table:
            table = each.place[:-1]
            yield f"\n[{'.'.join(tomlkit.key(str(key)).as_string() for key in table)}]"
        key = tomlkit.key(str(each.place[-1])).as_string()
        if each.at is None:
            yield f"# {key}: {each.unset}"
        elif each.elements:
            yield f"{key} = ["
            for value, at in zip(each.value, each.elements, strict=True):
                yield f"    {tomlkit.item(value).as_string()},  # {_line(at)}"
            yield "]"
        else:
            yield f"{key} = {tomlkit.item(each.value).as_string()}  # {_line(each.at)}"


def _line(at: Location) -> str:
    return f"{_short(at.path)}:{at.line}" if at.line else _short(at.path)


def _short(path: Path) -> str:
    """`path` as people call it: from here, or from their home."""
    for base, prefix in ((Path.cwd(), ""), (Path(os.path.expanduser("~")), "~/")):
        if path.is_relative_to(base):
            return f"{prefix}{in_comment(path.relative_to(base))}"
    return in_comment(path)
