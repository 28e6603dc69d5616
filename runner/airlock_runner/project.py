"""A project's sandbox on the host: `.airlock/sandbox/` with its lock, disk, state and socket.

The session writes here, `show`, `rm` and `exec` read. The guest may have reached this directory through the shared
project, so nothing in it is trusted: no symlink is followed, sizes are bounded, values are checked.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import shlex
import stat
import threading
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

from airlock_runner.state import SandboxStatus, State, state_of
from airlock_store.errors import AirlockError, UsageError
from airlock_store.settings import RESERVED

if TYPE_CHECKING:
    from collections.abc import Iterator

DIRECTORY = Path(".airlock", "sandbox")
LOCK, DISK, NEW_DISK, STATE, SOCKET, CONSOLE, IMAGE = (
    "lock", "disk.img", "disk.img.new", "state.json", "cli.sock", "console.log", "image",
)  # fmt: skip
MUST_BE_WRITABLE = (
    "airlock keeps a sandbox's disk in .airlock/ of the project; the directory must be writable"
)
UP = "up"
"""The second line of the lock's file, after the pid, once the sandbox takes commands."""
RESERVED_PLACES = (
    "/", "/bin", "/etc", "/lib", "/lib32", "/lib64", "/run", "/sbin", "/usr", "/usr/bin", "/usr/lib", "/usr/lib32",
    "/usr/lib64", "/usr/libexec", "/usr/sbin", "/usr/share", "/var", "/var/lib",
)  # fmt: skip
"""What a sandbox has of its own and cannot do without: the project is shared at its own path and would hide it."""
KEPT = 20
"""Files of one name that are kept for the user to look at."""
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_LOCK_PARTS = (*DIRECTORY.parts, LOCK)
_STATE_LIMIT = 64 * 1024
_ORPHAN_PATIENCE = 10.0


class ProjectError(AirlockError):
    """The project's `.airlock` directory cannot be used as it is."""


@dataclass(frozen=True, slots=True)
class Project:
    """The directory that is shared with a sandbox, and what airlock keeps in it."""

    root: Path

    @classmethod
    def find(cls, start: Path) -> Project | None:
        """The nearest directory from `start` upward that holds a sandbox."""
        for directory in (start, *start.parents):
            try:
                if stat.S_ISDIR(os.lstat(directory / DIRECTORY).st_mode):
                    return cls(directory)
            except OSError:
                continue
        return None

    @property
    def directory(self) -> Path:
        """Where the sandbox's files lie."""
        return self.root / DIRECTORY

    def owner(self) -> int:
        """The number of the user whose files the project's are: ours, or for root that of the project's owner."""
        return os.geteuid() or os.stat(self.root).st_uid

    def check_place(self) -> None:
        """Raise UsageError where the project would be in the way of what the sandbox has there itself."""
        place = os.fspath(self.root)
        if place in RESERVED_PLACES or self.root.parts[1] in RESERVED:
            raise UsageError(
                f"{place} cannot be a project: a sandbox has a directory of its own there",
                hint="start airlock in a directory of the project's own, such as one below your home",
            )

    def check_directory(self) -> None:
        """Raise ProjectError where something is in the place of the sandbox's directory, or it cannot be entered."""
        for path in (self.directory.parent, self.directory):
            try:
                is_directory = stat.S_ISDIR(os.lstat(path).st_mode)
                if is_directory:
                    os.close(os.open(path, _DIRECTORY))
            except FileNotFoundError:
                return
            except OSError as error:
                hint = f"chmod u+rwx {shlex.quote(os.fspath(path))}" if error.errno == errno.EACCES else None
                raise ProjectError(f"{path} cannot be read: {error.strerror}", hint=hint) from error
            if not is_directory:
                raise ProjectError(f"{path} is not a directory", hint="remove it")

    def prepare(self) -> None:
        """Make the directory, private, with a .gitignore. Raises ProjectError where something is in its place."""
        try:
            for path, mode in ((self.root / DIRECTORY.parent, 0o755), (self.directory, 0o700)):
                with suppress(FileExistsError):
                    path.mkdir(mode=mode)
                _check_directory(path)
            ignore = self.root / DIRECTORY.parent / ".gitignore"
            if not os.path.lexists(ignore):
                ignore.write_text("*\n")
            if not os.access(self.directory, os.W_OK):
                code = errno.EROFS if os.statvfs(self.directory).f_flag & os.ST_RDONLY else errno.EACCES
                raise OSError(code, os.strerror(code))
        except OSError as error:
            raise ProjectError(
                f"{self.directory} cannot be used: {error.strerror}",
                hint=MUST_BE_WRITABLE,
            ) from error

    @contextmanager
    def lock(self, advice: str = "run a command in it with `airlock exec`") -> Iterator[int]:
        """Hold the project for one start; gives the lock's descriptor, which QEMU inherits.

        So the lock is free only when the machine is gone too, also after a SIGKILL of the session.
        Raises ProjectError that names the process that holds it, with `advice` where that is a running sandbox.
        """
        with self._writing(LOCK):
            fd = self._open(LOCK, os.O_RDWR | os.O_CREAT)
        try:
            if not _try_lock(fd):
                holder = _read_pid(fd)
                if holder is not None and _alive(holder):
                    raise ProjectError(
                        f"the sandbox of {self.root} is already running (pid {holder})",
                        hint=advice,
                    )
                if not _lock_soon(fd):
                    holder = _read_pid(fd)
                    if holder is not None and _alive(holder):
                        raise ProjectError(f"the sandbox of {self.root} was started by pid {holder} just now")
                    raise ProjectError(f"the sandbox of {self.root} is held by a machine that does not end")
            if not self._is_at(fd, LOCK):
                # Whoever held it was `airlock rm`: another start may hold the next one by now.
                raise ProjectError(f"the sandbox of {self.root} was removed just now", hint="start it again")
            os.ftruncate(fd, 0)
            # Where there is no room even for this, the sandbox can still be removed; who holds it is then not known.
            with suppress(OSError):
                os.pwrite(fd, f"{os.getpid()}\n".encode(), 0)
            yield fd
            os.ftruncate(fd, 0)
        finally:
            os.close(fd)

    def moved(self, lock: int) -> Project:
        """The project where it is by now: whoever holds it by this lock may have it moved under its feet.

        Itself where that does not show.
        """
        try:
            path = Path(os.readlink(f"/proc/self/fd/{lock}"))
        except OSError:
            return self
        here = path.is_absolute() and path.parts[-len(_LOCK_PARTS) :] == _LOCK_PARTS
        return Project(path.parents[len(DIRECTORY.parts)]) if here else self

    def _is_at(self, fd: int, name: str) -> bool:
        """Whether this is still the file of that name."""
        ours, there = os.fstat(fd), self._look_at(name)
        return there is not None and (ours.st_dev, ours.st_ino) == (there.st_dev, there.st_ino)

    def wait_until_free(self) -> None:
        """Return when neither session nor machine is left: they hold the lock for as long as they live."""
        fd = self._open(LOCK, os.O_RDWR)
        try:
            fcntl.flock(fd, fcntl.LOCK_SH)
        finally:
            os.close(fd)

    def note_up(self, lock: int) -> None:
        """Whoever holds the project by this lock takes commands from now on."""
        with suppress(OSError):
            os.pwrite(lock, f"{os.getpid()}\n{UP}\n".encode(), 0)

    def running_pid(self) -> int | None:
        """The pid of the session that runs the sandbox, or None."""
        return self._holder()[0]

    def _holder(self) -> tuple[int | None, bool]:
        """The pid of whoever holds the project, or None; and whether commands are taken."""
        try:
            fd = self._open(LOCK, os.O_RDWR)
        except (ProjectError, OSError):
            return None, False
        try:
            if _try_lock(fd):
                return None, False
            holder = _read_pid(fd)
            up = os.pread(fd, 32, 0).split()[1:] == [UP.encode()]
            return (holder, up) if holder is not None and _alive(holder) else (None, False)
        finally:
            os.close(fd)

    def write_state(self, state: State) -> None:
        """Remember the start, atomically."""
        temporary = f"{STATE}.new"
        with self._writing(STATE):
            fd = self._open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            with open(fd, "w", encoding="utf-8") as file:
                json.dump(asdict(state), file)
            self._rename(temporary, STATE)

    def read_state(self) -> State | None:
        """What the last start wrote, or None where there is nothing of use."""
        with suppress(ProjectError):
            return self._load_state()
        return None

    def _load_state(self) -> State | None:
        """What the last start wrote, None where there was none yet. Raises ProjectError where that cannot be told."""
        path, state = self.directory / STATE, None
        try:
            with open(self._open(STATE, os.O_RDONLY), encoding="utf-8") as file:
                state = state_of(json.loads(file.read(_STATE_LIMIT)))
        except FileNotFoundError:
            return None
        except OSError as error:
            raise ProjectError(f"{path} cannot be read: {error.strerror}") from error
        except (ValueError, RecursionError):
            pass
        if state is None:
            raise ProjectError(f"{path} is broken", hint="the next start writes it anew, and keeps the disk")
        return state

    def status(self) -> SandboxStatus | None:
        """The sandbox as it is now; None where the project has none."""
        (holder, up), state, trouble = self._holder(), None, ""
        try:
            self.check_directory()
            state = self._load_state()
        except ProjectError as error:
            trouble = f"{error.message}: {error.hint}" if error.hint else error.message
        if state is None:
            if holder is None and not trouble:
                return None
            # The first start.
            state = State()
        disk = self._look_at(DISK)
        used, size = (disk.st_blocks * 512, disk.st_size) if disk else (0, state.disk_size)
        return SandboxStatus(
            path=self.root, running_pid=holder, up=up, image_name=state.image_name,
            image_path=state.image_path, cpus=state.cpus, memory=state.memory,
            disk_used=used, disk_size=size, last_run=state.last_run,
            sockets=state.sockets, trouble=trouble,
        )  # fmt: skip

    def remove(self) -> None:
        """Delete the sandbox with its disk. Raises ProjectError while it runs."""
        import shutil

        _check_directory(self.directory)
        with self.lock("end it first with `airlock stop`"), self._outer() as outer:
            shutil.rmtree(DIRECTORY.name, dir_fd=outer)

    def ensure_disk(self, size: int, *, ephemeral: bool = False) -> tuple[Path, bool]:
        """The disk's file with at least `size` bytes, sparse; and whether it is new and has to be formatted.

        A new one bears another name until `keep_disk`, so that a start that is killed half-way leaves nothing
        that the next would trust. An `ephemeral` one is new, and nothing is done to the project's own.
        """
        path = self.directory / DISK
        present = self._look_at(DISK)
        if present is None or ephemeral:
            with self._writing(NEW_DISK):
                fd = self._open(NEW_DISK, os.O_RDWR | os.O_CREAT | os.O_TRUNC)
                os.ftruncate(fd, size)
                os.close(fd)
            return self.directory / NEW_DISK, True
        if not stat.S_ISREG(present.st_mode):
            raise ProjectError(f"{path} is not a file", hint="remove it, or use `airlock rm`")
        state = self.read_state()
        if state is not None and present.st_size < state.disk_size:
            raise ProjectError(
                f"{path} is cut short: it has {present.st_size} of its {state.disk_size} bytes",
                hint="keep a copy of it if it matters, then start afresh with `airlock rm`",
            )
        if present.st_size < size:
            with self._writing(DISK):
                fd = self._open(DISK, os.O_RDWR)
                os.ftruncate(fd, size)
                os.close(fd)
        return path, False

    def keep_disk(self) -> None:
        """The new disk is formatted: give it its name."""
        self._rename(NEW_DISK, DISK)

    def forget_new_disk(self) -> None:
        """Leave the new disk to whoever has it open."""
        self.forget(NEW_DISK)

    def disk_size(self) -> int | None:
        """Bytes of the disk's file, or None where there is none yet."""
        present = self._look_at(DISK)
        return present.st_size if present is not None else None

    def drop_disk(self) -> None:
        """Delete the disk and all that is on it."""
        self.forget(DISK)

    def write_console(self, text: str) -> Path:
        """Keep a dead machine's console for the user to read."""
        fd = self._open(CONSOLE, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        with open(fd, "w", encoding="utf-8", errors="replace") as file:
            file.write(text)
        return self.directory / CONSOLE

    def open_log(self, name: str) -> int:
        """The file `name` beside the disk, emptied, to write to."""
        return self._open(name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND)

    @contextmanager
    def _writing(self, name: str) -> Iterator[None]:
        """What cannot be written, as an error that says where and what to do."""
        try:
            yield
        except OSError as error:
            full = error.errno in (errno.ENOSPC, errno.EDQUOT)
            raise ProjectError(
                f"{self.directory / name} cannot be written: {error.strerror}",
                hint="make room on the disk that it is on" if full else MUST_BE_WRITABLE,
            ) from error

    def open_journal(self, name: str) -> int:
        """The file `name` beside the disk, to append to."""
        return self._open(name, os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def open_reading(self, name: str) -> int:
        """The file `name` beside the disk, to read. Raises FileNotFoundError where there is none."""
        return self._open(name, os.O_RDONLY)

    def rotate(self, *names: str) -> None:
        """Give each of these files the next one's name; the last is lost. Those that are not there are left out."""
        for younger, older in reversed(list(pairwise(names))):
            with suppress(FileNotFoundError):
                self._rename(younger, older)

    def keep(self, name: str, data: bytes | bytearray) -> Path:
        """Put something of the user's beside the disk, as a new file of its own; gives its path.

        Raises OSError, also where there are KEPT of this name already.
        """
        for number in range(1, KEPT + 1):
            try:
                fd = self._open(f"{name}.kept-{number}", os.O_WRONLY | os.O_CREAT | os.O_EXCL)
            except FileExistsError:
                continue
            with open(fd, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(fd)
            return self.directory / f"{name}.kept-{number}"
        raise FileExistsError(errno.EEXIST, f"there are {KEPT} already", name)

    def forget(self, name: str) -> None:
        """Delete the file `name` beside the disk, if it is there."""
        with self.at() as directory, suppress(FileNotFoundError):
            os.unlink(name, dir_fd=directory)

    @contextmanager
    def at(self) -> Iterator[int]:
        """The directory where the sandbox's files lie, as a descriptor, found by no symlink.

        Root in a sandbox without hardening can put one on the way while it runs. Raises OSError.
        """
        with self._outer() as outer:
            directory = os.open(DIRECTORY.name, _DIRECTORY, dir_fd=outer)
        try:
            yield directory
        finally:
            os.close(directory)

    @contextmanager
    def _outer(self) -> Iterator[int]:
        outer = os.open(self.root / DIRECTORY.parent, _DIRECTORY)
        try:
            yield outer
        finally:
            os.close(outer)

    def _look_at(self, name: str) -> os.stat_result | None:
        """What is there by that name, if anything is."""
        try:
            with self.at() as directory:
                return os.stat(name, dir_fd=directory, follow_symlinks=False)
        except OSError:
            return None

    def _rename(self, name: str, to: str) -> None:
        with self.at() as directory:
            os.rename(name, to, src_dir_fd=directory, dst_dir_fd=directory)

    def _open(self, name: str, flags: int) -> int:
        with self.at() as directory:
            try:
                fd = os.open(
                    name, flags | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK, 0o600, dir_fd=directory
                )
            except OSError as error:
                if error.errno in (errno.ELOOP, errno.ENXIO):
                    raise ProjectError(
                        f"{self.directory / name} is not a regular file", hint="remove it"
                    ) from error
                raise
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            os.close(fd)
            raise ProjectError(f"{self.directory / name} is not a regular file", hint="remove it")
        return fd


def _check_directory(path: Path) -> None:
    status = os.lstat(path)
    if not stat.S_ISDIR(status.st_mode):
        raise ProjectError(f"{path} is not a directory", hint="remove it")
    if status.st_uid != os.geteuid():
        raise ProjectError(f"{path} belongs to another user", hint="start the sandbox as its owner")


def _try_lock(fd: int) -> bool:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _lock_soon(fd: int) -> bool:
    """Wait for a machine whose session is dead, and which is being killed for that, to let go."""
    waiter = threading.Thread(target=fcntl.flock, args=(fd, fcntl.LOCK_EX), daemon=True)
    waiter.start()
    waiter.join(_ORPHAN_PATIENCE)
    return not waiter.is_alive()


def _read_pid(fd: int) -> int | None:
    text = os.pread(fd, 32, 0).partition(b"\n")[0].strip()
    return int(text) if text.isdigit() and len(text) < 10 else None


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True
