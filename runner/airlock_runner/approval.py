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
import stat
import sys
from contextlib import suppress
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any

from airlock_runner.borders import entry, host_path
from airlock_runner.config.files import local_slot, project_slot, read_config
from airlock_runner.config.layers import read_layers, without_disabled
from airlock_runner.project import Project
from airlock_runner.text import one_line
from airlock_store.errors import AirlockError, ConfigError, StoreError
from airlock_store.image import MANIFEST, load_image

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

SHOWN = 20
"""Changed settings that the user can agree to at a prompt; more do not fit on a screen."""
SHOWN_CHARACTERS = 300
"""Of each."""
FILES = ("image", "kernel", "initrd")
"""Keys of `[vm]` that may name what the sandbox can write to, and decide as much as the config itself."""
FIRST, LAST = ("mounts", "network", "vm", "daemons"), ("env",)
"""What of the config is shown first, since it gives most, and what last."""
ABOVE, UNREADABLE = "directory above mask ", "unreadable"
_HASHED = 64 * 1024**2
"""Bytes: a recipe, a kernel and an initrd are less, and a sparse file of the sandbox's making is none to read."""
_BARE = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-")

Settings = dict[str, str]
"""`airlock.toml: vm.harden` → its value as JSON. Comments and layout are not in it."""


def snapshot(root: Path) -> Settings:
    """What the project's own config files say, and what is in the places that the config as a whole goes by.

    That is the content of what `[vm]` names to boot from, where the sandbox can write to it, and the directories above
    what is masked: a mask lies at a path, which could come to show another directory. Raises ConfigError where one of
    the config files cannot be read.
    """
    found: Settings = {}
    for slot in filter(None, (project_slot(root), local_slot(root))):
        for place, value in _leaves(read_config(slot.path).data, ()):
            found[f"{slot.path.name}: {place}"] = json.dumps(value, sort_keys=True, default=str)
    whole = without_disabled(read_layers(root).document).data
    mounts = (whole.get("mounts") or {}).values()
    writable = [root, *(host_path(each["source"], root) for each in mounts if _is_writable(each))]
    for key in FILES:
        name = (whole.get("vm") or {}).get(key)
        # An image that has no slash is a recipe's name, or its file's.
        if name and (key != "image" or "/" in name or name.endswith(".toml")):
            content = _content(name, root, writable)
            if content is not None:
                found[f"content of vm.{key}"] = content
    for mask in (whole.get("mask") or {}).values():
        for path in (mask or {}).get("paths") or ():
            for above in reversed(PurePath(path).parents[:-1]):
                with suppress(OSError):
                    found[f"{ABOVE}{path}: {above}"] = f"inode {os.lstat(root / above).st_ino}"
    return found


def changes(root: Path, now: Settings) -> list[str]:
    """What a sandbox may have changed since the config was last agreed to: lines to show, safe to print, none cut."""
    before = _recall(root)
    if before is None or before == now:
        return []
    lines = []
    # Where no directory was, nothing was hidden: a mask makes those that it needs.
    made = {key for key in now.keys() - before.keys() if key.startswith(ABOVE)}
    for key in sorted((before.keys() | now.keys()) - made, key=_rank):
        lines += _difference(key, before.get(key), now.get(key))
    return lines


def require(root: Path) -> Settings:
    """What the config says, once the user agrees to what a sandbox may have changed of it.

    Asks on a terminal, if it is no more than can be read there. Raises ConfigError else, and AirlockError where the
    answer is no.
    """
    now = snapshot(root)
    lines = changes(root, now)
    if not lines:
        return now
    shown = [_cut(line) for line in lines[:SHOWN]]
    whole = shown == lines
    more = [f"and {len(lines) - SHOWN} more"] if len(lines) > SHOWN else []
    listed = "".join(f"\n    {line}" for line in [*shown, *more])
    what = f"the config of {root} was changed while a sandbox ran that could write to it:{listed}"
    if not whole or not os.isatty(0) or not os.isatty(2):
        seen = "" if whole else "shows all of it and "
        raise ConfigError(what, hint=f"`airlock config approve` {seen}agrees to this; or undo it")
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
    except AirlockError:
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
    except (FileNotFoundError, NotADirectoryError):
        return None
    except PermissionError as error:
        raise AirlockError(
            f"{_record(root)} cannot be read: {error.strerror}",
            hint="airlock keeps there what a sandbox must not change; XDG_STATE_HOME names another place",
        ) from error
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


def _is_writable(mount: object) -> bool:
    return isinstance(mount, dict) and isinstance(mount.get("source"), str) and not mount.get("read_only")


def _content(name: str, root: Path, writable: Iterable[Path]) -> str | None:
    """What tells one content of what `[vm]` names from another, if the sandbox can write to it and it is there."""
    path = host_path(name, root)
    if "\0" in name or entry(path, writable) is None or not path.exists():
        return None
    if not path.is_dir():
        return _mark(path)
    try:
        image = load_image(path)
    except StoreError:
        return UNREADABLE
    files = (path / MANIFEST, image.kernel, image.initrd, image.rootfs)
    return hashlib.sha256("\n".join(map(_mark, files)).encode()).hexdigest()


def _mark(path: Path) -> str:
    """A digest of a file; of a large one what no sandbox can set, the time of the change of its inode among it."""
    try:
        with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
            status = os.fstat(file.fileno())
            if stat.S_ISREG(status.st_mode) and status.st_size <= _HASHED:
                # Nor is more read of one that grows.
                return hashlib.sha256(file.read(_HASHED + 1)).hexdigest()
            return f"inode {status.st_ino}, {status.st_size} bytes, changed at {status.st_ctime_ns}"
    except OSError:
        return UNREADABLE


def _rank(key: str) -> tuple[int, str]:
    first = key.partition(": ")[2].partition(".")[0]
    return (FIRST.index(first) if first in FIRST else len(FIRST) + (first in LAST)), key


def _difference(key: str, before: str | None, now: str | None) -> list[str]:
    """Lines for one setting: of a list only the elements that are not in both, for nobody finds one among many."""
    if before == now:
        return []
    old, new = (_elements(each) for each in (before, now))
    gone = [each for each in old if each not in new]
    come = [each for each in new if each not in old]
    if old and new and (gone or come):
        found = [f"- {key} with {each}" for each in gone] + [f"+ {key} with {each}" for each in come]
    else:
        found = [f"{sign} {key} = {each}" for sign, each in (("-", before), ("+", now)) if each is not None]
    return [one_line(line, len(line)) for line in found]


def _elements(value: str | None) -> list[str]:
    """Those of a list, as JSON; none of anything else."""
    if value is None or not value.startswith("["):
        return []
    return [json.dumps(each, sort_keys=True) for each in json.loads(value)]


def _cut(line: str) -> str:
    left = len(line) - SHOWN_CHARACTERS
    return line if left <= 0 else f"{line[:SHOWN_CHARACTERS]}… and {left} characters more"
