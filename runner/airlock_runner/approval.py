"""What the project's config said before a sandbox ran, kept where no sandbox reaches, and compared at the next start.

The project is shared with the sandbox, and so are its config files: what runs there could ask for more of the host, for
the next time. `airlock start` and `airlock config approve` call `changes` and `approve`, the session the rest. A record
is written before the guest runs and deleted when it is gone and nothing was changed; so a user's own edits between
runs are nobody's business, and a session that is killed leaves its record behind.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from airlock_runner.config.files import local_slot, project_slot, read_config
from airlock_runner.project import Project
from airlock_runner.text import one_line
from airlock_store.errors import AirlockError, ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

SHOWN = 20
"""Changed settings that are shown to the user."""
FILES = ("image", "kernel", "initrd")
"""Keys of `[vm]` that may name files of the project, which decide as much as the config itself."""
_LIMIT = 16 * 1024**2
_BARE = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-")

Settings = dict[str, str]
"""`airlock.toml: vm.harden` → its value as JSON. Comments and layout are not in it."""


def snapshot(root: Path) -> Settings:
    """What the project's own config files say, and the digests of the project's files that they boot.

    Raises ConfigError where one of them cannot be read.
    """
    found: Settings = {}
    for slot in (project_slot(root), local_slot(root)):
        if slot is None:
            continue
        data = read_config(slot.path).data
        for place, value in _leaves(data, ()):
            found[f"{slot.path.name}: {place}"] = json.dumps(value, sort_keys=True, default=str)
        vm = data.get("vm")
        for key in FILES:
            digest = _digest(root, vm.get(key)) if isinstance(vm, dict) else None
            if digest is not None:
                found[f"{slot.path.name}: content of vm.{key}"] = digest
    return found


def changes(root: Path, now: Settings) -> list[str]:
    """What a sandbox may have changed since the config was last agreed to: lines to show, safe to print."""
    before = _recall(root)
    if before is None or before == now:
        return []
    lines = []
    for key in sorted(before.keys() | now.keys()):
        if before.get(key) != now.get(key):
            lines += [f"- {_shown(key, before[key])}"] if key in before else []
            lines += [f"+ {_shown(key, now[key])}"] if key in now else []
    return [*lines[:SHOWN], *([f"and {len(lines) - SHOWN} more"] if len(lines) > SHOWN else [])]


def require(root: Path) -> Settings:
    """What the config says, once the user agrees to what a sandbox may have changed of it.

    Asks on a terminal. Raises ConfigError without one, and AirlockError where the answer is no.
    """
    now = snapshot(root)
    lines = changes(root, now)
    if not lines:
        return now
    listed = "".join(f"\n    {line}" for line in lines)
    what = f"the config of {root} was changed while a sandbox ran that could write to it:{listed}"
    if not os.isatty(0) or not os.isatty(2):
        raise ConfigError(what, hint="`airlock config approve` agrees to this; or undo it")
    sys.stderr.write(f"airlock: {one_line(str(root), 4096)}: the config was changed while a sandbox ran that could "
                     f"write to it:{listed}\nStart with it? [y/N] ")  # fmt: skip
    sys.stderr.flush()
    if sys.stdin.readline().strip().lower() not in ("y", "yes"):
        raise AirlockError("not started", hint="undo what was changed, or `airlock config approve`")
    approve(root, now)
    return now


def approve(root: Path, now: Settings) -> None:
    """The user agrees to the config as it is now."""
    if Project(root).running_pid() is None:
        _forget(root)
    else:
        begin(root, now)


def begin(root: Path, agreed: Settings) -> None:
    """Remember what the user agreed to: call before a guest runs that can write to the project. Raises AirlockError."""
    path = _record(root)
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        temporary = path.with_suffix(f".{os.getpid()}")
        temporary.touch(0o600)
        temporary.write_text(json.dumps({"root": os.fspath(root), "is": _identity(root), "settings": agreed}))
        temporary.replace(path)
    except OSError as error:
        raise AirlockError(
            f"{path} cannot be written: {error.strerror}",
            hint="airlock keeps there what a sandbox must not change; the directory must be writable",
        ) from error


def end(root: Path) -> bool:
    """The guest is gone. Whether it may have changed what the config says; if not, the record is deleted."""
    try:
        changed = bool(changes(root, snapshot(root)))
    except ConfigError:
        changed = True
    if not changed:
        _forget(root)
    return changed


def _recall(root: Path) -> Settings | None:
    try:
        record = json.loads(_record(root).read_text())
        if record["is"] != _identity(root):
            return None
        settings = record["settings"]
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError):
        # Cut short, or not by us: nothing is known to be agreed to.
        return {}
    return settings if isinstance(settings, dict) else {}


def _identity(root: Path) -> list[int]:
    """Of the directory: another one that is at its place by now is nobody's that ran. No sandbox can exchange it."""
    status = root.stat()
    return [status.st_dev, status.st_ino]


def _forget(root: Path) -> None:
    try:
        _record(root).unlink(missing_ok=True)
    except OSError:
        # It then stays, and the worst that comes of it is a question.
        pass


def _record(root: Path) -> Path:
    import platformdirs

    name = hashlib.sha256(os.fsencode(os.path.realpath(root))).hexdigest()[:32]
    return platformdirs.user_state_path("airlock", appauthor=False) / "agreed" / f"{name}.json"


def _leaves(value: Mapping[str, Any], place: tuple[str, ...]) -> Iterator[tuple[str, Any]]:
    for key, each in value.items():
        here = (*place, key if key and set(key) <= _BARE else json.dumps(key))
        if isinstance(each, dict) and each:
            yield from _leaves(each, here)
        else:
            yield ".".join(here), each


def _digest(root: Path, name: object) -> str | None:
    """Of a file that `[vm]` names, if it is one of the project's."""
    if not isinstance(name, str) or "\0" in name:
        return None
    real = Path(os.path.realpath(root / os.path.expanduser(name)))
    if not real.is_relative_to(os.path.realpath(root)):
        return None
    digest = hashlib.sha256()
    try:
        if not real.is_file():
            return None
        with open(real, "rb") as file:
            while data := file.read(_LIMIT):
                digest.update(data)
    except OSError:
        return "unreadable"
    return digest.hexdigest()


def _shown(key: str, value: object) -> str:
    return one_line(f"{key} = {value}", 200)
