"""The schema of the config, version 1: one dataclass per table, with the checks that a type cannot express.

What is None here is left to the image's own defaults; the runner puts the two together.
"""

from __future__ import annotations

import os
from dataclasses import MISSING, dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from airlock_runner.config.network_model import NetworkConfig
from airlock_runner.config.variables import check_references
from airlock_store.schema import Elements
from airlock_store.services import Bind, Daemon
from airlock_store.settings import (
    ENV_SCHEMA,
    MAX_CPUS,
    NO_WAY_UP,
    PATH_SCHEMA,
    TARGET,
    TARGET_SCHEMA,
    USER_SCHEMA,
    check_env,
    check_name,
    enabled,
    parse_cpus,
    parse_path,
    parse_target,
    parse_user,
    setting,
)
from airlock_store.sizes import GIB, MIB, SIZE_PATTERN, TIB, format_size, parse_size

if TYPE_CHECKING:
    from collections.abc import Mapping

MIN_MEMORY = 256 * MIB
MIN_DISK, MAX_DISK = 64 * MIB, 16 * TIB
MAX_PATHS = 256
SIZE_SCHEMA = {"type": "string", "title": "size", "pattern": SIZE_PATTERN, "examples": ["512 MB", "1.5 GB"]}
PRESET_PATTERN = "[A-Za-z0-9][A-Za-z0-9._-]{0,63}"
_INNER = r"(?![/~])(?:\./+)*(?!\.?(?:/|$))"
INNER_SCHEMA = {"type": "string", "title": "path", "pattern": rf"^{NO_WAY_UP}{_INNER}[^\x00]+$"}
SANDBOX_SCHEMA = {
    "type": "string", "title": "path", "pattern": rf"^{NO_WAY_UP}(?:{TARGET}|{_INNER}(?!~)[^\x00]+)$",
}  # fmt: skip


def parse_memory(value: object) -> int:
    """Bytes of memory for a VM: at least 256 MB and no more than this host has. Raises ValueError."""
    size = parse_size(value, MIN_MEMORY)
    if size < MIN_MEMORY:
        raise ValueError(f"{format_size(size)} is too little for a VM, it needs {format_size(MIN_MEMORY)}")
    if size > (host := host_memory()):
        raise ValueError(f"{format_size(size)} is more than this host has ({format_size(host)})")
    return size


def parse_disk_size(value: object) -> int:
    """Bytes of a project disk: 64 MB to 16 TB, which is what ext4 can hold. Raises ValueError."""
    size = parse_size(value, MIN_DISK)
    if not MIN_DISK <= size <= MAX_DISK:
        raise ValueError(f"a disk has {format_size(MIN_DISK)} to {format_size(MAX_DISK)}")
    return size


def parse_image(value: object) -> str:
    """The name of a recipe, the path of a recipe file, or a store path. Raises ValueError."""
    if not isinstance(value, str) or not value or "\0" in value:
        raise ValueError("expected the name of a recipe, the path of a recipe file, or a store path")
    return value


def _check_variable(name: str, value: str) -> None:
    check_env(name, value)
    check_references(value)


def parse_inner_path(value: object) -> str:
    """A path relative to the project, that stays in it, normal. Raises ValueError."""
    return _inner(parse_path(value))


def parse_sandbox_path(value: object) -> str:
    """A path relative to the project, or a directory of the sandbox as for `parse_target`. Raises ValueError."""
    path = parse_path(value)
    if path.startswith(("/", "~")):
        return parse_target(path)
    if (inner := _inner(path)).startswith("~"):
        raise ValueError(f"{path!r} could be taken for a path below the home")
    return inner


def _array(element: Mapping[str, Any]) -> dict[str, Any]:
    return {"type": "array", "items": element, "minItems": 1, "maxItems": MAX_PATHS}


def _inner(path: str) -> str:
    parts = [part for part in path.split("/") if part not in ("", ".")]
    if path.startswith(("/", "~")) or ".." in parts or not parts:
        raise ValueError(f"{path!r} is not a path below the project, relative to it")
    return "/".join(parts)


def host_memory() -> int:
    """Bytes of physical memory of this host."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


@dataclass(frozen=True, slots=True)
class VmConfig:
    """What the machine is made of."""

    image: str | None = setting(
        "name of a recipe, path of a recipe (relative to the project), or store path",
        unset="base", parse=parse_image, schema={"type": "string", "pattern": r"^[^\x00]+$"},
    )  # fmt: skip
    cpus: int | None = setting(
        "virtual CPUs; more than the host has is allowed",
        unset="the image's, or as many as the host has",
        parse=parse_cpus, schema={"type": "integer", "minimum": 1, "maximum": MAX_CPUS},
    )  # fmt: skip
    memory: int | None = setting(
        "memory, at least 256 MB and at most what the host has",
        unset="the image's, or a quarter of the host's, at most 4 GB", parse=parse_memory, schema=SIZE_SCHEMA,
    )  # fmt: skip
    harden: bool | None = setting(
        "run commands without privileges over the machine itself", unset="the image's, or true"
    )
    verify_kernel: bool = setting(
        "refuse to start where the running kernel lacks an option that its image promises; false: only say so",
        default=True, unset="true",
    )  # fmt: skip

    share: Literal["auto", "9p", "virtiofs"] = setting(
        "how directories of the host are shared: by QEMU itself, or by the helper virtiofsd",
        default="auto",
        unset="auto",
    )
    kernel: str | None = setting(
        "a kernel to boot instead of the image's: absolute, below `~`, or relative to the project",
        unset="the image's", parse=parse_path, schema=PATH_SCHEMA,
    )  # fmt: skip
    initrd: str | None = setting(
        "an initrd with airlockd to boot instead of the image's, named likewise",
        unset="the image's", parse=parse_path, schema=PATH_SCHEMA,
    )  # fmt: skip

    user: str | None = setting(
        "the user that commands run as: a name that the image has, or a number",
        unset="the image's, or root", parse=parse_user, schema=USER_SCHEMA,
    )  # fmt: skip


@dataclass(frozen=True, slots=True)
class MountConfig:
    """A directory or a file of the host in the sandbox."""

    source: str = setting(
        "the directory or file on the host: absolute, below `~`, or relative to the project",
        unset="required", default=MISSING, parse=parse_path, schema=PATH_SCHEMA,
    )  # fmt: skip
    target: str | None = setting(
        "where it is in the sandbox: absolute, or below `~`, the home of `[vm] user`",
        unset="where it is on the host", parse=parse_target, schema=TARGET_SCHEMA,
    )  # fmt: skip
    read_only: bool = setting(
        "the sandbox cannot write to it, whoever is root there", default=False, unset="false"
    )
    missing: Literal["fail", "warn", "ignore", "create-dir", "create-file"] = setting(
        "what to do where the source is not there: not to start, go on with or without a word, make one",
        default="fail", unset="fail",
    )  # fmt: skip
    file_content: str | None = setting(
        'what a file that `missing = "create-file"` makes begins with', unset="nothing"
    )
    enabled: bool = enabled()

    def __post_init__(self) -> None:
        if self.file_content is not None and self.missing != "create-file":
            raise ValueError('file_content needs missing = "create-file"')


@dataclass(frozen=True, slots=True)
class MaskConfig:
    """Paths of the project that the sandbox does not see."""

    paths: tuple[str, ...] = setting(
        "relative to the project; a directory is empty, a file too",
        unset="required", default=MISSING,
        elements=Elements(parse_inner_path, 1, MAX_PATHS), schema=_array(INNER_SCHEMA),
    )  # fmt: skip
    enabled: bool = enabled()


@dataclass(frozen=True, slots=True)
class CacheConfig:
    """Directories that are kept on the disk when the image changes."""

    paths: tuple[str, ...] = setting(
        "absolute, below `~` (the home of `[vm] user`), or relative to the project",
        unset="required", default=MISSING,
        elements=Elements(parse_sandbox_path, 1, MAX_PATHS), schema=_array(SANDBOX_SCHEMA),
    )  # fmt: skip
    enabled: bool = enabled()


@dataclass(frozen=True, slots=True)
class DiskConfig:
    """The project's own disk, kept between runs. It is sparse: only what is written takes room."""

    size: int = setting(
        "64 MB to 16 TB; a larger size grows the disk, a smaller one needs a new one",
        default=10 * GIB, unset="10 GB", parse=parse_disk_size, schema=SIZE_SCHEMA,
    )  # fmt: skip
    cache: Mapping[str, CacheConfig] = field(default_factory=dict, metadata={"names": check_name})
    bind: Mapping[str, Bind] = field(default_factory=dict, metadata={"names": check_name})


@dataclass(frozen=True, slots=True)
class DaemonConfig(Daemon):
    """A program that runs in the background, as root, from before the command until after it."""

    env: Mapping[str, str] = field(
        default_factory=dict, metadata={"each": _check_variable, "schema": ENV_SCHEMA}
    )


@dataclass(frozen=True, slots=True)
class ProjectConfig:
    """What holds for the config as a whole."""

    presets: tuple[str, ...] = setting(
        "files of `~/.airlock/presets` to start from, by name, later ones on top", default=(), unset="none",
        schema={"type": "array", "items": {"type": "string", "pattern": f"^{PRESET_PATTERN}$"}},
    )  # fmt: skip
    vm: VmConfig = field(default_factory=VmConfig)
    env: Mapping[str, str] = field(
        default_factory=dict, metadata={"each": _check_variable, "schema": ENV_SCHEMA}
    )
    disk: DiskConfig = field(default_factory=DiskConfig)
    mounts: Mapping[str, MountConfig] = field(default_factory=dict, metadata={"names": check_name})
    daemons: Mapping[str, DaemonConfig] = field(default_factory=dict, metadata={"names": check_name})
    mask: Mapping[str, MaskConfig] = field(default_factory=dict, metadata={"names": check_name})
    network: NetworkConfig = field(default_factory=NetworkConfig)
