"""Paths of the host that lead through what a sandbox can write to: it may have put a symlink there, for a next start.

By where each symlink really lies, and not by how a path is spelled: a home, or all of a project, may itself be reached
through a symlink, which is the user's own. The mounts, the boot files and the forwarded sockets of a config go by this.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from airlock_runner.config import ProjectConfig

MAX_LINKS = 40
"""On one path, as in the kernel (path_resolution(7))."""


def host_path(source: str, root: Path) -> Path:
    """`source` as an absolute path without `..`, symlinks not followed."""
    return Path(os.path.normpath(root / os.path.expanduser(source)))


def writable_by_sandbox(config: ProjectConfig, root: Path) -> list[Path]:
    """The directories and files of the host that the sandbox of this config can write to."""
    return [root, *(host_path(each.source, root) for each in config.mounts.values() if not each.read_only)]


def led_out(path: Path, writable: Iterable[Path]) -> Path | None:
    """The one of `writable` out of which a symlink that lies in it leads `path`, if there is one."""
    borders = [(each, os.path.realpath(each)) for each in writable]
    end = Path(os.path.realpath(path))
    for here, _, link in _steps(path):
        for each, border in borders if link else ():
            if here.is_relative_to(border) and not end.is_relative_to(border):
                return each
    return None


def entry(path: Path, writable: Iterable[Path]) -> tuple[Path, Path] | None:
    """Where `path` enters what a sandbox can write to: that real directory, and `path` by it. None where it does not.

    What comes after that directory is as it is written: no symlink there is anybody's but the sandbox's.
    """
    borders = [os.path.realpath(each) for each in writable]
    for here, rest, _ in _steps(path):
        if any(here.is_relative_to(border) for border in borders):
            return here, here.joinpath(*rest)
    return None


def _steps(path: Path) -> Iterator[tuple[Path, list[str], bool]]:
    """The way along an absolute path: the real directory so far, the names to go, and whether the next is a symlink."""
    here, rest, links = Path("/"), list(path.parts[1:]), 0
    while rest:
        try:
            target = os.readlink(here / rest[0]) if rest[0] != ".." else None
        except OSError:
            target = None
        yield here, rest, target is not None
        name, *rest = rest
        if target is None:
            here = here.parent if name == ".." else here / name
            continue
        links += 1
        if links > MAX_LINKS:
            return
        if target.startswith("/"):
            here = Path("/")
        rest = [*(part for part in target.split("/") if part not in ("", ".")), *rest]
