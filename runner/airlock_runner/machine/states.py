"""Saved machine states on disk: found by key, verified before use, private to the user, bounded in size.

One directory a state, in the store's `states/`: `ram` (sparse, the guest's memory), `device` (what QEMU wrote),
`state.json` (digests, and airlockd's READY) and `verified` (which files had these digests, since when the host runs). A
state is a cache: whatever is wrong with it, it is dropped.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import stat
import time
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from airlock_runner.machine.argv import Channels, MachineSpec, Share, qemu_argv
from airlock_store.errors import AirlockError, ConfigError
from airlock_store.sizes import parse_size

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

    from airlock_store.image import Image

FORMAT = 1
RAM, DEVICE, MANIFEST, VERIFIED = "ram", "device", "state.json", "verified"
LIMIT = 2 * 1024**3
"""Bytes on disk of all states together; the least recently used go first."""
MIN_FREE = 1024**3
"""Bytes that must be free for a state to be made: a disk that fills up under a machine's RAM would kill it."""
_BLOCK = 1024 * 1024
_TICK = 1_000_000_000
"""Nanoseconds within which a file may be changed twice without another time of change."""
_DRAFT = ".new-"


class StateError(AirlockError):
    """A saved state cannot be used, or not be made."""


@dataclass(slots=True)
class Saved:
    """A state that is there: open descriptors, so that deleting it does no harm, and the READY that airlockd said."""

    key: str
    ram: int
    device: int
    ready: dict[str, Any]
    _directory: Path
    _digests: tuple[str, str]
    # Opened apart: an offset belongs to the open file, and QEMU reads `device` from its own while this is verified.
    _readers: tuple[int, int]

    def known(self) -> bool:
        """Whether it was verified since this host booted, and no file was touched after.

        A file's time of change is the kernel's: its owner cannot set it back either.
        """
        identity = self._identity()
        try:
            return identity is not None and (self._directory / VERIFIED).read_text() == identity
        except (OSError, ValueError):
            return False

    def verify(self) -> None:
        """Compare every byte with what was saved. Raises StateError. Takes about half a second per gigabyte."""
        ram, device = self._readers
        identity, begin = self._identity(), time.time_ns()
        if (digest_sparse(ram), digest_sparse(device)) != self._digests:
            raise StateError("its digest is wrong")
        quiet = begin - max(os.fstat(fd).st_ctime_ns for fd in self._readers)
        if identity is not None and quiet > _TICK:
            self._remember(identity)

    def _identity(self) -> str | None:
        """These files as they are now, and this boot of the host; None where nobody tells of that."""
        try:
            boot = Path("/proc/sys/kernel/random/boot_id").read_text()
        except OSError:
            return None
        return json.dumps([boot, self._digests, [_identity(os.fstat(fd)) for fd in self._readers]])

    def _remember(self, identity: str) -> None:
        """What cannot be kept is found out again."""
        with suppress(OSError):
            temporary = self._directory / f"{VERIFIED}.{os.getpid()}"
            temporary.touch(0o600)
            temporary.write_text(identity)
            temporary.replace(self._directory / VERIFIED)

    def close(self) -> None:
        """Let go of the files."""
        _close([self.ram, self.device, *self._readers])


@dataclass(slots=True)
class Draft:
    """A state in the making: paths to write to, and a place for the files of the machine that makes it."""

    directory: Path

    @property
    def ram(self) -> Path:
        """The file that is to be the machine's RAM."""
        return self.directory / RAM

    @property
    def device(self) -> Path:
        """The file for the device state."""
        return self.directory / DEVICE

    @property
    def scratch(self) -> Path:
        """A directory that does not become part of the state."""
        return self.directory / "scratch"


class States:
    """The states of one user, below `root`. Not safe against the user, who owns them; safe against everybody else."""

    def __init__(self, root: Path, limit: int = LIMIT) -> None:
        self._root = root
        self._limit = limit

    @classmethod
    def of_store(cls, store_root: Path) -> States:
        """Those beside the images of a store. AIRLOCK_STATES_SIZE bounds them, such as "4 GB". Raises ConfigError."""
        wanted = os.environ.get("AIRLOCK_STATES_SIZE")
        try:
            limit = parse_size(wanted) if wanted else LIMIT
        except ValueError as error:
            raise ConfigError(f"AIRLOCK_STATES_SIZE: {error}") from error
        return cls(store_root / "states", limit)

    def find(self, key: str, memory: int) -> Saved | None:
        """The state of this key for `memory` bytes of RAM, opened but not verified; None where there is none of use."""
        directory = self._root / key
        opened: list[int] = []
        try:
            if not _private(directory.lstat(), stat.S_IFDIR):
                return None
            for name in (RAM, DEVICE, RAM, DEVICE, MANIFEST):
                # The first is RAM for QEMU, which wants to be able to write, though it only writes to its copy.
                access = os.O_RDONLY if opened else os.O_RDWR
                opened.append(os.open(directory / name, access | os.O_NOFOLLOW | os.O_CLOEXEC))
            ram, device, *readers, manifest = opened
            values = json.loads(os.read(manifest, 65536))
            usable = all(_private(os.fstat(fd), stat.S_IFREG) for fd in opened)
            same = all(
                os.path.samestat(os.fstat(a), os.fstat(b))
                for a, b in zip((ram, device), readers, strict=True)
            )
            if (
                not usable
                or not same
                or os.fstat(ram).st_size != memory
                or not isinstance(values["ready"], dict)
            ):
                raise ValueError
            digests = (values["ram"], values["device"])
            saved = Saved(key, ram, device, values["ready"], directory, digests, (readers[0], readers[1]))
            os.utime(directory)
        except FileNotFoundError:
            _close(opened)
            return None
        except (OSError, ValueError, KeyError, TypeError):
            _close(opened)
            self.drop(key)
            return None
        os.close(manifest)
        return saved

    @contextmanager
    def making(self, key: str) -> Iterator[Draft | None]:
        """A draft for `key` while the block runs, gone at its end unless `keep` was called; None where another
        process makes the same state now.

        Raises StateError where the disk has no room for one.
        """
        import shutil
        import tempfile

        self._root.mkdir(mode=0o700, parents=True, exist_ok=True)
        free = shutil.disk_usage(self._root).free
        if free < MIN_FREE:
            raise StateError("there is too little free disk space to save it")
        with _locked(self._root / f".{key}.lock") as mine:
            if not mine:
                yield None
                return
            self._sweep()
            directory = Path(tempfile.mkdtemp(prefix=_DRAFT, dir=self._root))
            # Held while it is in the making: what nobody holds was left by a process that was killed.
            with _locked(directory / "lock"):
                try:
                    draft = Draft(directory)
                    draft.scratch.mkdir()
                    yield draft
                finally:
                    _remove(directory)

    def keep(self, key: str, draft: Draft, ready: dict[str, Any], image: Path) -> None:
        """The draft is complete: give it its name, and make room. Raises OSError."""
        import shutil

        digests = {}
        for path in (draft.ram, draft.device):
            path.chmod(0o600)
            fd = os.open(path, os.O_RDONLY)
            try:
                digests[path.name] = digest_sparse(fd)
            finally:
                os.close(fd)
        shutil.rmtree(draft.scratch)
        (draft.directory / "lock").unlink()
        manifest = {**digests, "ready": ready, "image": os.fspath(image)}
        target = draft.directory / MANIFEST
        target.touch(0o600)
        target.write_text(json.dumps(manifest))
        self.drop(key)
        # The rename moves the directory away from under `making`, which then has nothing to remove.
        draft.directory.rename(self._root / key)
        self._make_room(key)

    def turns(self, count: int) -> list[Path]:
        """Files to lock for taking turns in what is done with states."""
        return [self._root / f".turn-{number}.lock" for number in range(count)]

    def drop(self, key: str) -> None:
        """Delete a state; harmless where there is none."""
        _remove(self._root / key)

    def prune(self, keep_images: Collection[Path] = ()) -> int:
        """Delete the states of all images but these, and what killed processes left; gives the bytes that it freed."""
        freed = self._sweep()
        for path in self._directories():
            if path.name.startswith(_DRAFT):
                continue
            try:
                image = Path(json.loads((path / MANIFEST).read_text())["image"])
            except (OSError, ValueError, KeyError, TypeError):
                image = None
            if image is None or image not in keep_images:
                freed += _size(path)
                _remove(path)
        return freed

    def size(self) -> int:
        """Bytes on disk of all states."""
        return sum(_size(path) for path in self._directories())

    def _sweep(self) -> int:
        freed = 0
        for path in self._directories():
            if path.name.startswith(_DRAFT):
                with _locked(path / "lock") as abandoned:
                    if abandoned:
                        freed += _size(path)
                        _remove(path)
        return freed

    def _make_room(self, newest: str) -> None:
        states = sorted(self._directories(), key=lambda path: path.stat().st_mtime)
        total = sum(_size(path) for path in states)
        for path in states:
            if total <= self._limit:
                return
            if path.name != newest and not path.name.startswith(_DRAFT):
                total -= _size(path)
                _remove(path)

    def _directories(self) -> list[Path]:
        try:
            return [path for path in self._root.iterdir() if path.is_dir() and not path.is_symlink()]
        except FileNotFoundError:
            return []


def _remove(path: Path) -> None:
    """As much of a tree as can be removed. Who finds a state does without what this imports."""
    import shutil

    shutil.rmtree(path, ignore_errors=True)


def state_key(image: Image, spec: MachineSpec) -> str:
    """The key of the state of a machine: everything that a saved state must have in common with it.

    That is the image (which has airlockd in it), this QEMU's build, the accelerator, the host's CPU, and the shape:
    the command line without the paths of a project.
    """
    nowhere = Path("/")
    shape = replace(
        spec, kernel=nowhere, initrd=nowhere, rootfs=nowhere, disk=nowhere, ram=None,
        shares=tuple(Share(share.tag, nowhere) for share in spec.shares),
    )  # fmt: skip
    # The image's key vouches for its own kernel and initrd, and for no others.
    foreign = [
        _program(path) if path != own else None
        for path, own in ((spec.kernel, image.kernel), (spec.initrd, image.initrd))
    ]
    parts = [
        FORMAT, image.key, _program(spec.qemu), foreign, _host_cpu(), qemu_argv(shape, Channels(0, 0, 0, 0)),
    ]  # fmt: skip
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:32]


def digest_sparse(fd: int) -> str:
    """sha256 over the places and the bytes of a file's data; its holes cost nothing."""
    digest = hashlib.sha256()
    size = os.fstat(fd).st_size
    digest.update(f"{size}\n".encode())
    position = 0
    while position < size:
        try:
            position = os.lseek(fd, position, os.SEEK_DATA)
        except OSError:
            # ENXIO: nothing but a hole up to the end.
            break
        end = os.lseek(fd, position, os.SEEK_HOLE)
        digest.update(f"{position}-{end}\n".encode())
        while position < end:
            data = os.pread(fd, min(_BLOCK, end - position), position)
            if not data:
                return "cut short"
            digest.update(data)
            position += len(data)
    return digest.hexdigest()


def _program(path: Path) -> list[str | int]:
    return [os.fspath(path), *_identity(path.stat())]


def _identity(status: os.stat_result) -> list[int]:
    return [status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns]


def _host_cpu() -> str:
    """What the host's first processor says of itself."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            lines = file.read(8192).split("\n\n")[0].splitlines()
    except OSError:
        return os.uname().machine
    told = ("vendor_id", "cpu family", "model", "model name", "stepping", "flags", "Features")
    return "\n".join(line for line in lines if line.partition(":")[0].strip() in told)


def _private(status: os.stat_result, kind: int) -> bool:
    """Whether it is of this kind, ours, and nobody else can have touched it."""
    return (
        stat.S_IFMT(status.st_mode) == kind and status.st_uid == os.geteuid() and not status.st_mode & 0o077
    )


def _size(directory: Path) -> int:
    try:
        return sum(path.lstat().st_blocks * 512 for path in directory.iterdir())
    except OSError:
        return 0


def _close(descriptors: list[int]) -> None:
    for fd in descriptors:
        os.close(fd)


@contextmanager
def _locked(path: Path) -> Iterator[bool]:
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
            return
        try:
            yield True
        finally:
            path.unlink(missing_ok=True)
    finally:
        os.close(fd)
