"""The kernel's source out of Debian's package: a tree to configure or compile in. Called by these two steps.

The package (linux-source-VERSION) holds one archive, usr/src/linux-source-VERSION.tar.xz.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from airlock_builder import tools
from airlock_builder.kernel.versions import Version, parse_version
from airlock_builder.rootfs.fetch import read_packages
from airlock_store.errors import BuildError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

_DECLARED = re.compile(r"^\s*(?:menu)?config\s+([A-Za-z0-9_]+)\s*$", re.MULTILINE)
_FOR_CONFIG = ("*/Kconfig*", "*/Makefile*", "*/Kbuild*", "*/scripts/*")


def unpack(
    repository: Path, target: Path, log: Callable[[str], None], *, whole: bool = True
) -> tuple[Path, int]:
    """Unpack the fetched package into `target`: the tree, and the package's date in seconds.

    Without `whole`, only what Kconfig needs: of 85,000 files, some 5,000. Raises BuildError when it is not the source
    of a kernel.
    """
    packages, epoch = read_packages(repository)
    if len(packages) != 1:
        raise BuildError(f"expected one package with the kernel's source, found {len(packages)}")
    package = target / "package"
    deb = repository / str(packages[0]["file"])
    tools.run([tools.find_program("dpkg-deb"), "--extract", deb, package], log=log)
    archives = list((package / "usr/src").glob("linux-source-*.tar.xz"))
    if len(archives) != 1:
        raise BuildError(f"{deb.name} holds {len(archives)} archives with a kernel's source")
    tree = target / "linux"
    tree.mkdir()
    tar: list[str | Path] = [
        tools.find_program("tar"),
        "--extract",
        "--strip-components=1",
        "--no-same-owner",
    ]
    # tar takes the directory for the members that are named behind it, and for no others.
    tar += ["--file", archives[0], "--directory", tree]
    if not whole:
        tar += ["--wildcards", *_FOR_CONFIG]
    tools.run(tar, log=log)
    archives[0].unlink()
    return tree, epoch


def version_of(tree: Path) -> Version:
    """The version that the tree's Makefile tells. Raises BuildError."""
    text = (tree / "Makefile").read_text(encoding="utf-8")
    found = dict(re.findall(r"^(VERSION|PATCHLEVEL) = ([0-9]+)$", text, re.MULTILINE))
    try:
        return parse_version(f"{found['VERSION']}.{found['PATCHLEVEL']}")
    except (KeyError, ValueError) as error:
        raise BuildError("the Makefile of the kernel's source tells no version") from error


def declared_options(tree: Path) -> frozenset[str]:
    """The names of all options that any Kconfig file of the tree declares, whatever the architecture."""
    names: set[str] = set()
    for path in tree.rglob("Kconfig*"):
        if path.is_file():
            names.update(_DECLARED.findall(path.read_text(errors="replace", encoding="utf-8")))
    return frozenset(names)
