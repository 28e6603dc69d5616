"""`airlock recipe`: the recipes that a name finds, and what one says once everything it extends is merged in."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from airlock.cli import group, recipes
from airlock.output import in_comment, say_json, say_table, say_toml

LINE = 80


@group("recipe", examples=["airlock recipe list", "airlock recipe show base"])
def recipe() -> None:
    """List and show recipes."""


@recipe.command("list", examples=["airlock recipe list", "airlock recipe list --json"])
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def list_recipes(as_json: bool) -> None:
    """List the recipes that can be named: yours first, then those that ship."""
    from airlock_builder.recipe import find_recipes

    found = find_recipes()
    if as_json:
        say_json([{"name": each.name, "summary": each.summary, "path": each.path} for each in found])
    else:
        say_table(
            ((each.name, each.summary, str(each.path)) for each in found), heads=("NAME", "SUMMARY", "PATH")
        )


@recipe.command("show", examples=["airlock recipe show base", "airlock recipe show ./my-image.toml"])
@click.argument("name", shell_complete=recipes)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def show(name: str, as_json: bool) -> None:
    """Print the recipe NAME (a name or a path), with what it extends merged in."""
    from airlock_builder.recipe import load_recipe

    loaded = load_recipe(name, Path.cwd())
    if as_json:
        say_json({"sources": [str(source) for source in loaded.sources], "recipe": loaded.document.data})
        return
    sources = "".join(f"# {in_comment(source)}\n" for source in loaded.sources)
    say_toml(f"{sources}\n{as_toml(loaded.document.data)}")


def as_toml(data: dict[str, Any]) -> str:
    """TOML for reading: long arrays have a line per element."""
    import tomlkit
    from tomlkit.items import Array

    document = tomlkit.item(data)
    tables: list[Any] = [document]
    while tables:
        for value in tables.pop().values():
            if isinstance(value, Array):
                value.multiline(len(value.as_string()) > LINE)
            elif isinstance(value, dict):
                tables.append(value)
    return str(document.as_string()).rstrip()
