"""Step `compile`: a kernel of airlock's own, from Debian's source and a config whose every option is proven.

kernel  bzImage  System.map  config  release  promised.json  modules/order      (Image instead of bzImage on arm64)
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from airlock_builder import tools
from airlock_builder.kernel import toolchain
from airlock_builder.kernel.output import CONFIG, KERNEL, MODULES, PROMISED, RELEASE
from airlock_builder.kernel.source import unpack
from airlock_store.errors import BuildError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from airlock_builder.step import Work

SYSTEM_MAP = "System.map"

# How kbuild names what it makes: two blanks, a word, the file.
_MADE = re.compile(r"  (?:CC|AS|AR|LD) +(\S+)")
_PLANNED = re.compile(r"echo '  (?:CC|AS|AR|LD) +([^\s']+)")


def build(work: Work) -> None:
    """Compile with all processors. Raises ToolError, or BuildError when the compiler is not that of the config."""
    arch = work.parameters["arch"]
    toolchain.find_all(arch)
    work.progress(None, "unpacking the source")
    tree, epoch = unpack(work.inputs["source"].path, work.scratch, work.log)
    resolved = work.inputs["config"]
    config = (resolved / CONFIG).read_text(encoding="utf-8")
    compile_kernel(tree, arch, config, epoch=epoch, log=work.log, progress=work.progress)
    keep(tree, arch, work.output, work.log)
    for name in (CONFIG, RELEASE, PROMISED):
        (work.output / name).write_bytes((resolved / name).read_bytes())
    # Nothing to load: everything is built in.
    (work.output / MODULES).mkdir()
    (work.output / MODULES / "order").touch()


def compile_kernel(
    tree: Path,
    arch: str,
    config: str,
    *,
    epoch: int,
    log: Callable[[str], None],
    progress: Callable[[float | None, str], None],
) -> None:
    """Compile the kernel in `tree` with exactly this config. `epoch`, in seconds, is the date that it will tell.

    Raises ToolError, or BuildError when Kconfig would change the config now.
    """
    (tree / ".config").write_text(config, encoding="utf-8")
    progress(None, "preparing")
    toolchain.make(tree, arch, ["olddefconfig", "prepare"], log, epoch=epoch)
    if (tree / ".config").read_text(encoding="utf-8") != config:
        raise BuildError(
            "the kernel's config changes with this compiler",
            hint="Build again: it was resolved with another.",
        )
    total = _count(tree, arch)
    made: set[str] = set()

    def line(text: str) -> None:
        log(text)
        if match := _MADE.match(text):
            made.add(match[1])
            done = min(len(made), total)
            progress(done / total, f"{done} of {total}: {match[1]}")

    goal = toolchain.TARGETS[arch].goal
    toolchain.make(tree, arch, [f"-j{toolchain.jobs()}", goal], line, epoch=epoch)


def keep(tree: Path, arch: str, output: Path, log: Callable[[str], None]) -> None:
    """What is kept of a compiled tree: the kernel to boot, the image for boot loaders, the addresses of symbols.

    On x86 QEMU boots the ELF kernel by its PVH entry, which spares the guest the unpacking (docs/kernel.md).
    """
    target = toolchain.TARGETS[arch]
    image = tree / target.image
    (output / SYSTEM_MAP).write_bytes((tree / SYSTEM_MAP).read_bytes())
    (output / image.name).write_bytes(image.read_bytes())
    if arch == "x86_64":
        strip = tools.find_program(f"{toolchain.cross_prefix(arch)}strip")
        tools.run([strip, "--strip-all", "-o", output / KERNEL, tree / "vmlinux"], log=log)
    else:
        (output / KERNEL).hardlink_to(output / image.name)


def _count(tree: Path, arch: str) -> int:
    """How many files a compilation will make: what a dry run says, which ends early, but after all of them."""
    planned: set[str] = set()

    def line(text: str) -> None:
        if match := _PLANNED.search(text):
            planned.add(match[1])

    try:
        toolchain.make(tree, arch, ["--dry-run", "--keep-going", "vmlinux"], line)
    except tools.ToolError:
        # There is no vmlinux.a to link, because nothing was made.
        pass
    return max(len(planned), 1)
