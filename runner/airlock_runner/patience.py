"""How long to wait before a machine counts as dead or hung, as the environment may say for a slow or busy host."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from airlock_store.errors import ConfigError
from airlock_store.settings import MAX_SECONDS

if TYPE_CHECKING:
    from collections.abc import Mapping


def hang_seconds(environ: Mapping[str, str] = os.environ) -> float:
    """Without a word from airlockd for so many seconds, the guest counts as hung. Raises ConfigError."""
    return _seconds(environ, "AIRLOCK_HANG_SECONDS", 60)


def life_seconds(environ: Mapping[str, str] = os.environ) -> float:
    """Seconds from the start of QEMU to the first byte on the console. Raises ConfigError.

    A healthy boot says something within two.
    """
    return _seconds(environ, "AIRLOCK_LIFE_SECONDS", 30)


def _seconds(environ: Mapping[str, str], name: str, default: float) -> float:
    text = environ.get(name)
    if not text:
        return default
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    # So written, it refuses what is not a number, too.
    if not 0 < seconds <= MAX_SECONDS:
        raise ConfigError(
            f"{name}: {text!r} is not a number of seconds above 0 and up to {MAX_SECONDS}",
            hint=f"unset {name} for the default of {default:g}",
        )
    return seconds
