"""Step `kernel`: Debian's prebuilt kernel, proven to have what was asked for, with the modules that this takes.

kernel  config  release  promised.json  modules/NAME.ko  modules/order  modules/config-RELEASE.gz
"""

from __future__ import annotations

import lzma
import struct
from pathlib import Path
from typing import TYPE_CHECKING

from airlock_builder import tools
from airlock_builder.kernel.dotconfig import parse_config
from airlock_builder.kernel.modules import parse_table, read_index, without_signature
from airlock_builder.kernel.output import MODULES, write_proof
from airlock_builder.kernel.verify import OptionsLostError, lost, verify
from airlock_builder.kernel.versions import format_version
from airlock_builder.kernel.vmlinux import bootable
from airlock_builder.kernel.waivers import parse_waivers
from airlock_builder.kernel.wanted import KernelRequest, wanted_options
from airlock_builder.pack.toolbox import Toolbox
from airlock_builder.rootfs.fetch import read_packages
from airlock_store.errors import BuildError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from airlock_builder.kernel.verify import Verdict
    from airlock_builder.step import Work

CONFIG_COPY = "config-{}.gz"
"""Debian's kernels do not tell their config: airlockd reads this copy, beside the modules, for the release it names."""

_GZIP_HEADER = b"\x1f\x8b\x08\0\0\0\0\0\x02\x03"  # deflate, no date, packed as well as can be, on Unix


def build(work: Work) -> None:
    """Unpack the kernel. Raises OptionsLostError when it lacks an option, BuildError when it lacks a module."""
    request: KernelRequest = work.step.payload["request"]
    repository = work.inputs["package"].path
    packages, _ = read_packages(repository)
    if len(packages) != 1:
        raise BuildError(f"expected one kernel package, found {len(packages)}")
    tree = work.scratch / "tree"
    work.progress(None, f"unpacking {packages[0]['name']}")
    tools.run(
        [tools.find_program("dpkg-deb"), "--extract", repository / str(packages[0]["file"]), tree],
        log=work.log,
    )
    kernels = sorted((tree / "boot").glob("vmlinu[xz]-*"))
    if len(kernels) != 1:
        raise BuildError(f"the package holds {len(kernels)} kernels")
    release = kernels[0].name.partition("-")[2]
    if not release.startswith(f"{format_version(request.version)}."):
        raise BuildError(f"the package holds the kernel {release}, not {format_version(request.version)}")
    config = (tree / "boot" / f"config-{release}").read_text(encoding="utf-8")
    verdicts = check(request, config, release)
    (work.output / "kernel").write_bytes(bootable(kernels[0].read_bytes()))
    write_proof(work.output, config, release, verdicts)
    _modules(work, tree, release, verdicts)
    (work.output / MODULES / CONFIG_COPY.format(release)).write_bytes(compress(config.encode()))


def compress(data: bytes) -> bytes:
    """`data` as a gzip file without name or date.

    Python's own `gzip` tells the host's system in some versions, and "unknown" in others. What could still differ is
    the deflate of the zlib that this Python runs with: zlib's own has been the same for long, while its replacements
    (zlib-ng) give other bytes of the same meaning.
    """
    import zlib

    deflate = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    body = deflate.compress(data) + deflate.flush()
    return _GZIP_HEADER + body + struct.pack("<2I", zlib.crc32(data), len(data) & 0xFFFFFFFF)


def check(request: KernelRequest, config: str, release: str) -> list[Verdict]:
    """Verdicts on all options that `request` asks for. Raises OptionsLostError when the config lacks one."""
    verdicts = verify(
        wanted_options(request),
        parse_config(config, Path(f"config-{release}")),
        version=request.version,
        arch=request.arch,
        waivers=parse_waivers(request.waivers, Path("waivers.toml")),
        modules=True,
    )
    if missing := lost(verdicts):
        plural = "options" if len(missing) > 1 else "an option"
        raise OptionsLostError(
            f"Debian's kernel {release} lacks {plural}:",
            verdicts,
            hint='Have airlock compile the kernel: [kernel] provider = "compiled"',
        )
    return verdicts


def _modules(work: Work, tree: Path, release: str, verdicts: Sequence[Verdict]) -> None:
    request: KernelRequest = work.step.payload["request"]
    toolbox = Toolbox(work.inputs["toolbox"].path, work.step.inputs["toolbox"].parameters["arch"])
    # Debian's tree has its modules below /usr; depmod looks for them where links would lead it.
    (tree / "lib").mkdir(exist_ok=True)
    directory = tree / "lib" / "modules" / release
    if not directory.is_dir():
        directory.parent.mkdir(exist_ok=True)
        (tree / "usr/lib/modules" / release).rename(directory)
    work.progress(None, "finding what modules need")
    toolbox.run("usr/sbin/depmod", "-b", tree, release, log=work.log)
    index = read_index(directory)
    table = parse_table(request.modules, Path("modules.toml"))
    modular = [verdict.wanted.option for verdict in verdicts if verdict.found == "m"]
    order = index.order({option: table.get(option, (option.lower(),)) for option in modular})
    modules = work.output / MODULES
    modules.mkdir()
    for name in order:
        source = directory / index.files[name]
        with _open(source) as packed:
            (modules / f"{name}.ko").write_bytes(without_signature(packed.read()))
    (modules / "order").write_text("".join(f"{name}\n" for name in order), encoding="utf-8")


def _open(path: Path) -> lzma.LZMAFile:
    if path.suffix != ".xz":
        raise BuildError(f"{path.name}: modules compressed like this are not known")
    return lzma.open(path, "rb")
