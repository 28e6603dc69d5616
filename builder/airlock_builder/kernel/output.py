"""What every kernel leaves in the store besides itself. Called by both providers, read by the image."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from airlock_builder.kernel.verify import promised

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from airlock_builder.kernel.verify import Verdict

KERNEL, CONFIG, RELEASE, MODULES = "kernel", "config", "release", "modules"
PROMISED = "promised.json"


def write_proof(output: Path, config: str, release: str, verdicts: Sequence[Verdict]) -> None:
    """The final config, the release as uname gives it, and the options that were proven, with their values."""
    (output / CONFIG).write_text(config, encoding="utf-8")
    (output / RELEASE).write_text(f"{release}\n", encoding="utf-8")
    (output / PROMISED).write_text(
        json.dumps(promised(verdicts), indent=1, sort_keys=True) + "\n", encoding="utf-8"
    )


def read_promised(kernel: Path) -> Mapping[str, str]:
    """The options that the kernel in this store path was proven to have."""
    options: dict[str, str] = json.loads((kernel / PROMISED).read_bytes())
    return options
