"""Versions of kernels, as far as Debian's package of the source names them. Called by the recipe, plan and waivers."""

from __future__ import annotations

import re

Version = tuple[int, int]
"""6.12 is (6, 12)."""

OF_SUITE: dict[str, Version] = {"bookworm": (6, 1), "trixie": (6, 12)}
"""The kernel of each Debian release: what its package linux-source depends on."""


def parse_version(text: object) -> Version:
    """`6.12` as a version. Raises ValueError."""
    match = re.fullmatch(r"([0-9]{1,3})\.([0-9]{1,3})", text) if isinstance(text, str) else None
    if match is None:
        raise ValueError(f'{text!r} is not the version of a kernel, such as "6.12"')
    return int(match[1]), int(match[2])


def format_version(version: Version) -> str:
    """`6.12` for (6, 12)."""
    return f"{version[0]}.{version[1]}"
