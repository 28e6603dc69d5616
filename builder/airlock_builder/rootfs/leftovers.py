"""What installing leaves behind in a tree that differs from host to host, or that apt would fetch anew.

The plan asks what a recipe spares of it; the step `rootfs` removes the rest at its end.
"""

from __future__ import annotations

import shlex
from fnmatch import fnmatchcase
from pathlib import PurePosixPath
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

LEFTOVERS = (
    "etc/.pwd.lock",
    "etc/apt/apt.conf.d/99mmdebstrap",
    "etc/apt/sources.list",
    "etc/apt/sources.list.d/0000*",
    "var/cache/apt/*.bin",
    "var/cache/apt/archives/*",
    "var/cache/debconf/*-old",
    "var/cache/ldconfig/aux-cache",
    "var/lib/apt/lists/*",
    "var/lib/dbus/machine-id",
    "var/lib/dpkg/*-old",
    "var/lib/systemd/random-seed",
    "var/log/*.log",
    "var/log/apt/*",
    "var/tmp/*",
)
"""Patterns of a shell, relative to the new root."""


def spared(targets: Iterable[str], patterns: Sequence[str] = LEFTOVERS) -> list[str]:
    """What of the leftovers is a file, or above a file, that a recipe puts there; relative to the new root, sorted."""
    names = [PurePosixPath(target).parts[1:] for target in targets]
    wanted = [
        (parts[:depth], pattern)
        for parts in names
        for pattern in patterns
        if (depth := pattern.count("/") + 1)
    ]
    return sorted({"/".join(parts) for parts, pattern in wanted if _matches(parts, pattern.split("/"))})


def removal(kept: Sequence[str], patterns: Sequence[str] = LEFTOVERS) -> list[str]:
    """Lines of a shell, run in the new root, that remove all of it but what is `kept`. Pure."""
    lines = []
    for pattern in patterns:
        mine = [shlex.quote(name) for name in kept if _matches(name.split("/"), pattern.split("/"))]
        lines.append(
            f'for each in {pattern}; do case "$each" in {"|".join(mine)}) ;; *) rm -rf -- "$each" ;; esac; done'
            if mine
            else f"rm -rf -- {pattern}"
        )
    return lines


def _matches(parts: Sequence[str], pattern: Sequence[str]) -> bool:
    """As a shell has it: part for part, and a name that begins with a dot is not matched by a star."""
    return len(parts) == len(pattern) and all(
        fnmatchcase(part, each) and part.startswith(".") <= each.startswith(".")
        for part, each in zip(parts, pattern, strict=True)
    )
