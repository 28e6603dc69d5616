"""Waivers: leave for a kernel to lose an option, with a reason and a range of versions. Called by the kernel's steps.

They are in kernel-configs/waivers.toml. A file without any waives nothing, whatever else is in it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from airlock_builder.kernel.versions import Version, parse_version

if TYPE_CHECKING:
    from pathlib import Path


def _parse_option(value: object) -> str:
    if not isinstance(value, str) or not re.fullmatch(r"[A-Z0-9_]{1,100}", value):
        raise ValueError(f"{value!r} is not the name of an option, without CONFIG_")
    return value


def _parse_reason(value: object) -> str:
    if not isinstance(value, str) or not value.strip():
        raise ValueError("a waiver needs a reason")
    return value.strip()


def _key(name: str) -> Any:
    return {"key": name, "parse": parse_version}


@dataclass(frozen=True, slots=True)
class Waiver:
    """`[[waivers]]`: for kernels from `since` on and below `below`; an empty `arch` means all."""

    option: str = field(metadata={"parse": _parse_option})
    reason: str = field(metadata={"parse": _parse_reason})
    since: Version = field(metadata=_key("from"))
    below: Version = field(metadata=_key("below"))
    arch: str = ""

    def __post_init__(self) -> None:
        if self.since >= self.below:
            raise ValueError("no version is from 'from' on and below 'below'")


@dataclass(frozen=True, slots=True)
class WaiversFile:
    """The whole of waivers.toml."""

    waivers: tuple[Waiver, ...] = ()


def parse_waivers(text: str, path: Path) -> tuple[Waiver, ...]:
    """The waivers in the TOML `text`; `path` only names it.

    Raises ConfigError for one without an option, a reason or a range of versions, with its place.
    """
    from airlock_store.document import parse_toml
    from airlock_store.schema import decode

    return decode(parse_toml(text, path), WaiversFile).waivers
