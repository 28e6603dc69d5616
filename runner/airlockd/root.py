"""The sandbox's root: image below, the project's disk above, shares inside. Called by supervisor for `configure`.

airlockd itself stays in the initrd, which no process of the sandbox can see. The sandbox's processes live in a mount
namespace of their own whose root is the overlay, truly its root and not a chroot: in a chroot the kernel refuses user
namespaces, which rootless containers need.
"""

from __future__ import annotations

import errno
import os
import stat
from typing import TYPE_CHECKING, Any, NamedTuple

from airlockd import boot, disk, harden, identity, linux
from airlockd.layout import Place, PlaceError, arrange
from airlockd.user import User, look_up, ordinary
from airlockd.watches import Share

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

SANDBOX = "/sandbox"
OVERLAY, USERDATA, TRASH = f"{disk.DISK}/overlay", f"{disk.DISK}/userdata", f"{disk.DISK}/trash"
CACHE = f"{disk.DISK}/cache"
FILES = f"{disk.DISK}/files"
EMPTY = "/empty"
_ROOT_KEY = f"{OVERLAY}/root-key"
# cache=mmap is what shared mappings need. With directio nothing else uses the cache: the kernel does not look whether
# the host has changed a file as long as any process of the guest has it open.
_9P = "trans=virtio,version=9p2000.L,msize=1048576,cache=mmap,directio,access=client"
# As one filesystem has it: one st_dev for all that is there, one number for a file wherever that is asked for, and
# directories of the image that can be renamed. Source: Linux Documentation/filesystems/overlayfs.rst.
_LIKE_ONE = "xino=on,redirect_dir=on"


class FilePlace(NamedTuple):
    """Where a single file of the host is: `name` in the directory of this descriptor.

    `bound`: that is a place of airlockd's own, and the file is mounted at its target from there.
    """

    number: int
    directory: int
    name: str
    bound: bool
    read_only: bool
    owner: tuple[int, int]
    target: str


class Root:
    """The mounted root: a mount namespace to enter, one for hardened processes, and what is undone at shutdown."""

    def __init__(self) -> None:
        self.namespace = self.hardened = -1
        self.home = "/"
        self.files: list[FilePlace] = []
        self.shares: dict[int, Share] = {}
        """By device."""
        self.warnings: list[str] = []
        self._mounts: list[str] = []
        self._masks: set[int] = set()
        """The devices of directories that hide others."""
        self._directory = -1

    def build(
        self,
        device: str,
        size: int,
        *,
        new: bool,
        root_key: str,
        hostname: str,
        machine_id: str,
        places: Sequence[Mapping[str, Any]],
        user: str,
        owner: int,
    ) -> None:
        """Assemble everything; `device` is the project's disk, of `size` bytes. `user` is whose home `~` is.

        `owner` is the number of the host's user, which an ordinary `user` with a name gets. Raises DiskError, OSError
        and ValueError.
        """
        device = disk.mount(device, size, new)
        self._mounts.append(disk.DISK)
        disk.make_room_for(lambda: _mount_overlay(root_key))
        self._mounts.append(SANDBOX)
        # Before anything of the host can be at /etc.
        identity.write(SANDBOX, hostname, machine_id)
        self._directory = os.open(SANDBOX, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        for name in ("proc", "sys", "dev"):
            self._mount(f"/{name}", f"/{name}", "", linux.MS_BIND | linux.MS_REC)
        self._mount("tmpfs", "/run", "tmpfs", linux.MS_NOSUID | linux.MS_NODEV, "mode=0755")
        os.mkdir(f"{SANDBOX}/run/lock")
        # Not by mkdir, which leaves out what the umask has.
        os.chmod(f"{SANDBOX}/run/lock", 0o1777)
        self._mount(USERDATA, "/airlock/disk", "", linux.MS_BIND)
        account = self._account(user)
        self.home = account.home
        arranged = arrange(places, account.home, self._real)
        if not user.isdecimal() and ordinary(account.uid) and owner not in (0, account.uid):
            account = self._adopt(account, owner, arranged)
        if account.uid:
            # Of everybody, and what lies there of whoever made it: root's daemons have directories there, too.
            os.chmod(USERDATA, 0o1777)
        if owner != account.uid:
            identity.trust(SANDBOX, [place.target for place in arranged if place.kind == "share"])
        for place in arranged:
            try:
                self._put(place, account)
            except OSError as error:
                # Most often something else is there, such as a file in the way of a directory.
                raise PlaceError(place, f"{place.kind} at {place.target}: {error.strerror}") from error
        for place in arranged:
            if place.kind == "mask" and not self._has_file(place.target):
                # Only now: a share may lie below a mask and needs a directory to be mounted on.
                self._remount(place.target, linux.MS_RDONLY | linux.MS_NOSUID | linux.MS_NODEV)
            if place.kind == "file" and place.read_only:
                self._remount(place.target, linux.MS_RDONLY | linux.MS_NOSUID | linux.MS_NODEV)
        os.close(self._directory)
        self.namespace, self.hardened = _own_namespaces(SANDBOX, device)

    def take_down(self) -> None:
        """Leave a clean filesystem on the disk. Call when no process of the sandbox is left; the machine ends then."""
        if self.namespace >= 0:
            os.close(self.namespace)
            os.close(self.hardened)
            self.namespace = self.hardened = -1
        # Shares too: what was written through mappings is the host's by now.
        os.sync()
        try:
            # As clean as unmounted, for much less: nothing of what is mounted has to be taken apart.
            linux.mount("", disk.DISK, "", linux.MS_REMOUNT | linux.MS_RDONLY)
            return
        except OSError:
            # Something still holds it, or it was not mounted yet.
            pass
        while self._mounts:
            target = self._mounts.pop()
            if target not in (SANDBOX, disk.DISK):
                linux.unmount(target, linux.MNT_DETACH)
                continue
            try:
                linux.unmount(target)
            except OSError:
                # Something still holds it: whatever it is, what was written must be on the disk.
                os.sync()
                linux.unmount(target, linux.MNT_DETACH)
        os.sync()

    def _real(self, target: str) -> str:
        """`target` without the symlinks on its way that are there before anything is mounted."""
        there, missing = target, ""
        while True:
            try:
                fd = linux.open_in_root(self._directory, there or "/", os.O_PATH)
            except OSError:
                there, _, name = there.rpartition("/")
                missing = f"/{name}{missing}"
                continue
            try:
                return os.readlink(f"/proc/self/fd/{fd}").removeprefix(SANDBOX) + missing
            finally:
                os.close(fd)

    def _account(self, name: str) -> User:
        def opener(path: str, _flags: int) -> int:
            return linux.open_in_root(self._directory, path, os.O_RDONLY | os.O_NONBLOCK)

        try:
            return look_up(name, opener=opener)
        except LookupError:
            # Each command says so by itself; no place depends on such a user's home.
            return User(name, 0, 0, "/", "/bin/sh")

    def _adopt(self, account: User, owner: int, places: Sequence[Place]) -> User:
        from airlockd.owner import NumberTakenError, adopt

        caches = [f"{CACHE}/{place.directory}" for place in places if place.kind == "cache"]
        try:
            return adopt(self._directory, account, owner, filter(os.path.isdir, caches))
        except NumberTakenError:
            why = "another user of the sandbox has it"
        except OSError as error:
            why = f"{error.filename}: {error.strerror}"
        self.warnings.append(f"{account.name} cannot have the number {owner} of the project's files: {why}")
        return account

    def _put(self, place: Place, account: User) -> None:
        if place.kind == "share":
            kind, options = ("virtiofs", "") if place.virtiofs else ("9p", _9P)
            self._mount(place.tag, place.target, kind, linux.MS_RDONLY if place.read_only else 0, options)
            fd = linux.open_in_root(self._directory, place.target, os.O_PATH)
            self.shares[os.fstat(fd).st_dev] = Share(place.tag, fd)
        elif place.kind == "cache":
            directory = f"{CACHE}/{place.directory}"
            if disk.directory(directory):
                os.chown(directory, account.uid, account.gid)
            self._mount(directory, place.target, "", linux.MS_BIND)
        elif place.kind == "bind":
            self._bind(place)
        elif place.kind == "file":
            self._put_file(place, account)
        elif self._is_file(place.target):
            with open(EMPTY, "ab"):
                pass
            self._mount(EMPTY, place.target, "", linux.MS_BIND, file=True)
        else:
            self._mount("tmpfs", place.target, "tmpfs", linux.MS_NOSUID | linux.MS_NODEV, "mode=0755")
            self._masks.add(self._device_at(place.target))

    def _bind(self, place: Place) -> None:
        """A directory of the user's part of the disk; a new one is like the one that it is put over."""
        target = self._directory_at(place.target)
        try:
            there = os.fstat(target)
        finally:
            os.close(target)
        userdata = os.open(USERDATA, os.O_PATH | os.O_DIRECTORY)
        try:
            try:
                os.mkdir(place.directory, dir_fd=userdata)
            except FileExistsError:
                pass
            else:
                os.chown(place.directory, there.st_uid, there.st_gid, dir_fd=userdata)
                os.chmod(place.directory, stat.S_IMODE(there.st_mode), dir_fd=userdata)
            # The sandbox can write there, so it may be a link to somewhere by now.
            flags = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW
            try:
                source = os.open(place.directory, flags, dir_fd=userdata)
            except NotADirectoryError:
                raise PlaceError(place, f"/airlock/disk/{place.directory} is not a directory") from None
        finally:
            os.close(userdata)
        try:
            self._mount(f"/proc/self/fd/{source}", place.target, "", linux.MS_BIND)
        finally:
            os.close(source)

    def _put_file(self, place: Place, account: User) -> None:
        """Make the place for a file that the host sends later.

        Where it lies on the sandbox's own filesystems it is an ordinary file, which programs can replace by rename.
        Elsewhere (in a share, where its content does not belong on the host; or read-only) it is mounted, and
        what is renamed to it takes renames.py.
        """
        parent, _, name = place.target.rpartition("/")
        directory = self._directory_at(parent or "/")
        own = {os.stat(path).st_dev for path in (SANDBOX, disk.DISK, f"{SANDBOX}/run")} | self._masks
        bound = place.read_only or os.fstat(directory).st_dev not in own
        if bound:
            if not self._is_file(place.target):
                self._make_file(name, directory)
            os.close(directory)
            disk.directory(FILES, 0o700)
            directory, name = os.open(FILES, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC), str(place.file)
            path = f"{FILES}/{name}"
            if os.path.lexists(path):
                os.unlink(path)
            os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
            self._mount(path, place.target, "", linux.MS_BIND, file=True)
        owner = (account.uid, account.gid)
        if os.fstat(directory).st_dev in self._masks:
            # Whoever replaces the file makes the new one beside it. There is nothing else in there.
            os.chown(f"/proc/self/fd/{directory}", *owner)
        self.files.append(FilePlace(place.file, directory, name, bound, place.read_only, owner, place.target))

    def _device_at(self, target: str) -> int:
        fd = linux.open_in_root(self._directory, target, os.O_PATH)
        try:
            return os.fstat(fd).st_dev
        finally:
            os.close(fd)

    def _has_file(self, mask: str) -> bool:
        """Whether a file in there can be replaced by programs, which takes that they can write beside it."""
        device = self._device_at(mask)
        return any(not each.bound and os.fstat(each.directory).st_dev == device for each in self.files)

    def _is_file(self, target: str) -> bool:
        try:
            fd = linux.open_in_root(self._directory, target, os.O_PATH)
        except OSError:
            return False
        try:
            return not stat.S_ISDIR(os.fstat(fd).st_mode)
        finally:
            os.close(fd)

    def _remount(self, target: str, flags: int) -> None:
        fd = linux.open_in_root(self._directory, target, os.O_PATH)
        try:
            # Of this mount alone: the file that hides files is one for all of them.
            linux.mount("", f"/proc/self/fd/{fd}", "", linux.MS_REMOUNT | linux.MS_BIND | flags)
        finally:
            os.close(fd)

    def _mount(
        self, source: str, target: str, kind: str, flags: int, options: str = "", *, file: bool = False
    ) -> None:
        """Mount at a path of the sandbox that no symlink of the sandbox can lead elsewhere.

        A directory is made if need be; a `file` is there.
        """
        fd = linux.open_in_root(self._directory, target, os.O_PATH) if file else self._directory_at(target)
        try:
            linux.mount(source, f"/proc/self/fd/{fd}", kind, flags, options)
        except OSError as error:
            raise OSError(error.errno, error.strerror, target) from None
        finally:
            os.close(fd)
        self._mounts.append(f"{SANDBOX}{target}")

    def _make_file(self, name: str, parent: int) -> None:
        try:
            os.close(os.open(name, os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644, dir_fd=parent))
        except FileExistsError:
            if stat.S_ISDIR(os.stat(name, dir_fd=parent, follow_symlinks=False).st_mode):
                raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR)) from None
            raise OSError(errno.ELOOP, "it is a symlink that leads nowhere") from None
        self._give_away(name, parent)

    def _make_directory(self, name: str, parent: int) -> None:
        os.mkdir(name, 0o755, dir_fd=parent)
        self._give_away(name, parent)

    def _give_away(self, name: str, parent: int) -> None:
        owner, made = os.fstat(parent), os.stat(name, dir_fd=parent, follow_symlinks=False)
        if (owner.st_uid, owner.st_gid) != (made.st_uid, made.st_gid):
            # In a user's home, or in the host user's project, it is not root's.
            os.chown(name, owner.st_uid, owner.st_gid, dir_fd=parent, follow_symlinks=False)

    def _directory_at(self, target: str) -> int:
        flags = os.O_PATH | os.O_DIRECTORY
        current = linux.open_in_root(self._directory, "/", flags)
        path = ""
        for part in target.strip("/").split("/"):
            path = f"{path}/{part}"
            try:
                following = linux.open_in_root(self._directory, path, flags)
            except FileNotFoundError:
                self._make_directory(part, current)
                following = linux.open_in_root(self._directory, path, flags)
            os.close(current)
            current = following
        return current


def _mount_overlay(root_key: str) -> None:
    """Mount image and disk at SANDBOX. Raises OSError, with ENOSPC where the disk is full."""
    reset_overlay(root_key)
    disk.directory(USERDATA)
    layers = f"lowerdir={boot.IMAGE},upperdir={OVERLAY}/upper,workdir={OVERLAY}/work"
    linux.mount("overlay", SANDBOX, "overlay", 0, f"{layers},{_LIKE_ONE}")
    if not os.access(SANDBOX, os.W_OK):
        # It is read-only without a word where there is no room for a directory of overlayfs's own.
        linux.unmount(SANDBOX)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), SANDBOX)


def reset_overlay(root_key: str) -> None:
    """Make sure that upper and work directory exist and belong to this root filesystem; drop those of another.

    The key is written last: where it is missing, the directories are not trusted.
    """
    disk.directory(TRASH)
    trusted = _root_key() == root_key.encode()
    if not trusted and os.path.lexists(OVERLAY):
        disk.discard(OVERLAY, TRASH)
    disk.directory(f"{OVERLAY}/upper")
    disk.directory(f"{OVERLAY}/work")
    if trusted:
        return
    with open(_ROOT_KEY, "w", encoding="utf-8") as file:
        file.write(root_key)
        file.flush()
        os.fsync(file.fileno())


def _root_key() -> bytes:
    try:
        return linux.read_file(_ROOT_KEY, flags=os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        # It is missing, or something else that airlockd did not make.
        return b""


def _own_namespaces(directory: str, device: str) -> tuple[int, int]:
    """Mount namespaces whose root is the mount at `directory`, as descriptors: for all, and for hardened ones.

    What is mounted in the first appears in the second, and nothing the other way round.

    This process goes there and comes back: it has one thread, and a fork costs more under emulation than all of this.
    """
    here, numbers = os.open("/proc/self/ns/mnt", os.O_RDONLY | os.O_CLOEXEC), os.open("/proc", os.O_PATH)
    try:
        linux.unshare(linux.CLONE_NEWNS)
        try:
            linux.mount("", "/", "", linux.MS_REC | linux.MS_PRIVATE)
            os.chdir(directory)
            linux.mount(".", "/", "", linux.MS_MOVE)
            os.chroot(".")
            # As systemd leaves it: containers expect a root whose mounts propagate.
            linux.mount("", "/", "", linux.MS_REC | linux.MS_SHARED)
            namespace = os.open("self/ns/mnt", os.O_RDONLY | os.O_CLOEXEC, dir_fd=numbers)
            linux.unshare(linux.CLONE_NEWNS)
            linux.mount("", "/", "", linux.MS_REC | linux.MS_SLAVE)
            harden.close_kernel(device)
            return namespace, os.open("self/ns/mnt", os.O_RDONLY | os.O_CLOEXEC, dir_fd=numbers)
        finally:
            # Its root and working directory are then that namespace's root (setns(2)).
            linux.setns(here, linux.CLONE_NEWNS)
    finally:
        os.close(here)
        os.close(numbers)
