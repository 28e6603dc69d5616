"""A project's config as one value, ready for a start. Called by `airlock start` with the project's root."""

from __future__ import annotations

import os
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from airlock_runner.config.files import PROJECT, local_slot, project_slot
from airlock_runner.config.layers import read_layers, without_disabled
from airlock_runner.config.model import ProjectConfig
from airlock_runner.config.variables import UndefinedVariableError, expand
from airlock_store.errors import ConfigError, noting
from airlock_store.schema import decode
from airlock_store.services import lay
from airlock_store.settings import check_env

if TYPE_CHECKING:
    from pathlib import Path

    from airlock_runner.config.variables import Lookup
    from airlock_store.document import Document, Place
    from airlock_store.errors import Location

CONFIG_NAME = f"{PROJECT}.toml"
MAX_CIRCLES = 20


def find_config(root: Path) -> Path | None:
    """A config file of the project at `root`, shared or local, if it has one, readable or not."""
    slot = project_slot(root) or local_slot(root)
    return slot.path if slot else None


def configured_image(root: Path) -> str | None:
    """The image that the config at `root` asks for, None where it leaves that open. Raises ConfigError."""
    image: str | None = (read_layers(root).document.data.get("vm") or {}).get("image")
    return image


def load_config(
    root: Path, lookup: Lookup = os.environ.get, *, under: Document | None = None
) -> ProjectConfig:
    """The config of the project at `root`, all layers merged, variables replaced by what `lookup` knows.

    `under` is the image's layer, without which a project that only changes what its image brings lacks the rest.
    Raises one ConfigError with every problem and its place: of the files, or where each of them is right, of the whole.
    """
    document = read_layers(root).document
    document = without_disabled(lay(under, document) if under else document)
    config, problems = whole(document)
    daemons: dict[str, Any] = document.data.get("daemons") or {}
    env = _resolve(document, ("env",), lookup, problems)
    daemon_env = {name: _resolve(document, ("daemons", name, "env"), lookup, problems) for name in daemons}
    if problems:
        raise ConfigError.of(problems)
    return replace(
        config,
        env=env,
        daemons={name: replace(each, env=daemon_env[name]) for name, each in config.daemons.items()},
    )


def whole(document: Document) -> tuple[ProjectConfig, list[ConfigError]]:
    """What all layers say together, without the entries that are off; and what is wrong in that as a whole.

    Variables are left as they are written. Where something is wrong, the config is worth nothing.
    """
    config, problems = ProjectConfig(), list[ConfigError]()
    with noting(problems):
        config = decode(document, ProjectConfig)
    return config, problems + _order_problems(document)


def place_of(root: Path, *keys: str) -> Location:
    """Where the config at `root` says `keys`: for what turns out to be wrong only when it is used."""
    return read_layers(root).document.at(keys)


def place_if_said(root: Path, *keys: str | int) -> Location | None:
    """Where the config at `root` says just `keys`, None where it does not or can no longer be read.

    For what turns out while the sandbox runs, which may have changed its config meanwhile.
    """
    try:
        return read_layers(root).document.where.get(keys)
    except ConfigError:
        return None


def _order_problems(document: Document) -> list[ConfigError]:
    """Daemons that are to start after one that is none, or after themselves, at their places."""
    daemons = document.data.get("daemons")
    after: dict[str, list[str]] = {}
    # That something is of another type is told by whoever decodes it.
    for name, daemon in daemons.items() if isinstance(daemons, dict) else ():
        if daemon is None:
            continue
        others = daemon.get("after") if isinstance(daemon, dict) else None
        after[name] = [each for each in others if isinstance(each, str)] if isinstance(others, list) else []
    problems = [
        ConfigError(
            f"daemon {name} is to start after {other!r}, which is none",
            at=document.at(("daemons", name, "after", index)),
        )
        for name, others in after.items()
        for index, other in enumerate(others)
        if other not in after
    ]
    if not after:
        return problems
    from graphlib import CycleError, TopologicalSorter

    # Each is found anew, from the beginning: a hostile file is not to have more than a few.
    for _ in range(MAX_CIRCLES):
        try:
            TopologicalSorter(after).prepare()
            break
        except CycleError as error:
            # Each name is followed by one that it waits for.
            circle = list(reversed(error.args[1]))
        at = document.at(("daemons", circle[0], "after"))
        problems.append(ConfigError(f"daemons wait for each other in a circle: {' → '.join(circle)}", at=at))
        after[circle[0]] = [other for other in after[circle[0]] if other != circle[1]]
    return problems


def _resolve(document: Document, place: Place, lookup: Lookup, problems: list[ConfigError]) -> dict[str, str]:
    """The variables of the table at `place`, each with what it refers to put in."""
    table: Any = document.data
    for key in place:
        table = table.get(key) or {}
    resolved: dict[str, str] = {}
    for name, value in table.items():
        if value is None:
            continue
        at = document.at((*place, name))
        try:
            resolved[name] = expand(value, lookup)
            check_env(name, resolved[name])
        except UndefinedVariableError as error:
            hint = f"export {error.variable}, or give a default: ${{{error.variable}:default}}"
            problems.append(ConfigError(f"{name!r}: {error}", hint=hint, at=at))
        except ValueError as error:
            problems.append(ConfigError(str(error), at=at))
    return resolved
