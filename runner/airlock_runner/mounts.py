"""What of the host a sandbox gets to see, and where: from the config to shares of the machine and places in the guest.

The session calls `settle` before the machine starts. Here is decided what a share may be, so here is the border.
"""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from airlock_runner.borders import host_path, led_out, writable_by_sandbox
from airlock_runner.config import place_of
from airlock_runner.files import FileMount
from airlock_runner.machine.argv import Share
from airlock_store.errors import ConfigError, noting
from airlock_store.settings import parse_target
from airlock_store.sizes import format_size
from airlockd.protocol.files import MAX_FILE

if TYPE_CHECKING:
    from airlock_runner.config import ProjectConfig
    from airlock_runner.config.model import MountConfig
    from airlock_runner.machine.virtiofs import Daemon

MAX_MOUNTS = 16
"""Each is a device of its own on the machine's bus."""
MAX_FILES = 64
PRIVATE = ".airlock"
PROJECT = "project"
Keys = tuple[str | int, ...]
"""The way to a value in the config."""


@dataclass(frozen=True, slots=True)
class Mounts:
    """`shares` are for QEMU, `files` for the session, `places` for airlockd's `configure`, `warnings` for the user.

    `origins` has for each place the keys in the config of what it is where; none for what airlock does by itself.
    """

    shares: tuple[Share, ...]
    files: tuple[FileMount, ...]
    places: tuple[dict[str, Any], ...]
    origins: tuple[Keys, ...]
    warnings: tuple[str, ...]

    def keys_of(self, place: object) -> Keys:
        """The origin of the place that airlockd names by its number, if that is one."""
        if not isinstance(place, int) or not 0 <= place < len(self.origins):
            return ()
        return self.origins[place]


def settle(config: ProjectConfig, root: Path) -> Mounts:
    """The mounts of the project at `root`, sources checked and made where the config says so.

    Raises one ConfigError with the place of each source that is missing, is no directory, or is led out of a directory
    that a sandbox can write to by a symlink; of each two things for one target; and of each target that would have to
    be made in what is read-only; and of each forwarded socket that would not lie on the sandbox's own filesystems.
    """
    settling = _Settling(config, root)
    for name, mount in config.mounts.items():
        with noting(settling.problems):
            settling.mount(name, mount)
    settling.hide(root, os.fspath(root))
    for name, mask in config.mask.items():
        for index, path in enumerate(mask.paths):
            settling.place(_mask(f"{root}/{path}"), "mask", name, "paths", index)
            settling.wanted.append((f"{root}/{path}", f"mask {name}", ("mask", name)))
    for name, cache in config.disk.cache.items():
        for index, path in enumerate(cache.paths):
            with noting(settling.problems):
                settling.cache(name, index, path)
    for name, bind in config.disk.bind.items():
        with noting(settling.problems):
            settling.take(bind.path, f"disk.bind {name}", "disk", "bind", name)
            place = {"kind": "bind", "target": bind.path, "directory": name}
            settling.place(place, "disk", "bind", name, "path")
    settling.look_below_read_only()
    for name, forwarded in config.network.sockets.items():
        with noting(settling.problems):
            settling.socket(name, forwarded.host.guest)
    if settling.problems:
        raise ConfigError.of(settling.problems)
    return Mounts(
        tuple(settling.shares),
        tuple(settling.files),
        tuple(settling.places),
        tuple(settling.origins),
        tuple(settling.warnings),
    )


class _Settling:
    """What has been settled so far. Each method raises ConfigError for the one thing that it is about."""

    def __init__(self, config: ProjectConfig, root: Path) -> None:
        self.problems: list[ConfigError] = []
        self.shares = [Share(PROJECT, root)]
        self.files: list[FileMount] = []
        self.places: list[dict[str, Any]] = []
        self.origins: list[Keys] = []
        self.warnings: list[str] = []
        self.wanted: list[tuple[str, str, tuple[str, ...]]] = []
        """Target, what is to be there, and its keys in the config."""
        self._root = root
        self._sources = {os.fspath(root): self.shares[0]}
        self._taken = {os.fspath(root): "the project"}
        self._writable = writable_by_sandbox(config, root)
        self.place(_share(PROJECT, os.fspath(root), read_only=False))

    def place(self, place: dict[str, Any], *keys: str | int) -> None:
        """Have airlockd put something somewhere; the config says at `keys` where."""
        self.places.append(place)
        self.origins.append(keys)

    def take(self, target: str, what: str, *keys: str) -> None:
        """A place for one thing only."""
        if target in self._taken:
            raise ConfigError(
                f"{target} is also the place of {self._taken[target]}", at=place_of(self._root, *keys)
            )
        self._taken[target] = what
        self.wanted.append((target, what, keys))

    def mount(self, name: str, mount: MountConfig) -> None:
        """A directory, which is a device of the machine, or a file."""
        source = _source(name, mount, self._root, self._writable)
        if source is None:
            if mount.missing == "warn":
                self.warnings.append(f"mount {name}: {mount.source} is not there, going on without it")
            return
        target = mount.target or _same_place(name, source, self._root)
        self.take(target, f"mount {name}", "mounts", name)
        keys = ("mounts", name, "target" if mount.target else "source")
        if source.is_file():
            if len(self.files) == MAX_FILES:
                raise ConfigError(f"more than {MAX_FILES} files", at=place_of(self._root, "mounts", name))
            file = FileMount(len(self.files), name, source, target, mount.read_only)
            self.files.append(file)
            self.place(_file(file), *keys)
            return
        if len(self.shares) > MAX_MOUNTS:
            raise ConfigError(f"more than {MAX_MOUNTS} directories", at=place_of(self._root, "mounts", name))
        tag = f"mount{len(self.shares) - 1}"
        self._sources[target] = share = Share(tag, source, mount.read_only)
        self.shares.append(share)
        self.place(_share(tag, target, read_only=mount.read_only), *keys)
        self.hide(source, target)

    def hide(self, source: Path, target: str) -> None:
        """The sandbox's own files, where the share of `source` has them."""
        private = Path(os.path.realpath(self._root)) / PRIVATE
        real = os.path.realpath(source)
        if private.is_relative_to(real):
            self.place(_mask(f"{target}/{private.relative_to(real)}"))

    def cache(self, name: str, index: int, path: str) -> None:
        """A directory for each path, by the path: it stays the same however the list changes."""
        target = path if path.startswith(("/", "~")) else f"{self._root}/{path}"
        self.take(target, f"cache {name}", "disk", "cache", name)
        directory = f"{name}/{hashlib.sha256(path.encode()).hexdigest()[:32]}"
        place = {"kind": "cache", "target": target, "directory": directory}
        self.place(place, "disk", "cache", name, "paths", index)

    def socket(self, name: str, path: str) -> None:
        """The place of a forwarded socket. In a share, the sandbox would put it over the one of the host itself."""
        above = [place for place in self.places if path.startswith(f"{place['target']}/")]
        nearest = max(above, key=lambda place: len(place["target"]), default=None)
        if nearest is None or nearest["kind"] in ("cache", "bind"):
            return
        what = "a directory of the host" if nearest["kind"] == "share" else f"a {nearest['kind']}"
        raise ConfigError(
            f"socket {name}: {path} lies in {nearest['target']} of the sandbox, which is {what}",
            hint=f'write another place right of the host\'s: "HOST:/run/{path.rpartition("/")[2]}"',
            at=place_of(self._root, "network", "sockets", name, "host"),
        )

    def look_below_read_only(self) -> None:
        """Note each target that is not there in the read-only share that it lies in: nobody could make it."""
        for target, what, keys in self.wanted:
            above = [each for each, *_ in self.wanted if target.startswith(f"{each}/")]
            nearest = max(above, key=len, default=os.fspath(self._root))
            share = self._sources.get(nearest)
            if share is None or not share.read_only:
                continue
            there = share.source / target[len(nearest) + 1 :]
            if not there.exists():
                self.problems.append(
                    ConfigError(
                        f"{what}: {target} lies in {nearest}, which is read-only and has no such place",
                        hint=f"make {there} first",
                        at=place_of(self._root, *keys),
                    )
                )


def over_virtiofs(mounts: Mounts, daemon: Daemon) -> Mounts:
    """The same with every share that the sandbox may write to served by `daemon`.

    What is read-only stays with QEMU, which enforces that; the older virtiofsd cannot.
    """
    served = {share.tag for share in mounts.shares if not share.read_only}
    return replace(
        mounts,
        shares=tuple(
            replace(share, daemon=daemon if share.tag in served else None) for share in mounts.shares
        ),
        places=tuple(
            {**place, "filesystem": "virtiofs"} if place.get("tag") in served else place
            for place in mounts.places
        ),
    )


def _share(tag: str, target: str, *, read_only: bool) -> dict[str, Any]:
    return {"kind": "share", "tag": tag, "target": target, "read_only": read_only}


def _file(file: FileMount) -> dict[str, Any]:
    return {"kind": "file", "file": file.number, "target": file.target, "read_only": file.read_only}


def _mask(target: str) -> dict[str, Any]:
    return {"kind": "mask", "target": target}


def _source(name: str, mount: MountConfig, root: Path, writable: list[Path]) -> Path | None:
    """The directory or file to share, or None where it is missing and need not be there."""
    path = host_path(mount.source, root)

    def wrong(what: str, hint: str | None = None) -> ConfigError:
        return ConfigError(
            f"mount {name}: {path} {what}", hint=hint, at=place_of(root, "mounts", name, "source")
        )

    real = Path(os.path.realpath(path))
    shared = led_out(path, writable)
    if real.is_relative_to(os.path.realpath(root / PRIVATE)):
        raise wrong("lies where airlock keeps the sandbox itself, which is hidden from it")
    if shared is not None:
        raise wrong(
            f"leads out of {shared}, which the sandbox can write to, by a symlink", "name its real path"
        )
    try:
        if mount.missing == "create-dir":
            real.mkdir(parents=True, exist_ok=True)
        if mount.missing == "create-file" and not real.exists():
            real.parent.mkdir(parents=True, exist_ok=True)
            real.write_text(mount.file_content or "")
        if not real.exists():
            if mount.missing == "fail":
                hint = 'missing = "create-dir", "create-file", "warn" or "ignore" says what to do then'
                raise wrong("is not there", hint)
            return None
        if real.is_file():
            if real.stat().st_size > MAX_FILE:
                raise wrong(
                    f"is larger than {format_size(MAX_FILE)}, which is the most for a single file",
                    "mount its directory",
                )
        elif not real.is_dir():
            raise wrong("is neither a directory nor a file")
        elif mount.missing == "create-file":
            raise wrong("is a directory", 'missing = "create-file" is for files')
        os.close(os.open(real, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK))
    except OSError as error:
        raise wrong(f"cannot be used: {error.strerror}") from error
    return real


def _same_place(name: str, source: Path, root: Path) -> str:
    """Where `source` is in the sandbox if the config does not say: where it is on the host."""
    try:
        return parse_target(os.fspath(source))
    except ValueError as error:
        raise ConfigError(
            f"mount {name}: {error}", hint="give it a target", at=place_of(root, "mounts", name, "source")
        ) from error
