"""What makes a sandbox one of its own where programs look: name, machine-id, numbers of processes. For `configure`."""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING

from airlockd import linux

if TYPE_CHECKING:
    from collections.abc import Iterable

# Compiled before a machine is saved.
_HOSTNAME = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")
_OURS = b"# By airlock: what is shared has the owners that it has on the host.\n[safe]\n"
_MACHINE_ID = re.compile(r"[0-9a-f]{32}")


def write(root: str, hostname: str, machine_id: str) -> None:
    """Write both into the tree at `root`, where they are not there already. Raises ValueError for odd values.

    The machine-id stays for the life of the project's disk, as on a real machine (machine-id(5)).
    """
    if not _HOSTNAME.fullmatch(hostname) or not _MACHINE_ID.fullmatch(machine_id):
        raise ValueError("bad hostname or machine-id")
    name = hostname.encode()
    etc = os.open(f"{root}/etc", os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        if not _read(etc, "machine-id").strip():
            _write(etc, "machine-id", b"%s\n" % machine_id.encode(), os.O_TRUNC)
        if name not in _read(etc, "hosts").split():
            _write(etc, "hosts", b"127.0.1.1\t%s\n" % name, os.O_APPEND)
        if _read(etc, "hostname").strip() != name:
            _write(etc, "hostname", b"%s\n" % name, os.O_TRUNC)
    finally:
        os.close(etc)


def trust(root: str, directories: Iterable[str]) -> None:
    """Have git work in directories that belong to somebody else (git-config(1), safe.directory).

    A gitconfig that is not airlock's stays.
    """
    etc = os.open(f"{root}/etc", os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        there, wanted = _read(etc, "gitconfig"), gitconfig(directories)
        if there != wanted and (not there or there.startswith(_OURS)):
            _write(etc, "gitconfig", wanted, os.O_TRUNC)
    finally:
        os.close(etc)


def gitconfig(directories: Iterable[str]) -> bytes:
    """The file that trusts these directories, and what is below them."""
    quoted = (each.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n") for each in directories)
    lines = (f'\tdirectory = "{each}"\n\tdirectory = "{each}/*"\n' for each in quoted)
    return _OURS + os.fsencode("".join(lines))


def scatter_pids() -> None:
    """Have the next process get a number of chance: programs make names of it, and a restored kernel goes on counting
    where all others of the same state do.

    Call when the kernel draws fresh randomness. Source: Linux Documentation/admin-guide/sysctl/kernel.rst.
    """
    try:
        # Well below 32768, where the kernel begins again.
        number = 1000 + int.from_bytes(os.urandom(2), "little") % 29000
        linux.write_file("/proc/sys/kernel/ns_last_pid", b"%d" % number)
    except FileNotFoundError:
        # A kernel without CHECKPOINT_RESTORE.
        pass


def _read(directory: int, name: str) -> bytes:
    """A small file, by no symlink: the tree is what an earlier run of the sandbox left."""
    try:
        return linux.read_file(name, directory=directory, flags=os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return b""


def _write(directory: int, name: str, data: bytes, flags: int) -> None:
    try:
        flags |= os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK
        linux.write_file(name, data, flags, directory=directory)
    except OSError:
        # What the sandbox made of its own /etc is its own affair.
        pass
