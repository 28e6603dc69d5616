"""Step `fetch`, the only one that uses the network: Debian packages become a small apt repository in the store.

packages.json  dists/SUITE/Release  dists/SUITE/main/binary-ARCH/Packages  pool/*.deb
"""

from __future__ import annotations

import difflib
import json
import shutil
from typing import TYPE_CHECKING

from airlock_builder.plan import DEBIAN_ARCHITECTURES
from airlock_builder.rootfs.apt import Apt, parse_stanza
from airlock_builder.rootfs.mirrors import UNRELEASED, find_mirrors
from airlock_store.contents import sha256_of
from airlock_store.errors import BuildError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence, Set
    from pathlib import Path

    from airlock_builder.step import Work
    from airlock_store.errors import Location

PACKAGES = "packages.json"


def build(work: Work) -> None:
    """Fetch what the parameters ask for. Raises ToolError when the mirror cannot be used, BuildError, placed, for a
    package that it lacks."""
    suite, arch = work.parameters["suite"], DEBIAN_ARCHITECTURES[work.parameters["arch"]]
    mirrors = find_mirrors()
    if mirrors.security is None and suite not in UNRELEASED:
        work.log(f"No mirror with {suite}-security is known: packages come without security updates.")
    apt = Apt(work.scratch / "apt", mirrors.lines(suite, arch), arch)
    work.progress(None, "fetching the index")
    apt.update(work.log)
    packages = work.parameters["packages"]
    _check_names(packages, apt.names(), suite, work.step.payload["places"])
    what = work.parameters["what"]
    if what == "kernel":
        packages = [apt.dependency(package, "linux-image-") for package in packages]
    debs = apt.download(packages, work.log, work.progress, dependencies=what == "install")
    if not debs:
        raise BuildError("apt fetched nothing")
    work.progress(None, f"verifying {len(debs)} packages")
    write_repository(work.output, suite, arch, debs, apt.stanzas(debs))


def _check_names(
    packages: Iterable[str], known: Set[str], suite: str, places: Mapping[str, Location]
) -> None:
    """Raise BuildError for a package that the suite lacks: apt takes an unknown name as a regular expression, and what
    matches comes instead."""
    for package in packages:
        name = package.partition("=")[0]
        # Patterns of apt's own are the plan's.
        if not name.startswith("?") and name not in known:
            alike = difflib.get_close_matches(name, [each for each in known if each[:2] == name[:2]], n=3)
            raise BuildError(
                f"Debian {suite} has no package {name!r}",
                hint=f"Nearest: {', '.join(alike)}." if alike else None,
                at=places.get(package),
            )


def read_packages(repository: Path) -> tuple[list[dict[str, str | int]], int]:
    """The packages of a fetched repository (name, version, arch, sha256, size, file), and its date in seconds."""
    document = json.loads((repository / PACKAGES).read_bytes())
    return document["packages"], document["epoch"]


def write_repository(
    output: Path, suite: str, arch: str, debs: Sequence[Path], stanzas: Sequence[str]
) -> None:
    """Move .deb files into a repository, each checked against its stanza. Raises BuildError for a wrong digest.

    The repository's date is that of its newest package, so that it follows from the packages alone.
    """
    pool = output / "pool"
    pool.mkdir()
    index: list[str] = []
    packages = []
    epoch = 0
    for deb, stanza in sorted(zip(debs, stanzas, strict=True)):
        fields = parse_stanza(stanza)
        digest, size = sha256_of(deb), deb.stat().st_size
        if (digest, str(size)) != (fields.get("SHA256"), fields.get("Size")):
            raise BuildError(
                f"{deb.name} is not what the signed index promises", hint="Try again, or another mirror."
            )
        # Without the escaped colon of epochs, which one server decodes and another does not.
        version = fields["Version"].partition(":")[2] or fields["Version"]
        name = f"{fields['Package']}_{version}_{fields['Architecture']}.deb"
        shutil.move(deb, pool / name)
        epoch = max(epoch, _date_of(pool / name))
        lines = [
            f"Filename: pool/{name}" if line.startswith("Filename:") else line for line in stanza.splitlines()
        ]
        index.append("\n".join(lines) + "\n")
        packages.append(
            {
                "name": fields["Package"],
                "version": fields["Version"],
                "arch": fields["Architecture"],
                "file": f"pool/{name}",
                "sha256": digest,
                "size": size,
            }
        )
    directory = output / "dists" / suite
    listed = directory / "main" / f"binary-{arch}" / "Packages"
    listed.parent.mkdir(parents=True)
    listed.write_text("\n".join(index), encoding="utf-8")
    relative = listed.relative_to(directory)
    (directory / "Release").write_text(
        f"Origin: Debian\nLabel: Debian\nSuite: {suite}\nCodename: {suite}\nArchitectures: {arch}\nComponents: main\n"
        f"SHA256:\n {sha256_of(listed)} {listed.stat().st_size} {relative}\n",
        encoding="utf-8",
    )
    document = {"schema": 1, "suite": suite, "arch": arch, "epoch": epoch, "packages": packages}
    (output / PACKAGES).write_text(json.dumps(document, indent=1, sort_keys=True) + "\n", encoding="utf-8")


def _date_of(deb: Path) -> int:
    """When a package was built, in seconds: the time of its first member (deb(5), an ar archive)."""
    with deb.open("rb") as file:
        header = file.read(8 + 60)
    if not header.startswith(b"!<arch>\n"):
        raise BuildError(f"{deb.name} is not a Debian package")
    return int(header[8 + 16 : 8 + 28])
