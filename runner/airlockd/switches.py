"""Code that Linux patches while it runs, patched before READY, while no other CPU runs it.

QEMU before 8.1 translates code without a lock on its pages (fixed by its commit deba78709ae8). With several CPUs and no
accelerator, one of them can so keep the breakpoint that another had put there for a moment: "Oops: int3". What is
switched on here stays on, and nobody patches that code again. `boot` calls `switch_over`.
"""

from __future__ import annotations

import os
import socket
import struct
from pathlib import Path

from airlockd import linux

_CLONE_NEWNET = 0x40000000
_NETLINK_NETFILTER = 12
# linux/netfilter/nfnetlink.h, linux/netfilter/nf_tables.h
_SUBSYSTEM, _BATCH_BEGIN, _BATCH_END, _NEW_TABLE, _NEW_CHAIN = 10, 0x10, 0x11, 10 << 8, 10 << 8 | 3
_REQUEST, _CREATE, _NESTED = 1, 0x400, 0x8000
_INET, _BRIDGE = 1, 7
_HOOKS = 5
_kept: list[int] = []


def switch_over() -> None:
    """Do it where it matters: control groups, and the hooks of netfilter, if the kernel has them by now."""
    group = Path("/sys/fs/cgroup/airlock")
    group.mkdir()
    # The first group with each controller, and the first with a limit of processor time, switch parts of the kernel.
    if (group / "cpu.max").exists():
        (group / "cpu.max").write_text("100000 100000")
    if os.cpu_count() != 1 and emulated(linux.read_file("/proc/cpuinfo", 1 << 20)):
        _hook_packets()


def emulated(cpuinfo: bytes) -> bool:
    """Whether these are x86 CPUs of QEMU's TCG. Other architectures patch no breakpoint into what runs."""
    return b"QEMU TCG CPU" in cpuinfo


def _hook_packets() -> None:
    """Every place where netfilter can look at packets is code to be patched, for the first one who looks there.

    We do, in a network namespace that nobody else ever sees and that has no packets. It lives as long as we do.
    """
    here = os.open("/proc/self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        _netlink().close()
        linux.unshare(_CLONE_NEWNET)
        try:
            _kept.append(os.open("/proc/self/ns/net", os.O_RDONLY | os.O_CLOEXEC))
            with _netlink() as netlink:
                for family in (_INET, _BRIDGE):
                    netlink.send(chains(family))
        finally:
            linux.setns(here, _CLONE_NEWNET)
    except OSError:
        # A kernel without netfilter, or without network namespaces.
        pass
    finally:
        os.close(here)


def _netlink() -> socket.socket:
    return socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _NETLINK_NETFILTER)


def chains(family: int) -> bytes:
    """The batch that makes a table with an empty chain, which counts its packets, at every hook of a family."""
    table = _text(1, "airlock")
    counters = _nested(8, _attribute(1, struct.pack(">Q", 0)) + _attribute(2, struct.pack(">Q", 0)))
    made = [
        _message(
            _NEW_CHAIN,
            family,
            _text(1, "airlock")
            + _text(3, f"hook{number}")
            + _nested(4, _attribute(1, struct.pack(">I", number)) + _attribute(2, struct.pack(">i", 0)))
            + _text(7, "filter")
            + counters,
        )
        for number in range(_HOOKS)
    ]
    return b"".join(
        [_message(_BATCH_BEGIN, 0), _message(_NEW_TABLE, family, table), *made, _message(_BATCH_END, 0)]
    )


def _message(kind: int, family: int, attributes: bytes = b"") -> bytes:
    batch = kind in (_BATCH_BEGIN, _BATCH_END)
    flags = _REQUEST | (0 if batch else _CREATE)
    body = struct.pack(">BBH", family, 0, _SUBSYSTEM if batch else 0) + attributes
    return struct.pack("=IHHII", 16 + len(body), kind, flags, 0, 0) + body


def _attribute(kind: int, value: bytes) -> bytes:
    return struct.pack("=HH", 4 + len(value), kind) + value + b"\0" * (-len(value) % 4)


def _text(kind: int, value: str) -> bytes:
    return _attribute(kind, value.encode() + b"\0")


def _nested(kind: int, attributes: bytes) -> bytes:
    return _attribute(kind | _NESTED, attributes)
