"""Filesystems as e2fsprogs sees them, those of the toolbox."""

from __future__ import annotations

import subprocess
from typing import TYPE_CHECKING, Any

from airlock_builder.build import plan
from airlock_builder.pack.toolbox import Toolbox

if TYPE_CHECKING:
    from pathlib import Path

    from airlock_store.store import Store


def toolbox_of(store: Store) -> Toolbox:
    """The toolbox that the image `base` was made with."""
    step = next(step for step in plan("base").steps if step.kind == "toolbox")
    found = store.find(step.key, step.name)
    assert found
    return Toolbox(found.path, step.parameters["arch"])


def debugfs(toolbox: Toolbox, image: Path) -> Any:
    """Runs a command of debugfs on `image` and returns what it prints."""

    def read(command: str) -> str:
        argv = [toolbox.loader, "--library-path", toolbox.libraries, toolbox.root / "usr/sbin/debugfs"]
        return subprocess.run(
            [*argv, "-R", command, image], check=True, capture_output=True, text=True
        ).stdout

    return read
