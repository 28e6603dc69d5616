"""The layers of a project's config, found, read, checked and merged. Called by load.py and `airlock config`.

Later wins: what the image brings, then presets, the user's file, the project's, the developer's own for this project.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from functools import reduce
from typing import TYPE_CHECKING, Any

from airlock_runner.config.files import (
    Slot,
    home_directory,
    local_slot,
    preset_slot,
    project_slot,
    read_config,
    user_slot,
)
from airlock_runner.config.model import PRESET_PATTERN, ProjectConfig
from airlock_runner.config.variables import escaped
from airlock_store.document import Document
from airlock_store.errors import ConfigError, Location, noting
from airlock_store.schema import check
from airlock_store.services import BRINGS, lay

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from pathlib import Path

    from airlock_store.document import Place

MAX_PRESETS = 32
ENTRIES: tuple[tuple[str, ...], ...] = (
    ("mounts",), ("mask",), ("disk", "cache"), ("disk", "bind"), ("daemons",),
    ("network", "rules"), ("network", "ports"), ("network", "sockets"),
)  # fmt: skip
"""The tables whose keys are names that people give."""
SUGGESTS = ("cpus", "memory", "harden", "user")
"""What of `[vm]` an image has a word on, where the config has none."""


@dataclass(frozen=True, slots=True)
class Layers:
    """What the files say together: `document` is all of them merged, `slots` are the files, the strongest last."""

    document: Document
    slots: tuple[Slot, ...]


def read_layers(root: Path) -> Layers:
    """The layers of the project at `root`, each checked by itself.

    Raises one ConfigError with every problem of every file; what only the whole can show is left to `decode`.
    """
    problems: list[ConfigError] = []
    home = home_directory()
    slots = [slot for slot in (user_slot(home), project_slot(root), local_slot(root)) if slot]
    documents = _read(slots, problems)
    preset_slots = _preset_slots(documents, home, problems)
    presets = _read(preset_slots, problems)
    for document in presets:
        if "presets" in document.data:
            problems.append(ConfigError("a preset has no presets of its own", at=document.at(("presets",))))
    layers = [*presets, *documents]
    for document in layers:
        problems += check(document, ProjectConfig)
    if problems:
        raise ConfigError.of(problems)
    return Layers(reduce(lay, layers, Document({}, root)), (*preset_slots, *slots))


def image_layer(
    brings: Mapping[str, Any], origin: Path, where: Mapping[Place, Location] | None = None
) -> Document:
    """What an image brings, as a layer to lay under all others; `origin` is where that is written, at `where` if known.

    Its variables are meant as they are: an image, whoever made it, gets nothing of the host's environment. Raises
    ConfigError for what is wrong in it.
    """
    data = {key: brings[key] for key, *_ in BRINGS if key in brings}
    if isinstance(data.get("disk"), dict):
        data["disk"] = {"bind": data["disk"].get("bind")}
    if isinstance(data.get("daemons"), dict):
        data["daemons"] = {name: _literal(each) for name, each in data["daemons"].items()}
    everywhere: dict[Place, Location] = {}
    if where is None:
        _note(data, (), everywhere, Location(origin))
    layer = Document(data, origin, everywhere if where is None else where)
    if problems := check(layer, ProjectConfig):
        raise ConfigError.of(problems)
    return layer


def suggestion_layer(
    vm: Mapping[str, Any], env: Mapping[str, Any], origin: Path, where: Mapping[Place, Location]
) -> Document:
    """What an image suggests for a machine and its commands, as a layer to show: a start asks the image itself.

    No config: an image may suggest more memory than this host has, which is then cut.
    """
    told = {key: vm[key] for key in SUGGESTS if vm.get(key) is not None}
    return Document({"vm": told, "env": {name: escaped(value) for name, value in env.items()}}, origin, where)


def without_disabled(document: Document) -> Document:
    """`document` without the named entries that are switched off: what they lack is no error."""
    data = dict(document.data)
    for *outer, name in ENTRIES:
        table = data
        for key in outer:
            table[key] = table = dict(table.get(key) or {})
        if table.get(name):
            off = {key for key, each in table[name].items() if _is_off(each)}
            table[name] = {
                key: _without_names(each, off) for key, each in table[name].items() if key not in off
            }
    return replace(document, data=data)


def _without_names(entry: Any, off: set[str]) -> Any:
    """A daemon without the word that it comes after one that is not there."""
    if not isinstance(entry, dict) or not isinstance(entry.get("after"), list):
        return entry
    return {**entry, "after": [name for name in entry["after"] if name not in off]}


def _literal(daemon: Any) -> Any:
    """A daemon whose variables refer to none of the host."""
    if not isinstance(daemon, dict) or not isinstance(daemon.get("env"), dict):
        return daemon
    env = {name: escaped(value) if isinstance(value, str) else value for name, value in daemon["env"].items()}
    return {**daemon, "env": env}


def _note(value: object, place: Place, where: dict[Place, Location], at: Location) -> None:
    if place:
        where[place] = at
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, each in items:
        _note(each, (*place, key), where, at)


def _is_off(entry: object) -> bool:
    return isinstance(entry, dict) and entry.get("enabled") is False


def _read(slots: Iterable[Slot], problems: list[ConfigError]) -> list[Document]:
    documents = []
    for slot in slots:
        with noting(problems):
            documents.append(read_config(slot.path))
    return documents


def _preset_slots(
    documents: Sequence[Document], home: Path | None, problems: list[ConfigError]
) -> list[Slot]:
    """The files of the presets that the documents name, each once, in the order in which they are named."""
    found: dict[str, Slot] = {}
    for document in documents:
        names = document.data.get("presets")
        for index, name in enumerate(names if isinstance(names, list) else ()):
            if not isinstance(name, str) or name in found:
                continue  # what is no string has its message from `check`
            slot = preset_slot(home, name) if re.fullmatch(PRESET_PATTERN, name) else None
            if slot is None or len(found) == MAX_PRESETS:
                reason = f"more than {MAX_PRESETS} presets" if slot else f"there is no preset {name!r}"
                hint = None if slot else "presets are files such as ~/.airlock/presets/NAME.toml"
                problems.append(ConfigError(reason, hint=hint, at=document.at(("presets", index))))
                continue
            found[name] = slot
    return list(found.values())
