"""What `harden = true` takes away from a process before it is executed. Called by process.py in the child.

The VM is the wall to the host; this is the wall inside, which keeps root in the guest from the parts of the guest's
kernel that are attacked most: namespaces, mounts, modules and BPF. Also from those of its files that ask nobody for a
capability, since to be root is enough: hardened processes see them through mounts of their own (`close_kernel`).
"""

from __future__ import annotations

import errno
import struct

from airlockd import linux

CAPABILITIES = {
    "CAP_SYS_MODULE": 16,
    "CAP_SYS_RAWIO": 17,
    # Without it no process reaches airlockd through /proc/1: that would undo everything else here.
    "CAP_SYS_PTRACE": 19,
    "CAP_SYS_ADMIN": 21,
    "CAP_SYS_BOOT": 22,
    # Whose nodes in /dev are closed, such as the disk's, would be had by others of the same numbers.
    "CAP_MKNOD": 27,
    "CAP_PERFMON": 38,
    "CAP_BPF": 39,
}
"""Dropped from the bounding set (numbers: linux/capability.h)."""

NAMESPACES = 0x7E020000
"""CLONE_NEWNS, NEWCGROUP, NEWUTS, NEWIPC, NEWUSER, NEWPID, NEWNET (linux/sched.h)."""
CLONE_NEWTIME = 0x80

_READ_ONLY = ("bus", "fs", "irq", "sys", "sysrq-trigger")
"""Of /proc, as container runtimes have it. Programs that `sys` names (core_pattern, modprobe) the kernel runs with all
capabilities; by the registers of PCI devices in `bus`, a device writes to any memory."""
_SETTINGS = ("net", "vm", "fs/inotify")
"""Of /proc/sys, what stays writable: servers ask for it, and nothing in there leads to the kernel."""

_X86_64 = {
    "mount": 165, "umount2": 166, "pivot_root": 155, "setns": 308, "init_module": 175, "delete_module": 176,
    "finit_module": 313, "kexec_load": 246, "kexec_file_load": 320, "bpf": 321, "open_tree": 428,
    "move_mount": 429, "fsopen": 430, "fsconfig": 431, "fsmount": 432, "fspick": 433, "mount_setattr": 442,
    "open_tree_attr": 467, "open_by_handle_at": 304, "perf_event_open": 298, "clone": 56, "unshare": 272,
    "clone3": 435,
}  # fmt: skip
_AARCH64 = {
    "mount": 40, "umount2": 39, "pivot_root": 41, "setns": 268, "init_module": 105, "delete_module": 106,
    "finit_module": 273, "kexec_load": 104, "kexec_file_load": 294, "bpf": 280, "open_tree": 428,
    "move_mount": 429, "fsopen": 430, "fsconfig": 431, "fsmount": 432, "fspick": 433, "mount_setattr": 442,
    "open_tree_attr": 467, "open_by_handle_at": 265, "perf_event_open": 241, "clone": 220, "unshare": 97,
    "clone3": 435,
}  # fmt: skip
_ARCHITECTURES = {"x86_64": (0xC000003E, _X86_64), "aarch64": (0xC00000B7, _AARCH64)}

_LOAD, _EQUAL, _AT_LEAST, _ANY_BIT, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
_ALLOW, _ERRNO = 0x7FFF0000, 0x00050000
_NUMBER, _ARCHITECTURE, _ARGUMENT_0 = 0, 4, 16
_X32 = 0x40000000


def seccomp_program(machine: str) -> bytes:
    """The filter as classic BPF, for `machine` as uname names it. Raises KeyError for one that it does not know.

    Refused with EPERM: creating or entering namespaces, mounting by the old and the new calls, modules, kexec, bpf,
    and opening files by their numbers, which leads out of all that is mounted: root of the disk is above the sandbox's.
    clone3 gets ENOSYS, because its flags lie in memory that a filter cannot read; C libraries then use clone.
    Calls of another ABI (32-bit, x32) get ENOSYS, so that they are no way around.
    """
    architecture, numbers = _ARCHITECTURES[machine]
    flagged = {numbers["clone"]: NAMESPACES, numbers["unshare"]: NAMESPACES | CLONE_NEWTIME}
    refused = sorted(set(numbers.values()) - set(flagged) - {numbers["clone3"]})

    allow, eperm, enosys = "allow", "eperm", "enosys"
    code: list[tuple[int, int, str | int, str | int]] = [
        (_LOAD, _ARCHITECTURE, 0, 0),
        (_EQUAL, architecture, 0, enosys),
        (_LOAD, _NUMBER, 0, 0),
    ]
    if machine == "x86_64":
        code.append((_AT_LEAST, _X32, enosys, 0))
    code.append((_EQUAL, numbers["clone3"], enosys, 0))
    code += [(_EQUAL, number, eperm, 0) for number in refused]
    for number, mask in flagged.items():
        code += [(_EQUAL, number, 0, 2), (_LOAD, _ARGUMENT_0, 0, 0), (_ANY_BIT, mask, eperm, allow)]
    labels = {allow: len(code), eperm: len(code) + 1, enosys: len(code) + 2}
    code += [
        (_RETURN, _ALLOW, 0, 0),
        (_RETURN, _ERRNO | errno.EPERM, 0, 0),
        (_RETURN, _ERRNO | errno.ENOSYS, 0, 0),
    ]

    def offset(position: int, target: str | int) -> int:
        return labels[target] - position - 1 if isinstance(target, str) else target

    return b"".join(
        struct.pack("=HBBI", operation, offset(position, true), offset(position, false), value)
        for position, (operation, value, true, false) in enumerate(code)
    )


def apply(program: bytes) -> None:
    """Harden this process, for good and for all its children. Raises OSError where the kernel refuses."""
    for capability in CAPABILITIES.values():
        linux.prctl(linux.PR_CAPBSET_DROP, capability)
    linux.prctl(linux.PR_SET_NO_NEW_PRIVS, 1)
    linux.seccomp(program)


def close_kernel(device: str) -> None:
    """In a mount namespace for hardened processes alone: what the kernel acts upon cannot be written, nor can `device`,
    which has the disk, be opened. Raises OSError.

    They have no capability left to undo that. /sys is one mount; control groups are another, which stays writable.
    """
    hidden = linux.MS_NOSUID | linux.MS_NODEV | linux.MS_NOEXEC
    remount = linux.MS_REMOUNT | linux.MS_BIND | hidden
    linux.mount("", "/sys", "", remount | linux.MS_RDONLY)
    closed = [(f"/proc/{name}", linux.MS_RDONLY) for name in _READ_ONLY]
    for path, flag in closed + [(f"/proc/sys/{name}", 0) for name in _SETTINGS]:
        try:
            linux.mount(path, path, "", linux.MS_BIND)
        except FileNotFoundError:
            # A kernel without it.
            continue
        linux.mount("", path, "", remount | flag)
    linux.mount(device, device, "", linux.MS_BIND)
    # By MS_NODEV it is no device there.
    linux.mount("", device, "", remount | linux.MS_RDONLY)
