"""Step `toolbox`: the tools that make images and the Python that goes into them, extracted from Debian's packages.

They run through their own loader, so nothing of the host's libraries matters. Called by the steps that use them.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from airlock_builder import tools
from airlock_builder.rootfs.fetch import read_packages

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from airlock_builder.step import Work

LOADERS = {"x86_64": "ld-linux-x86-64.so.2", "aarch64": "ld-linux-aarch64.so.1"}

_UNUSED = ("usr/share", "usr/include", "etc/init.d", "etc/cron.d", "usr/lib/systemd", "usr/games", "var")


def build(work: Work) -> None:
    """Extract all packages of the input; owners do not matter. What no tool reads is left out."""
    repository = work.inputs["packages"].path
    packages, _ = read_packages(repository)
    dpkg_deb = tools.find_program("dpkg-deb")
    for number, package in enumerate(packages):
        work.progress(number / len(packages), str(package["name"]))
        tools.run([dpkg_deb, "--extract", repository / str(package["file"]), work.output], log=work.log)
    for name in _UNUSED:
        shutil.rmtree(work.output / name, ignore_errors=True)


class Toolbox:
    """A realised toolbox, for running its programs."""

    def __init__(self, root: Path, arch: str) -> None:
        self.root = root
        self.libraries = root / "usr/lib" / f"{arch}-linux-gnu"
        self.loader = self.libraries / LOADERS[arch]

    def run(
        self,
        program: str,
        *arguments: str | Path,
        log: Callable[[str], None],
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
    ) -> None:
        """Run `program` (a path below the toolbox) with the toolbox's libraries. Raises ToolError."""
        argv = [*self._loaded(), self.root / program, *arguments]
        tools.run(argv, log=log, env=env, cwd=cwd, name=Path(program).name)

    def needed_libraries(self, program: Path) -> str:
        """What the loader says of the libraries of `program`, which is not run. Raises ToolError."""
        return tools.capture([*self._loaded(), "--list", program])

    def _loaded(self) -> list[str | Path]:
        return [self.loader, "--library-path", self.libraries]
