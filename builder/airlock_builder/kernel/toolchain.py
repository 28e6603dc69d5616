"""The programs that configure and compile a kernel: those of the host, a cross compiler for another architecture.

`build` puts the compiler's version into keys; the steps `kernel-config` and `compile` run the rest.
"""

from __future__ import annotations

import os
import platform
import subprocess
from dataclasses import dataclass
from typing import TYPE_CHECKING

from airlock_builder import tools
from airlock_store.errors import BuildError, MissingToolError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

_PROGRAMS = ("make", "gcc", "flex", "bison", "bc", "xz")


@dataclass(frozen=True, slots=True)
class Target:
    """An architecture as the kernel's build names it. `image` is what its boot loaders take, below the tree."""

    arch: str
    srcarch: str
    goal: str
    image: str


TARGETS = {
    "x86_64": Target("x86_64", "x86", "bzImage", "arch/x86/boot/bzImage"),
    "aarch64": Target("arm64", "arm64", "Image", "arch/arm64/boot/Image"),
}


def cross_prefix(arch: str) -> str:
    """What the names of the compiler's programs begin with: nothing for this machine's own architecture."""
    return "" if arch == platform.machine() else f"{arch}-linux-gnu-"


def compiler_of(arch: str) -> str:
    """gcc and ld for `arch` in a line, with their versions; empty where they are not installed."""
    lines = []
    for name in ("gcc", "ld"):
        try:
            done = subprocess.run(
                [f"{cross_prefix(arch)}{name}", "--version"],
                env=tools.environment(),
                stdin=subprocess.DEVNULL,
                capture_output=True,
                encoding="utf-8",
                check=True,
            )
        except (OSError, subprocess.CalledProcessError):
            return ""
        lines.append(done.stdout.partition("\n")[0])
    return ", ".join(lines)


def find_all(arch: str) -> None:
    """Raises MissingToolError for the first program that is needed and not installed, and for a missing header."""
    for name in (*_PROGRAMS, f"{cross_prefix(arch)}gcc"):
        tools.find_program(name)
    # objtool, which the kernel's build makes for x86, reads ELF files with libelf.
    for header, package in (("stdio.h", "libc6-dev"), ("gelf.h", "libelf-dev")):
        if not _compiles(f"#include <{header}>\n"):
            raise MissingToolError(
                f"the header {header} is not installed", hint=f"Install the package {package!r}."
            )


def make(
    tree: Path, arch: str, goals: Sequence[str], log: Callable[[str], None], *, epoch: int = 0, **extra: str
) -> None:
    """Run the kernel's own make in `tree`. Raises ToolError.

    `epoch`, in seconds, is the date that the kernel will tell; user, host and directory are the same everywhere, so
    that the same source, config and compiler give the same bytes. `extra` are further variables of make.
    """
    env = tools.environment(
        KBUILD_BUILD_TIMESTAMP=f"@{epoch}",
        KBUILD_BUILD_USER="airlock",
        KBUILD_BUILD_HOST="airlock",
        KBUILD_BUILD_VERSION="1",
        SOURCE_DATE_EPOCH=str(epoch),
        KCONFIG_NOTIMESTAMP="1",
        TZ="UTC",
    )
    variables = {
        "ARCH": TARGETS[arch].arch,
        "CROSS_COMPILE": cross_prefix(arch),
        "KCFLAGS": f"-ffile-prefix-map={tree}=.",
        "KAFLAGS": f"-ffile-prefix-map={tree}=.",
        # What the host may have or not, and Kconfig would write into the config.
        **dict.fromkeys(("RUSTC", "BINDGEN", "PAHOLE"), "false"),
        **extra,
    }
    words = [f"{name}={value}" for name, value in variables.items()]
    argv: list[str | Path] = [tools.find_program("make"), "-C", tree, *words, *goals]
    tools.run(argv, log=log, env=env, name="the kernel's make")


def jobs() -> int:
    """As many compilers at once as there are processors for us."""
    return len(os.sched_getaffinity(0))


def _compiles(text: str) -> bool:
    try:
        done = subprocess.run(
            ["gcc", "-fsyntax-only", "-x", "c", "-"],
            input=text, env=tools.environment(), capture_output=True, encoding="utf-8", check=False,
        )  # fmt: skip
    except OSError as error:
        raise BuildError(f"gcc cannot be run: {error}") from error
    return done.returncode == 0
