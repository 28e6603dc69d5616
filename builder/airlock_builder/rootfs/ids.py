"""The range of user and group ids that an ordinary user's trees are built with: subuid(5), subgid(5).

mmdebstrap maps it, by what these files say of the user's name first; a tree has ids up to that of nobody, 65534.
"""

from __future__ import annotations

import os
import pwd
from pathlib import Path

from airlock_builder import tools
from airlock_store.errors import BuildError

COUNT = 65536
_FIRST = 100_000
"""Where useradd begins to give ranges away: SUB_UID_MIN of login.defs(5)."""


def require_range(etc: Path = Path("/etc"), uid: int | None = None) -> None:
    """Raise BuildError, with the command that helps, where the user (by default ours) has no such range."""
    uid = os.getuid() if uid is None else uid
    try:
        name = pwd.getpwuid(uid).pw_name
    except KeyError:
        raise BuildError(
            f"the user id {uid} has no name, and so no range of ids to build a tree with",
            hint="Build as root, or as a user that /etc/passwd has.",
        ) from None
    files = [_ranges(etc / file) for file in ("subuid", "subgid")]
    if all(_range_of(name, file) >= COUNT for file in files):
        return
    start = max([_FIRST, *(first + count for file in files for _, first, count in file)])
    ids = f"{start}-{start + COUNT - 1}"
    raise BuildError(
        f"{name} has no range of {COUNT} ids in {etc}/subuid and {etc}/subgid, as a tree with its users needs",
        hint=f"Have root run: usermod --add-subuids {ids} --add-subgids {ids} {name}",
    )


def require_namespace() -> None:
    """Raise BuildError where no user namespace can be made with that range. Raises MissingToolError."""
    unshare, _, _ = (tools.find_program(name) for name in ("unshare", "newuidmap", "newgidmap"))
    try:
        tools.run([unshare, "--user", "--map-root-user", "--map-auto", "true"], log=lambda _line: None)
    except tools.ToolError as error:
        said = error.tail[-1] if error.tail else error.message
        raise BuildError(
            f"this host lets no ordinary user make a user namespace, as a tree with its users needs: {said}",
            hint="Build as root, or see the sysctl kernel.unprivileged_userns_clone and AppArmor's restrictions.",
        ) from error


def _range_of(name: str, ranges: list[tuple[str, int, int]]) -> int:
    return next((count for owner, _, count in ranges if owner == name), 0)


def _ranges(path: Path) -> list[tuple[str, int, int]]:
    """(owner, first id, count) for each line that is one; none where the file cannot be read."""
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []
    fields = [line.split(":") for line in lines]
    return [
        (field[0], int(field[1]), int(field[2]))
        for field in fields
        if len(field) == 3 and field[1].isdecimal() and field[2].isdecimal()
    ]
