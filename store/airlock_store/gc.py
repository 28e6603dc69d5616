"""What keeps store paths alive (roots), and removing what nothing keeps. Called by the CLI and by sessions.

A root is a link in `roots/`: straight to a store path, or to a project's own link, which keeps the path for as long as
the project has it.
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from airlock_store import contents, paths
from airlock_store.errors import StoreError
from airlock_store.store import remove_tree

if TYPE_CHECKING:
    from collections.abc import Sequence

    from airlock_store.store import Store, StorePath


_PROJECT = "project-"


@dataclass(frozen=True, slots=True)
class Collected:
    """What a collection removed, and the bytes on disk that this set free."""

    removed: tuple[StorePath, ...]
    freed: int


def add_root(store: Store, name: str, path: StorePath) -> None:
    """Keep `path` (and what it refers to) under `name`; what the name kept before it keeps no longer."""
    with store.in_use():
        _relink(store.root / "roots" / paths.sanitise(name), Path("..", path.path.name))


def add_project_root(store: Store, link: Path, image: Path) -> None:
    """Make `link`, a file in a project, point to `image`, and keep that path for as long as the link is there.

    One outside of the store is nobody's to keep, but its project is known then.
    """
    link = link.absolute()
    with store.in_use():
        _relink(link, image)
        keep_project_link(store, link)


def keep_project_link(store: Store, link: Path) -> None:
    """Keep what this link of `add_project_root` points to from its new place: it was moved there with its project."""
    name = _PROJECT + hashlib.sha256(os.fsencode(link)).hexdigest()[: paths.KEY_LENGTH]
    _relink(store.root / "roots" / name, link)


def project_links(store: Store) -> list[Path]:
    """The links that `add_project_root` made and whose project has them still."""
    return [root.readlink() for root in _roots(store) if root.name.startswith(_PROJECT) and _wanted(root)]


def kept(store: Store) -> set[str]:
    """The directory names of all paths that a root reaches."""
    wanted = [found.path.name for root in _roots(store) if (found := _inside(store, root))]
    reached: set[str] = set()
    while wanted:
        name = wanted.pop()
        if name in reached or not (store.root / name).is_dir():
            continue
        reached.add(name)
        wanted.extend(contents.read(store.root / name).references)
    return reached


def collect(store: Store) -> Collected:
    """Remove every path that no root reaches, roots whose project is gone, and what killed builds left.

    Raises StoreError when a build is going on.
    """
    with store.alone():
        keep = kept(store)
        removed = [path for path in store.paths() if path.path.name not in keep]
        freed = _bytes_of_their_own(removed)
        for path in removed:
            # Renamed first: a removal that is interrupted must not leave half a path under its name.
            doomed = store.root / ".tmp" / path.path.name
            doomed.parent.mkdir(exist_ok=True)
            remove_tree(doomed)
            path.path.rename(doomed)
        for root in _roots(store):
            if not _wanted(root):
                root.unlink()
        for directory, spared in ((".tmp", ""), (".locks", "gc")):
            for leftover in (store.root / directory).glob("*"):
                if leftover.is_dir():
                    remove_tree(leftover)
                elif leftover.name != spared:
                    leftover.unlink()
        return Collected(tuple(removed), freed)


def _roots(store: Store) -> list[Path]:
    directory = store.root / "roots"
    return [child for child in sorted(directory.glob("*")) if child.is_symlink()]


def _wanted(root: Path) -> bool:
    """Whether what made this root is still there: the project's own link, or else the path."""
    try:
        os.lstat(root.readlink() if root.name.startswith(_PROJECT) else root.resolve())
    except (FileNotFoundError, NotADirectoryError):
        return False
    except (OSError, RuntimeError):
        # In a directory that cannot be searched now, or a link to itself, which keeps nothing anyway.
        pass
    return True


def _inside(store: Store, root: Path) -> StorePath | None:
    """The path of this store that `root` leads to."""
    try:
        target = root.resolve(strict=True)
    except (OSError, RuntimeError):
        return None
    return paths.parse(target) if target.parent == store.root.resolve() else None


def _relink(link: Path, target: Path) -> None:
    """Replace a link in one step, so that there is no moment in which nothing is kept."""
    fresh = link.with_name(f".{link.name}.{os.getpid()}")
    try:
        fresh.unlink(missing_ok=True)
        fresh.symlink_to(target)
        fresh.replace(link)
    except OSError as error:
        raise StoreError(f"cannot write {link}: {error.strerror}") from error


def _bytes_of_their_own(doomed: Sequence[StorePath]) -> int:
    """Bytes on disk that go away with `doomed`: files that are linked from elsewhere too stay."""
    links: Counter[tuple[int, int]] = Counter()
    freed = 0
    for path in doomed:
        for _, status in contents.walk(path.path):
            inode = (status.st_dev, status.st_ino)
            links[inode] += 1
            if stat.S_ISDIR(status.st_mode) or links[inode] == status.st_nlink:
                freed += status.st_blocks * 512
    return freed
