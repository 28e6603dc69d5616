"""The seccomp program, run by a small interpreter of classic BPF: every call against what it must answer."""

from __future__ import annotations

import errno
import struct

import pytest

from airlockd.harden import NAMESPACES, seccomp_program

ALLOW, EPERM, ENOSYS = 0x7FFF0000, 0x00050000 | errno.EPERM, 0x00050000 | errno.ENOSYS
ARCHITECTURES = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
I386 = 0x40000003


def answer(program: bytes, architecture: int, number: int, *arguments: int) -> int:
    """What the kernel would do: struct seccomp_data is nr, arch, instruction pointer, six arguments."""
    padded = (*arguments, *(0,) * (6 - len(arguments)))
    data = struct.pack("=IIQ6Q", number, architecture, 0, *padded)
    accumulator, position = 0, 0
    while True:
        code, true, false, value = struct.unpack_from("=HBBI", program, position * 8)
        position += 1
        if code == 0x20:
            (accumulator,) = struct.unpack_from("=I", data, value)
        elif code == 0x06:
            return value
        else:
            taken = {0x15: accumulator == value, 0x35: accumulator >= value, 0x45: bool(accumulator & value)}[
                code
            ]
            position += true if taken else false


@pytest.mark.parametrize(
    ("machine", "number", "arguments", "expected"),
    [
        ("x86_64", 0, (), ALLOW),  # read
        ("x86_64", 59, (), ALLOW),  # execve
        ("x86_64", 165, (), EPERM),  # mount
        ("x86_64", 166, (), EPERM),  # umount2
        ("x86_64", 155, (), EPERM),  # pivot_root
        ("x86_64", 308, (), EPERM),  # setns
        ("x86_64", 175, (), EPERM),  # init_module
        ("x86_64", 313, (), EPERM),  # finit_module
        ("x86_64", 321, (), EPERM),  # bpf
        ("x86_64", 428, (), EPERM),  # open_tree
        ("x86_64", 430, (), EPERM),  # fsopen
        ("x86_64", 442, (), EPERM),  # mount_setattr
        ("x86_64", 304, (), EPERM),  # open_by_handle_at
        ("x86_64", 435, (), ENOSYS),  # clone3
        ("x86_64", 56, (17,), ALLOW),  # fork, by clone
        ("x86_64", 56, (0x3D0F00,), ALLOW),  # a thread
        ("x86_64", 56, (0x10000000 | 17,), EPERM),  # clone into a user namespace
        ("x86_64", 56, (0x20000,), EPERM),  # … a mount namespace
        ("x86_64", 272, (0x400,), ALLOW),  # unshare(CLONE_FILES)
        ("x86_64", 272, (0x40000000,), EPERM),  # unshare(CLONE_NEWNET)
        ("x86_64", 272, (0x80,), EPERM),  # unshare(CLONE_NEWTIME)
        ("x86_64", 0x40000000 | 165, (), ENOSYS),  # mount of the x32 ABI
        ("x86_64", 0xFFFFFFFF, (), ENOSYS),
        ("aarch64", 63, (), ALLOW),  # read
        ("aarch64", 40, (), EPERM),  # mount
        ("aarch64", 268, (), EPERM),  # setns
        ("aarch64", 265, (), EPERM),  # open_by_handle_at
        ("aarch64", 97, (0x20000,), EPERM),  # unshare
        ("aarch64", 220, (17,), ALLOW),  # clone
        ("aarch64", 435, (), ENOSYS),  # clone3
    ],
)
def test_calls(machine: str, number: int, arguments: tuple[int, ...], expected: int) -> None:
    assert answer(seccomp_program(machine), ARCHITECTURES[machine], number, *arguments) == expected


@pytest.mark.parametrize("bit", [bit for bit in range(32) if NAMESPACES & 1 << bit])
def test_every_namespace_flag_is_refused_in_any_company(bit: int) -> None:
    program = seccomp_program("x86_64")
    for number in (56, 272):
        assert answer(program, ARCHITECTURES["x86_64"], number, 0xF00 | 1 << bit) == EPERM


def test_another_abi_is_no_way_round() -> None:
    for number in (21, 165, 120, 0):
        assert answer(seccomp_program("x86_64"), I386, number) == ENOSYS


def test_an_unknown_machine_is_an_error() -> None:
    with pytest.raises(KeyError):
        seccomp_program("riscv64")
