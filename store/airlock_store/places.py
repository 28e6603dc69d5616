"""Where airlock keeps what is the user's and no project's: the platform's own directories.

platformdirs knows them; importing it takes as long as everything else that `airlock start` does with a config. So where
Linux's defaults hold, they are written down here.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Literal

# XDG Base Directory Specification: the variable, and what holds where it is not set.
_XDG = {
    "data": ("XDG_DATA_HOME", "~/.local/share"),
    "config": ("XDG_CONFIG_HOME", "~/.config"),
    "state": ("XDG_STATE_HOME", "~/.local/state"),
    "cache": ("XDG_CACHE_HOME", "~/.cache"),
}


def user_path(kind: Literal["data", "config", "state", "cache"]) -> Path:
    """airlock's directory for the user's data, config, state or cache. It may not exist."""
    variable, default = _XDG[kind]
    usual = os.path.expanduser(default)
    plain = sys.platform == "linux" and not os.environ.keys() & {variable, "ANDROID_ROOT"}
    if plain and os.path.isabs(usual):
        return Path(usual, "airlock")
    import platformdirs

    found = getattr(platformdirs, f"user_{kind}_path")("airlock", appauthor=False)
    assert isinstance(found, Path)
    return found
