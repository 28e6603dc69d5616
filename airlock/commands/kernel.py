"""`airlock kernel`: what a recipe's kernel is asked for, and whether it has it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from airlock.cli import face, group, recipes
from airlock.output import note, say, say_json, say_table

if TYPE_CHECKING:
    from airlock_builder.kernel.verify import Verdict
    from airlock_builder.plan import Ingredients
    from airlock_builder.recipe import LoadedRecipe

_ARCH = click.option(
    "--arch",
    type=click.Choice(["x86_64", "aarch64"]),
    help="The kernel for this architecture instead of the host's.",
)
_JSON = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


@group("kernel", examples=["airlock kernel features", "airlock kernel check base"])
def kernel() -> None:
    """Show and check the kernel configuration of recipes."""


@kernel.command("features", examples=["airlock kernel features", "airlock kernel features --json"])
@_JSON
def features(as_json: bool) -> None:
    """List the features that a recipe can ask of its kernel."""
    from airlock_builder.features import load_configs
    from airlock_builder.lookup import shipped

    known = load_configs(shipped("kernel-configs")).features
    if as_json:
        say_json(
            [
                {
                    "name": name,
                    "summary": feature.summary,
                    "includes": feature.includes,
                    "fragments": feature.fragments,
                }
                for name, feature in known.items()
            ]
        )
        return
    say_table(
        ((name, " ".join(feature.includes), feature.summary) for name, feature in known.items()),
        heads=("NAME", "INCLUDES", "SUMMARY"),
    )


@kernel.command(
    "render", examples=["airlock kernel render base", "airlock kernel render base --arch aarch64"]
)
@click.argument("recipe", required=False, shell_complete=recipes)
@_ARCH
@_JSON
def render(recipe: str | None, arch: str | None, as_json: bool) -> None:
    """Print the options that RECIPE asks of its kernel, as a config, with who asked for each.

    Without RECIPE, those of the image that airlock.toml here asks for, or else of 'base'.
    """
    from airlock_builder.kernel.dotconfig import format_option
    from airlock_builder.kernel.wanted import wanted_options
    from airlock_builder.plan import kernel_request

    wanted = wanted_options(kernel_request(*_load(recipe, arch)))
    if as_json:
        say_json(
            [
                {
                    "option": each.option,
                    "value": each.value,
                    "asked": [{"value": by.value, "by": by.who, "at": by.place} for by in each.asked],
                }
                for each in wanted.values()
            ]
        )
        return
    for each in wanted.values():
        # On a line of its own: behind a value, a comment would be part of it.
        asked = (str(by) if by.value == each.value else f"{by}: {by.value}" for by in reversed(each.asked))
        say(f"# {', '.join(asked)}\n{format_option(each.option, each.value)}")


@kernel.command("check", examples=["airlock kernel check base", "airlock kernel check ./mine.toml --json"])
@click.argument("recipe", required=False, shell_complete=recipes)
@_ARCH
@_JSON
@click.option("-v", "--verbose", is_flag=True, help="Show what the tools write.")
def check(recipe: str | None, arch: str | None, as_json: bool, verbose: bool) -> int:
    """Prove that the kernel of RECIPE has all that it is asked for, without compiling it.

    Debian's kernel is fetched and its config compared; for one that is compiled, the source is fetched and its own
    Kconfig resolves the config. The exit code is 1 if an option is lost; with -q, only those are printed.
    """
    from airlock.progress import reporter
    from airlock_builder.kernel.check import check_kernel
    from airlock_store.store import Store

    loaded, made = _load(recipe, arch)
    with reporter(quiet=face().quiet, verbose=verbose) as told:
        checked = check_kernel(loaded, made, Store.open(), told)
    failed = [verdict for verdict in checked.verdicts if verdict.state == "lost"]
    if as_json:
        say_json({"release": checked.release, "options": [_as_json(verdict) for verdict in checked.verdicts]})
    else:
        shown = failed if face().quiet else checked.verdicts
        if shown:
            say_table(map(_row, shown), heads=("OPTION", "WANTED", "FOUND", "VERDICT", "FOR"))
        for verdict in shown:
            if verdict.reason:
                say(f"CONFIG_{verdict.wanted.option}: {verdict.reason}")
        if not face().quiet:
            kept = len(checked.verdicts) - len(failed)
            note(
                f"{checked.release or 'not usable'}: {kept} of {len(checked.verdicts)} options as asked for or waived"
            )
    return 1 if failed else 0


def _load(recipe: str | None, arch: str | None) -> tuple[LoadedRecipe, Ingredients]:
    from airlock.images import project_image
    from airlock_builder.build import ingredients
    from airlock_builder.recipe import load_recipe

    here = Path.cwd()
    loaded = load_recipe(project_image(here) if recipe is None else recipe, here)
    return loaded, ingredients(loaded, arch)


def _row(verdict: Verdict) -> tuple[str, ...]:
    wanted = verdict.wanted
    return f"CONFIG_{wanted.option}", wanted.value, verdict.found, verdict.state, str(wanted.by)


def _as_json(verdict: Verdict) -> dict[str, Any]:
    wanted = verdict.wanted
    return {
        "option": wanted.option,
        "wanted": wanted.value,
        "found": verdict.found,
        "verdict": verdict.state,
        "reason": verdict.reason,
        "by": wanted.by.who,
        "at": wanted.by.place,
    }
