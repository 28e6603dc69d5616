"""A project's airlock.toml as values: `load_config` reads and checks it, the session and `airlock start` use it."""

from __future__ import annotations

from airlock_runner.config.files import fingerprint
from airlock_runner.config.load import (
    CONFIG_NAME,
    configured_image,
    find_config,
    load_config,
    place_if_said,
    place_of,
)
from airlock_runner.config.model import DiskConfig, ProjectConfig, VmConfig

__all__ = [
    "CONFIG_NAME",
    "DiskConfig",
    "ProjectConfig",
    "VmConfig",
    "configured_image",
    "find_config",
    "fingerprint",
    "load_config",
    "place_if_said",
    "place_of",
]
