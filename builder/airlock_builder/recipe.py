"""Recipes: TOML files that describe an image, with `extends`, read into frozen values. Called by the plan and the CLI.

The dataclasses are the schema, version 1. Where something was written is kept for errors that come much later.
"""

from __future__ import annotations

import re
import stat
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal

from airlock_builder.kernel.overrides import check_option
from airlock_builder.kernel.versions import Version, parse_version
from airlock_builder.lookup import find_recipes, resolve
from airlock_store.errors import ConfigError, Location, noting
from airlock_store.schema import Elements, check, decode
from airlock_store.services import Bind, Daemon, lay
from airlock_store.settings import check_env, check_name, parse_argv, parse_cpus, parse_user
from airlock_store.sizes import MIB, parse_size

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from airlock_store.document import Document, Place

__all__ = [
    "FileSpec",
    "ImageSection",
    "KernelSection",
    "LoadedRecipe",
    "Recipe",
    "RecipeSection",
    "RootfsSection",
    "VmSection",
    "find_recipes",
    "load_recipe",
]

MAX_EXTENDS = 32
"""Files that one recipe may draw in, itself included."""
MAX_SOURCE = 64 * MIB
"""Bytes that one file from beside the recipe may have: it is read into memory."""
MAX_LINE = 128 << 10
"""Bytes of a line to run, and the one that ends it: Linux takes no longer string in execve(2)."""

_MIN_MEMORY = 256 * MIB
_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")
_PACKAGE = re.compile(r"[a-z0-9][a-z0-9+.-]*[a-z0-9+](=[A-Za-z0-9.+:~-]+)?")
_SUITE = re.compile(r"[a-z][a-z0-9.-]{1,39}")
_MODE = re.compile(r"0?[0-7]{3,4}")
_MOUNTED = ("dev", "proc", "run", "sys", "tmp")
_LINKED = (("var", "lock"), ("var", "run"))  # to what is in /run


def _check(pattern: re.Pattern[str], what: str) -> Any:
    def parse(value: object) -> str:
        if not isinstance(value, str) or not pattern.fullmatch(value):
            raise ValueError(f"{value!r} is not {what}")
        return value

    return parse


def _parse_extends(value: object) -> tuple[str, ...]:
    names = [value] if isinstance(value, str) else value
    if not isinstance(names, list) or not all(isinstance(name, str) and name for name in names):
        raise ValueError("expected the name of a recipe, a path to one, or an array of these")
    return tuple(names)


def _parse_size_or_auto(value: object) -> int | None:
    return None if value == "auto" else parse_size(value)


def _parse_command(value: object) -> tuple[str, ...]:
    # None at all takes back that of a recipe that is extended.
    return () if value == [] else parse_argv(value)


def _parse_memory(value: object) -> int:
    size = parse_size(value, _MIN_MEMORY)
    if size < _MIN_MEMORY:
        raise ValueError("a machine needs at least 256 MB")
    return size


def _parse_version(value: object) -> int:
    if type(value) is not int or value != 1:
        raise ValueError(f"recipe version {value!r} is not known; this airlock knows version 1")
    return 1


@dataclass(frozen=True, slots=True)
class RecipeSection:
    """`[recipe]`"""

    name: str = field(
        metadata={"parse": _check(_NAME, "a name: lower case letters, digits, dots and dashes")}
    )
    summary: str = ""
    extends: tuple[str, ...] = field(default=(), metadata={"parse": _parse_extends})
    version: int = field(default=1, metadata={"parse": _parse_version})


@dataclass(frozen=True, slots=True)
class FileSpec:
    """A file to put into the image: `content`, or `source` beside the recipe."""

    content: str | None = None
    source: str | None = None
    mode: str = field(default="0644", metadata={"parse": _check(_MODE, 'a mode such as "0644"')})

    def __post_init__(self) -> None:
        if (self.content is None) == (self.source is None):
            raise ValueError("a file needs either content or source")


@dataclass(frozen=True, slots=True)
class RootfsSection:
    """`[rootfs]`"""

    backend: Literal["mmdebstrap"] = "mmdebstrap"
    suite: str = field(default="trixie", metadata={"parse": _check(_SUITE, "a Debian suite")})
    packages: tuple[str, ...] = field(
        default=(), metadata={"elements": Elements(_check(_PACKAGE, "the name of a Debian package"))}
    )
    files: Mapping[str, str | FileSpec] = field(default_factory=lambda: MappingProxyType({}))
    run: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "packages", tuple(dict.fromkeys(self.packages)))


@dataclass(frozen=True, slots=True)
class KernelSection:
    """`[kernel]`. `options` are values for a kernel's config, by name without CONFIG_."""

    provider: Literal["debian", "compiled"] = "debian"
    features: tuple[str, ...] = ("sandbox",)
    options: Mapping[str, str | int] = field(
        default_factory=lambda: MappingProxyType({}), metadata={"each": check_option}
    )
    version: Version | None = field(default=None, metadata={"parse": parse_version})

    def __post_init__(self) -> None:
        if self.version is not None and self.provider != "compiled":
            raise ValueError("version is for a kernel that is compiled; Debian's own comes as it is")


@dataclass(frozen=True, slots=True)
class ImageSection:
    """`[image]`; `size` is in bytes, None for as large as needed."""

    format: Literal["ext4"] = "ext4"
    size: int | None = field(default=None, metadata={"parse": _parse_size_or_auto})


@dataclass(frozen=True, slots=True)
class VmSection:
    """`[vm]`: defaults for the machine; `memory` is in bytes."""

    memory: int | None = field(default=None, metadata={"parse": _parse_memory})
    cpus: int | None = field(default=None, metadata={"parse": parse_cpus})
    harden: bool | None = None
    command: tuple[str, ...] = field(default=(), metadata={"parse": _parse_command})
    user: str | None = field(default=None, metadata={"parse": parse_user})


@dataclass(frozen=True, slots=True)
class DiskSection:
    """`[disk]`: what a project's disk holds from the beginning."""

    bind: Mapping[str, Bind] = field(
        default_factory=lambda: MappingProxyType({}), metadata={"names": check_name}
    )


@dataclass(frozen=True, slots=True)
class Recipe:
    """A whole recipe, what it extends merged in."""

    recipe: RecipeSection
    rootfs: RootfsSection = RootfsSection()
    kernel: KernelSection = KernelSection()
    image: ImageSection = ImageSection()
    vm: VmSection = VmSection()
    env: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}), metadata={"each": check_env})
    disk: DiskSection = DiskSection()
    daemons: Mapping[str, Daemon] = field(
        default_factory=lambda: MappingProxyType({}), metadata={"names": check_name}
    )


@dataclass(frozen=True, slots=True)
class RootfsFile:
    """A file of a recipe, found and checked: absolute `target` in the image, its bytes, permission bits; its place."""

    target: str
    content: bytes
    mode: int
    at: Location | None = field(default=None, compare=False)


@dataclass(frozen=True, slots=True)
class LoadedRecipe:
    """A recipe with the merged document that it was read from; `sources` are the files, the recipe's own last."""

    recipe: Recipe
    document: Document
    sources: tuple[Path, ...]

    @property
    def name(self) -> str:
        """The recipe's name."""
        return self.recipe.recipe.name

    def run_places(self) -> tuple[Location, ...]:
        """Where each line of `[rootfs] run` is written."""
        return tuple(self.document.at(("rootfs", "run", n)) for n in range(len(self.recipe.rootfs.run)))

    def package_places(self) -> dict[str, Location]:
        """Where each of `[rootfs] packages` is written first."""
        listed = self.document.data.get("rootfs", {}).get("packages", ())
        places = ((name, self.document.at(("rootfs", "packages", n))) for n, name in enumerate(listed))
        return dict(reversed(list(places)))

    def files(self) -> tuple[RootfsFile, ...]:
        """The files of `[rootfs] files`, sources read. Raises ConfigError for those that cannot be."""
        found: list[RootfsFile] = []
        problems: list[ConfigError] = []
        for target, spec in sorted(self.recipe.rootfs.files.items()):
            at = self.document.at(("rootfs", "files", target))
            whole = FileSpec(content=spec) if isinstance(spec, str) else spec
            # Another recipe may have the last word on the mode.
            beside = self.document.at(("rootfs", "files", target, "source")).path.parent
            try:
                content = (
                    _read_source(beside, whole.source)
                    if whole.source is not None
                    else (whole.content or "").encode()
                )
                found.append(RootfsFile(_check_target(target), content, int(whole.mode, 8), at))
            except ValueError as error:
                problems.append(ConfigError(str(error), at=at))
        if problems:
            raise ConfigError.of(problems)
        return tuple(found)


def load_recipe(ref: str, base: Path) -> LoadedRecipe:
    """The recipe that `ref` names: a path (it has a slash or ends in .toml; relative to `base`), or a recipe's name.

    Raises ConfigError with file, line and column for everything that is wrong in it or in what it extends.
    """
    documents = _lineage(resolve(ref, base, None), ())
    merged = documents[0]
    for document in documents[1:]:
        merged = lay(_without_own(merged, document), document)
    # What another recipe overrides is as wrong as if it did not.
    problems = [problem for document in documents[:-1] for problem in check(document, Recipe)]
    with noting(problems):
        recipe = decode(merged, Recipe)
    if problems:
        raise ConfigError.of(list({(problem.at, problem.message): problem for problem in problems}.values()))
    _check_recipe(recipe, merged)
    return LoadedRecipe(recipe, merged, tuple(document.path for document in documents))


def _lineage(path: Path, chain: Sequence[Path], seen: dict[Path, Document] | None = None) -> list[Document]:
    """The documents to merge, ancestors first, each once however many ways lead to it."""
    from airlock_store.document import read_toml

    seen = {} if seen is None else seen
    document = read_toml(path)
    section = document.data.get("recipe")
    place: Place = ("recipe", "extends")
    extends = section.get("extends", ()) if isinstance(section, dict) else ()
    try:
        parents = _parse_extends(extends) if extends else ()
    except ValueError as error:
        raise ConfigError(f"'extends': {error}", at=document.at(place)) from error
    for index, parent_ref in enumerate(parents):
        at = document.at((*place, index))
        parent = resolve(parent_ref, path.parent, at)
        cycle = [*chain, path]
        if parent in cycle:
            names = " → ".join(each.name for each in [*cycle[cycle.index(parent) :], parent])
            raise ConfigError(f"recipes extend each other in a circle: {names}", at=at)
        if len(seen) + len(cycle) >= MAX_EXTENDS:
            raise ConfigError(f"more than {MAX_EXTENDS} recipes extended", at=at)
        if parent not in seen:
            _lineage(parent, cycle, seen)
    seen[path] = document
    return list(seen.values())


def _without_own(base: Document, over: Document) -> Document:
    """`base` without what belongs to one recipe alone or is one value although it is an array."""
    data = dict(base.data)
    if isinstance(section := data.get("recipe"), dict):
        data["recipe"] = {
            key: value for key, value in section.items() if key not in {"name", "extends", "summary"}
        }
    vm, over_vm = data.get("vm"), over.data.get("vm")
    if isinstance(vm, dict) and isinstance(over_vm, dict) and "command" in over_vm:
        data["vm"] = {key: value for key, value in vm.items() if key != "command"}
    return replace(base, data=data)


def _check_recipe(recipe: Recipe, document: Document) -> None:
    """What types cannot say."""
    problems = [
        ConfigError("an empty line to run", at=document.at(("rootfs", "run", index)))
        for index, line in enumerate(recipe.rootfs.run)
        if not line.strip() or "\0" in line
    ]
    problems += [
        ConfigError(
            f"a line of more than {MAX_LINE - 1} bytes, which no shell can be given",
            hint="Make it a program: [rootfs.files].",
            at=document.at(("rootfs", "run", index)),
        )
        for index, line in enumerate(recipe.rootfs.run)
        if len(line.encode()) >= MAX_LINE
    ]
    if problems:
        raise ConfigError.of(problems)


def _check_target(target: str) -> str:
    path = PurePosixPath(target)
    if not path.is_absolute() or ".." in path.parts or "\0" in target or len(path.parts) < 2:
        raise ValueError(f"{target!r} is not an absolute path of a file in the image")
    if path.parts[1] in _MOUNTED or path.parts[1:3] in _LINKED:
        raise ValueError(
            f"{target!r} cannot stay in an image: something else is mounted there in every sandbox"
        )
    return str(path).replace("//", "/", 1)


def _read_source(directory: Path, source: str) -> bytes:
    """The file `source` beside the recipe. ValueError when it is elsewhere, no file, or too large."""
    path = directory / source
    try:
        real = path.resolve(strict=True)
        if not real.is_relative_to(directory.resolve()):
            raise ValueError(f"source {source!r} lies outside of the recipe's directory")
        if not stat.S_ISREG(real.stat().st_mode):
            raise ValueError(f"source {source!r} is not a file")
        with real.open("rb") as file:
            content = file.read(MAX_SOURCE + 1)
    except (OSError, RuntimeError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise ValueError(f"source {source!r} cannot be read: {reason}") from error
    if len(content) > MAX_SOURCE:
        raise ValueError(f"source {source!r} is larger than {MAX_SOURCE // MIB} MB")
    return content
