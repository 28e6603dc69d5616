"""A project's config as one value, ready for a start. Called by `airlock start` with the project's root."""

from __future__ import annotations

import os
from dataclasses import replace
from typing import TYPE_CHECKING

from airlock_runner.config.files import PROJECT, local_slot, project_slot
from airlock_runner.config.layers import read_layers, without_disabled
from airlock_runner.config.model import ProjectConfig
from airlock_runner.config.variables import UndefinedVariableError, expand
from airlock_store.errors import ConfigError
from airlock_store.schema import decode
from airlock_store.services import lay
from airlock_store.settings import check_env

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from airlock_runner.config.variables import Lookup
    from airlock_store.document import Document, Place
    from airlock_store.errors import Location

CONFIG_NAME = f"{PROJECT}.toml"


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
    Raises one ConfigError with every problem and its place.
    """
    document = read_layers(root).document
    document = without_disabled(lay(under, document) if under else document)
    config = decode(document, ProjectConfig)
    problems: list[ConfigError] = []
    env = _resolve(config.env, ("env",), document, lookup, problems)
    daemons = {
        name: replace(each, env=_resolve(each.env, ("daemons", name, "env"), document, lookup, problems))
        for name, each in config.daemons.items()
    }
    if problems:
        raise ConfigError.of(problems)
    return replace(config, env=env, daemons=daemons)


def place_of(root: Path, *keys: str) -> Location:
    """Where the config at `root` says `keys`: for what turns out to be wrong only when it is used."""
    return read_layers(root).document.at(keys)


def _resolve(
    env: Mapping[str, str], place: Place, document: Document, lookup: Lookup, problems: list[ConfigError]
) -> dict[str, str]:
    resolved: dict[str, str] = {}
    for name, value in env.items():
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
