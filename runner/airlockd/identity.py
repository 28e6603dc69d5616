"""What makes a sandbox one of its own where programs look: its name and its machine-id. Called for `configure`."""

from __future__ import annotations

import os
import re


def write(root: str, hostname: str, machine_id: str) -> None:
    """Write both into the tree at `root`, where they are not there already. Raises ValueError for odd values.

    The machine-id stays for the life of the project's disk, as on a real machine (machine-id(5)).
    """
    if not re.fullmatch(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?", hostname) or not re.fullmatch(
        r"[0-9a-f]{32}", machine_id
    ):
        raise ValueError("bad hostname or machine-id")
    etc = os.open(f"{root}/etc", os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        if not _read(etc, "machine-id").strip():
            _write(etc, "machine-id", f"{machine_id}\n", os.O_TRUNC)
        if hostname not in _read(etc, "hosts").split():
            _write(etc, "hosts", f"127.0.1.1\t{hostname}\n", os.O_APPEND)
        if _read(etc, "hostname").strip() != hostname:
            _write(etc, "hostname", f"{hostname}\n", os.O_TRUNC)
    finally:
        os.close(etc)


def _read(directory: int, name: str) -> str:
    """A small file, by no symlink: the tree is what an earlier run of the sandbox left."""
    try:
        with open(
            os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=directory), encoding="utf-8"
        ) as file:
            return file.read(65536)
    except (OSError, ValueError):
        return ""


def _write(directory: int, name: str, text: str, flags: int) -> None:
    try:
        flags |= os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK
        with open(os.open(name, flags, 0o644, dir_fd=directory), "w", encoding="utf-8") as file:
            file.write(text)
    except OSError:
        # What the sandbox made of its own /etc is its own affair.
        pass
