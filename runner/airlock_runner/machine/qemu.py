"""Which QEMU there is for an architecture, and its version. doctor, accel and the session ask."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

from airlock_store.errors import MachineError, MissingToolError

_PACKAGES = {"x86_64": "qemu-system-x86", "aarch64": "qemu-system-arm"}


def find_qemu(arch: str) -> Path:
    """The emulator for `arch` on PATH. Raises MissingToolError with the package that has it."""
    name = f"qemu-system-{arch}"
    path = shutil.which(name)
    if path is None:
        package = _PACKAGES.get(arch, name)
        raise MissingToolError(f"{name} is not installed", hint=f"install the package {package}")
    # One program has one name, whichever way PATH leads to it: /bin and /usr/bin are the same. Its own name stays.
    return Path(path).parent.resolve() / name


def qemu_version(qemu: Path) -> str:
    """Such as `7.2.22`. Raises MachineError where the program does not say."""
    try:
        text = subprocess.run(
            [qemu, "--version"], capture_output=True, text=True, timeout=30, check=True
        ).stdout
    except (OSError, subprocess.SubprocessError) as error:
        raise MachineError(f"{qemu} --version failed: {error}") from error
    match = re.search(r"version (\d+(?:\.\d+)+)", text)
    if match is None:
        raise MachineError(f"{qemu} --version says nothing of a version")
    return match[1]
