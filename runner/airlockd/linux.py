"""The few Linux calls that Python's standard library lacks, through ctypes; every other module of airlockd uses it."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import struct

MS_RDONLY, MS_NOSUID, MS_NODEV, MS_NOEXEC, MS_REMOUNT = 0x1, 0x2, 0x4, 0x8, 0x20
MS_NOATIME, MS_BIND, MS_MOVE, MS_REC = 0x400, 0x1000, 0x2000, 0x4000
MS_PRIVATE, MS_SLAVE, MS_SHARED = 0x40000, 0x80000, 0x100000
MNT_DETACH = 2
CLONE_NEWNS = 0x20000
RB_POWER_OFF = 0x4321FEDC
PR_SET_PDEATHSIG, PR_SET_DUMPABLE, _PR_SET_NAME, PR_SET_SECCOMP = 1, 4, 15, 22
PR_CAPBSET_DROP, PR_SET_NO_NEW_PRIVS = 24, 38
SECCOMP_MODE_FILTER = 2
_SECCOMP_SET_MODE_FILTER, _NEW_LISTENER, _WAIT_KILLABLE = 1, 0x8, 0x20
_RLIMIT_NOFILE = 7
_CAPABILITIES_3 = 0x20080522
IN_CREATE = 0x100
_RESOLVE_NO_XDEV, _RESOLVE_NO_MAGICLINKS, _RESOLVE_NO_SYMLINKS = 0x01, 0x02, 0x04
_RESOLVE_BENEATH, _RESOLVE_IN_ROOT = 0x08, 0x10
_AT_FDCWD = -100
_AF_INET, _SOCK_DGRAM, _SIOCSIFFLAGS, _IFF_UP = 2, 2, 0x8914, 1

MACHINE = os.uname().machine
_SYSCALLS = {
    "x86_64": {"finit_module": 313, "openat2": 437, "seccomp": 317, "capset": 126},
    "aarch64": {"finit_module": 273, "openat2": 437, "seccomp": 277, "capset": 91},
}

_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long


class _OpenHow(ctypes.Structure):
    _fields_ = [("flags", ctypes.c_uint64), ("mode", ctypes.c_uint64), ("resolve", ctypes.c_uint64)]


class _Limit(ctypes.Structure):
    _fields_ = [("soft", ctypes.c_ulong), ("hard", ctypes.c_ulong)]


class _Program(ctypes.Structure):
    _fields_ = [("length", ctypes.c_ushort), ("code", ctypes.c_char_p)]


def _check(result: int, what: str) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), what)
    return result


def mount(source: str, target: str, kind: str, flags: int = 0, options: str = "") -> None:
    """mount(2). Raises OSError that names the target."""
    _check(
        _libc.mount(
            os.fsencode(source),
            os.fsencode(target),
            kind.encode(),
            ctypes.c_ulong(flags),
            os.fsencode(options),
        ),
        target,
    )


def unmount(target: str, flags: int = 0) -> None:
    """umount2(2)."""
    _check(_libc.umount2(os.fsencode(target), flags), target)


def unshare(flags: int) -> None:
    """unshare(2)."""
    _check(_libc.unshare(flags), "unshare")


def setns(fd: int, kind: int) -> None:
    """setns(2)."""
    _check(_libc.setns(fd, kind), "setns")


def prctl(option: int, argument: int, extra: object = 0) -> None:
    """prctl(2) with one or two arguments."""
    _check(_libc.prctl(option, ctypes.c_ulong(argument), extra, 0, 0), f"prctl {option}")


def limit_capabilities(mask: int) -> None:
    """capset(2): this process has these capabilities (1 << number) and no others, from those that it has."""
    low, high = mask & 0xFFFFFFFF, mask >> 32
    data = struct.pack("=6I", low, low, 0, high, high, 0)
    _check(
        _libc.syscall(_SYSCALLS[MACHINE]["capset"], struct.pack("=Ii", _CAPABILITIES_3, 0), data), "capset"
    )


def set_name(name: str) -> None:
    """The name of this process in /proc/PID/comm, at most 15 bytes."""
    _check(_libc.prctl(_PR_SET_NAME, name.encode(), 0, 0, 0), "prctl PR_SET_NAME")


def load_module(path: str) -> None:
    """finit_module(2); a module that is already there, or whose hardware is not (kvm_intel on AMD), is fine."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        _check(_libc.syscall(_SYSCALLS[MACHINE]["finit_module"], fd, b"", 0), path)
    except OSError as error:
        if error.errno not in (errno.EEXIST, errno.ENODEV, errno.EOPNOTSUPP):
            raise
    finally:
        os.close(fd)


def open_in_root(root: int, path: str, flags: int) -> int:
    """openat2(2) with every symlink, absolute ones too, resolved inside the directory `root`."""
    return _openat2(root, path, flags, _RESOLVE_IN_ROOT)


def open_beneath(directory: int, path: bytes, flags: int) -> int:
    """openat2(2) below `directory` and in its mount; fails with EXDEV where the path leads elsewhere."""
    resolve = _RESOLVE_BENEATH | _RESOLVE_NO_XDEV | _RESOLVE_NO_MAGICLINKS
    return _openat2(directory, path, flags, resolve)


def open_without_symlinks(path: str, flags: int) -> int:
    """openat2(2) that fails with ELOOP where any part of the path is a symlink."""
    return _openat2(_AT_FDCWD, path, flags, _RESOLVE_NO_SYMLINKS)


def _openat2(directory: int, path: str | bytes, flags: int, resolve: int) -> int:
    how = _OpenHow(flags | os.O_CLOEXEC, 0, resolve)
    number = _SYSCALLS[MACHINE]["openat2"]
    result = _libc.syscall(number, directory, os.fsencode(path), ctypes.byref(how), ctypes.sizeof(how))
    return _check(result, os.fsdecode(path))


def loopback_up() -> None:
    """Bring `lo` up. By hand, because importing `socket` costs a tenth of a second of boot under TCG."""
    handle = _check(_libc.socket(_AF_INET, _SOCK_DGRAM, 0), "socket")
    try:
        fcntl.ioctl(handle, _SIOCSIFFLAGS, struct.pack("16sh22x", b"lo", _IFF_UP))
    finally:
        os.close(handle)


def set_hostname(name: str) -> None:
    """sethostname(2)."""
    raw = name.encode()
    _check(_libc.sethostname(raw, len(raw)), "sethostname")


def limit_descriptors(soft: int, hard: int) -> None:
    """How many files this process and its children may open at once: setrlimit(2)."""
    _check(_libc.setrlimit(_RLIMIT_NOFILE, ctypes.byref(_Limit(soft, hard))), "setrlimit")


def allow_descriptors(count: int) -> None:
    """Let this process open `count` files at once, or as many as it may: setrlimit(2)."""
    limit = _Limit()
    _check(_libc.getrlimit(_RLIMIT_NOFILE, ctypes.byref(limit)), "getrlimit")
    for hard in (max(count, limit.hard), limit.hard):
        if not _libc.setrlimit(_RLIMIT_NOFILE, ctypes.byref(_Limit(min(count, hard), hard))):
            return


def reboot(command: int) -> None:
    """reboot(2); returns only on error."""
    _check(_libc.reboot(ctypes.c_int(command)), "reboot")


def read_file(path: str, limit: int = 1 << 16, *, directory: int | None = None, flags: int = 0) -> bytes:
    """The first `limit` bytes of a file. Raises OSError.

    By the plain calls: what `open` does on top costs milliseconds when a restored machine does it for the first time.
    """
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | flags, dir_fd=directory)
    try:
        return read_all(fd, limit)
    finally:
        os.close(fd)


def read_all(fd: int, limit: int) -> bytes:
    """At most `limit` bytes, up to the end."""
    found = b""
    while len(found) < limit and (data := os.read(fd, limit - len(found))):
        found += data
    return found


def write_file(path: str, data: bytes, flags: int = 0, *, directory: int | None = None) -> None:
    """Write to a file, made by O_CREAT in `flags`. Raises OSError."""
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC | flags, 0o644, dir_fd=directory)
    try:
        os.write(fd, data)
    finally:
        os.close(fd)


def watch_created(directory: str) -> int:
    """An inotify descriptor that becomes readable when something is created in `directory`."""
    fd = _check(_libc.inotify_init1(os.O_CLOEXEC), directory)
    _check(_libc.inotify_add_watch(fd, os.fsencode(directory), IN_CREATE), directory)
    return fd


def seccomp(program: bytes) -> None:
    """Install a classic BPF program (8 bytes an instruction) as this process's filter, for good."""
    argument = _Program(len(program) // 8, program)
    prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, ctypes.byref(argument))


def seccomp_listener(program: bytes) -> int:
    """The same for a program that asks; gives the descriptor on which the questions arrive: seccomp_unotify(2)."""
    argument = _Program(len(program) // 8, program)
    for flags in (_NEW_LISTENER | _WAIT_KILLABLE, _NEW_LISTENER):
        number = _SYSCALLS[MACHINE]["seccomp"]
        result: int = _libc.syscall(number, _SECCOMP_SET_MODE_FILTER, flags, ctypes.byref(argument))
        if result >= 0 or ctypes.get_errno() != errno.EINVAL:
            break
    return _check(result, "seccomp")
