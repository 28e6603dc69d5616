"""The store: complete, read-only directories named by the hash of their inputs. Builder and runner meet here.

What exists is complete: a path is built beside, fsynced and renamed in, under a lock that dies with its holder and the
programs that work for it.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from airlock_store import paths
from airlock_store.errors import StoreError
from airlock_store.paths import StorePath

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from airlock_store.gc import Collected

__all__ = ["Store", "StorePath", "pass_on", "remove_tree"]

INHERITED = 100
"""Descriptors that programs inherit have numbers from here on."""


class Store:
    """A directory of store paths. Cheap to make; nothing is written before something is realised.

    `option` is the one of the command line that says where it is; None where the environment does.
    """

    def __init__(self, root: Path, option: str | None = None) -> None:
        self.root = root
        self._option = option
        self._linked: dict[tuple[int, int], str] = {}

    @classmethod
    def open(cls, environ: Mapping[str, str] = os.environ) -> Store:
        """The store that the environment names: see `paths.default_root`."""
        return cls(paths.default_root(environ))

    def path(self, key: str, name: str) -> Path:
        """Where the path of this key and name is, or would be."""
        return self.root / paths.directory_name(key, name)

    def find(self, key: str, name: str) -> StorePath | None:
        """The store path, if it is there. Raises StoreError where the store may not be looked into."""
        path = self.path(key, name)
        try:
            return paths.parse(path) if stat.S_ISDIR(os.stat(path).st_mode) else None
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            raise self._unusable(error) from error

    def paths(self) -> Iterator[StorePath]:
        """Every path in the store, in the order of their names."""
        try:
            children = sorted(self.root.iterdir())
        except FileNotFoundError:
            return
        except OSError as error:
            raise self._unusable(error) from error
        for child in children:
            if (found := paths.parse(child)) and child.is_dir() and not child.is_symlink():
                yield found

    def images(self) -> Iterator[StorePath]:
        """The paths that a machine can boot."""
        from airlock_store.image import MANIFEST

        return (path for path in self.paths() if (path / MANIFEST).is_file())

    def realise(
        self,
        key: str,
        name: str,
        build: Callable[[Path], None],
        *,
        kind: str = "",
        references: Sequence[StorePath] = (),
        waiting: Callable[[], None] = lambda: None,
    ) -> StorePath:
        """The path of `key` and `name`, built by `build(output)` if the store lacks it.

        `output` is an empty directory to fill; what `build` puts beside it is scratch. Of several builders of one
        path one builds, the others say so to `waiting`, wait and find it. A builder that was killed counts for as
        long as a program lives that it started with its inheritable handles: it would write into the next one's
        output. Raises what `build` raises, and StoreError when the store cannot be written.
        """
        if found := self.find(key, name):
            return found
        try:
            with self.in_use(), self._lock(paths.directory_name(key, name), waiting=waiting):
                if found := self.find(key, name):
                    return found
                self._sweep()
                return self._build(key, name, build, kind, references)
        except OSError as error:
            raise self._unusable(error) from error

    def link(self, source: StorePath, file: str, target: Path) -> None:
        """Put `file` of another store path at `target`, using its space and its digest a second time."""
        from airlock_store.contents import FileEntry, read

        entry = read(source.path).files.get(file)
        if not isinstance(entry, FileEntry):
            raise StoreError(f"{source.path}: holds no file {file!r}")
        try:
            os.link(source / file, target)
        except OSError as error:
            if error.errno not in {errno.EXDEV, errno.EPERM, errno.EMLINK, errno.ENOTSUP}:
                raise
            import shutil

            shutil.copyfile(source / file, target)
        else:
            status = target.lstat()
            self._linked[status.st_dev, status.st_ino] = entry.sha256

    def verify(self, path: StorePath) -> tuple[str, ...]:
        """What is wrong with a path: files that changed, are missing, or do not belong. Empty when nothing is."""
        from airlock_store.contents import read, sha256_of, survey

        try:
            contents = read(path.path)
            now = survey(path.path, lambda file, _: sha256_of(file))
        except OSError as error:
            raise self._unusable(error) from error
        problems = [f"{file}: missing" for file in contents.files if file not in now]
        for file, entry in now.items():
            if file not in contents.files:
                problems.append(f"{file}: does not belong here")
            elif entry != contents.files[file]:
                problems.append(f"{file}: changed")
        if (contents.key, contents.name) != (path.key, path.name):
            problems.append(f"the manifest is that of {contents.key}-{contents.name}")
        return tuple(problems)

    def gc(self) -> Collected:
        """Remove what no root keeps: see `airlock_store.gc.collect`."""
        from airlock_store.gc import collect

        return collect(self)

    @contextmanager
    def in_use(self) -> Iterator[None]:
        """Keep garbage collection out while paths are looked up and built on. May be nested. Raises StoreError."""
        with ExitStack() as held:
            try:
                for directory in (".locks", ".tmp", "roots"):
                    (self.root / directory).mkdir(parents=True, exist_ok=True)
                held.enter_context(self._lock("gc", fcntl.LOCK_SH))
            except OSError as error:
                raise self._unusable(error) from error
            yield

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Keep everybody who uses `in_use` out. Raises StoreError, without waiting, when somebody is in."""
        try:
            (self.root / ".locks").mkdir(parents=True, exist_ok=True)
            with self._lock("gc", fcntl.LOCK_EX | fcntl.LOCK_NB):
                yield
        except BlockingIOError as error:
            raise StoreError("a build is using the store", hint="Try again when it is done.") from error
        except OSError as error:
            raise self._unusable(error) from error

    @contextmanager
    def _lock(
        self, name: str, mode: int = fcntl.LOCK_EX, waiting: Callable[[], None] = lambda: None
    ) -> Iterator[None]:
        """Hold the lock `name`; the kernel lets go of it when this process and who inherited it are gone.

        Raises BlockingIOError with LOCK_NB; otherwise calls `waiting` before it waits.
        """
        handle = pass_on(os.open(self.root / ".locks" / name, os.O_RDWR | os.O_CREAT, 0o600))
        try:
            try:
                fcntl.flock(handle, mode | fcntl.LOCK_NB)
            except BlockingIOError:
                if mode & fcntl.LOCK_NB:
                    raise
                waiting()
                fcntl.flock(handle, mode)
            yield
        finally:
            os.close(handle)

    def _sweep(self) -> None:
        """Remove what killed builds left, our own predecessor's included. Builds that live hold their lock."""
        for leftover in (self.root / ".tmp").iterdir():
            try:
                with self._lock(leftover.name, fcntl.LOCK_EX | fcntl.LOCK_NB):
                    remove_tree(leftover)
            except BlockingIOError:
                continue

    def _build(
        self,
        key: str,
        name: str,
        build: Callable[[Path], None],
        kind: str,
        references: Sequence[StorePath],
    ) -> StorePath:
        final = self.path(key, name)
        scratch = self.root / ".tmp" / final.name
        remove_tree(scratch)
        output = scratch / "out"
        output.mkdir(parents=True)
        try:
            build(output)
            self._seal(output, key, final.name.removeprefix(f"{key}-"), kind, references)
            output.rename(final)
            _fsync(self.root)
        finally:
            self._linked.clear()
            remove_tree(scratch)
        return StorePath(final, key, final.name.removeprefix(f"{key}-"))

    def _seal(self, output: Path, key: str, name: str, kind: str, references: Sequence[StorePath]) -> None:
        """Make `output` read-only, write its manifest, and bring every byte of it to the disk."""
        from airlock_store import contents

        os.chmod(output, contents.DIRECTORY_MODE)
        for path, status in contents.walk(output):
            if stat.S_ISLNK(status.st_mode):
                continue
            if stat.S_ISDIR(status.st_mode):
                wanted = contents.DIRECTORY_MODE
            else:
                wanted = contents.PROGRAM_MODE if status.st_mode & 0o111 else contents.FILE_MODE
            if stat.S_IMODE(status.st_mode) != wanted:
                os.chmod(path, wanted)
        files = contents.survey(output, self._digest)
        manifest = contents.Contents(key, name, kind, tuple(path.path.name for path in references), files)
        (output / contents.MANIFEST).write_bytes(contents.encode(manifest))
        os.chmod(output / contents.MANIFEST, contents.FILE_MODE)
        for path, status in contents.walk(output):
            if not stat.S_ISLNK(status.st_mode) and (status.st_dev, status.st_ino) not in self._linked:
                _fsync(path)
        _fsync(output)

    def _digest(self, path: Path, status: os.stat_result) -> str:
        from airlock_store.contents import sha256_of

        return self._linked.get((status.st_dev, status.st_ino)) or sha256_of(path)

    def advice(self, wanted: str) -> str:
        """How to have the store elsewhere, in words: `wanted` is what it takes."""
        return f"give {self._option} {wanted}" if self._option else f"set AIRLOCK_STORE to {wanted}"

    def _unusable(self, error: OSError) -> StoreError:
        where = error.filename or self.root
        free = "free some space" if self._option else "free some space (`airlock store gc`)"
        other = self.advice("a directory that you may write")
        hints = {
            errno.ENOSPC: f"{free}, or {self.advice('a directory on another disk')}",
            errno.EDQUOT: f"your quota is used up: free some space, or {self.advice('a directory elsewhere')}",
            **dict.fromkeys((errno.EACCES, errno.EPERM, errno.EROFS), other),
            **dict.fromkeys((errno.ENOENT, errno.ENOTDIR, errno.EEXIST), other),
        }
        reason = os.strerror(error.errno) if error.errno else str(error)
        return StoreError(f"the store cannot be used: {where}: {reason}", hint=hints.get(error.errno or 0))


def pass_on(handle: int) -> int:
    """The same open file as a descriptor that programs inherit, in place of `handle`.

    Its number is out of the way: mmdebstrap has a shell write to the lowest that is free, and dash knows one digit.
    """
    try:
        return fcntl.fcntl(handle, fcntl.F_DUPFD, INHERITED)
    except OSError as error:
        if error.errno == errno.EINVAL:
            raise StoreError(
                f"no more than {INHERITED} files may be open here", hint="raise the limit: ulimit -n 1024"
            ) from error
        raise
    finally:
        os.close(handle)


def remove_tree(path: Path) -> None:
    """Remove a tree that may hold directories without write permission, be no directory at all, or not exist."""
    if not path.is_dir() or path.is_symlink():
        path.unlink(missing_ok=True)
        return
    for directory, names, _ in os.walk(path):
        for name in names:
            child = Path(directory, name)
            if not child.is_symlink():
                os.chmod(child, 0o700)
    import shutil

    shutil.rmtree(path)


def _fsync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
