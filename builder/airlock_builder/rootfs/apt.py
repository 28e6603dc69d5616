"""A private apt: its own sources, lists and (empty) dpkg status, nothing of the host's but how to reach the mirror.

Called by fetch. It needs no rights and leaves nothing outside its directory.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING
from urllib.parse import unquote

from airlock_builder import tools
from airlock_store.errors import BuildError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from pathlib import Path

_REACH = re.compile(
    r"Acquire::(?:(?:http|https|ftp|mirror|tor\+http|tor\+https)(?:::.*)?|ForceIPv[46]|Check-Valid-Until|Check-Date"
    r"|Max-FutureTime|Queue-Mode|By-Hash|PDiffs)",
    re.IGNORECASE,
)
_UNREACHED = (
    "Check that the mirror can be reached and has this suite and these packages; "
    "AIRLOCK_DEBIAN_MIRROR names another mirror."
)
_UNKNOWN_KEYS = (
    "The keyrings lack the keys that this suite is signed with: install the newest package 'debian-archive-keyring', "
    "or name a file that has them in AIRLOCK_DEBIAN_KEYRING."
)
_STATUS = re.compile(r"(?:dlstatus|pmstatus):[^:]*:([0-9.]+):(.*)")


class Apt:
    """apt with everything of its own below `root`, which it creates. `arch` is Debian's name."""

    def __init__(self, root: Path, sources: Sequence[str], arch: str) -> None:
        self.archives = root / "var/cache/apt/archives"
        for directory in (
            "etc/apt/apt.conf.d",
            "etc/apt/preferences.d",
            "etc/apt/sources.list.d",
            "etc/apt/trusted.gpg.d",
            "var/lib/apt/lists/partial",
            "var/cache/apt/archives/partial",
            "var/lib/dpkg",
            "var/log/apt",
        ):
            (root / directory).mkdir(parents=True)
        (root / "var/lib/dpkg/status").touch()
        (root / "etc/apt/sources.list").write_text("".join(f"{line}\n" for line in sources), encoding="utf-8")
        config = root / "apt.conf"
        config.write_text("".join(_configuration(root, arch)), encoding="utf-8")
        self._root = root
        self._env = tools.environment(APT_CONFIG=str(config))

    def update(self, log: Callable[[str], None]) -> None:
        """Fetch the indexes of all sources. Raises ToolError."""
        # Without this an index that cannot be had is a warning, and the packages would come from what is left.
        self._get(["update", "--error-on=any"], log, None)

    def names(self) -> frozenset[str]:
        """All names that apt knows: those of packages, and what they provide or depend on. Raises ToolError."""
        command: list[str | Path] = [tools.find_program("apt-cache"), "--all-names", "pkgnames"]
        return frozenset(tools.capture(command, env=self._env).split())

    def download(
        self,
        packages: Iterable[str],
        log: Callable[[str], None],
        progress: Callable[[float | None, str], None],
        *,
        dependencies: bool,
    ) -> list[Path]:
        """Fetch packages, and if `dependencies` what they depend on: the .deb files. Raises ToolError."""
        names = list(packages)
        if dependencies:
            self._get(["install", "--yes", "--download-only", *names], log, progress)
            return sorted(self.archives.glob("*.deb"))
        # `apt-get download` writes to the current directory.
        self._get(["download", *names], log, progress, cwd=self.archives)
        return sorted(self.archives.glob("*.deb"))

    def dependency(self, package: str, pattern: str) -> str:
        """The first package that `package` depends on and whose name begins with `pattern`. Raises BuildError."""
        text = tools.capture([tools.find_program("apt-cache"), "depends", package], env=self._env)
        for line in text.splitlines():
            kind, _, name = line.strip().partition(": ")
            if kind == "Depends" and name.startswith(pattern):
                return name
        raise BuildError(f"{package} depends on no package {pattern}*")

    def stanzas(self, debs: Sequence[Path]) -> list[str]:
        """What the signed index says of each file. Raises BuildError for a file that it does not know."""
        wanted = [_identity(deb.name) for deb in debs]
        arguments = [f"{name}={version}" for name, version, _ in wanted]
        text = tools.capture([tools.find_program("apt-cache"), "show", *arguments], env=self._env)
        known: dict[tuple[str, str, str], str] = {}
        for stanza in text.strip().split("\n\n"):
            fields = parse_stanza(stanza)
            known.setdefault((fields["Package"], fields["Version"], fields["Architecture"]), stanza)
        missing = [deb.name for deb, identity in zip(debs, wanted, strict=True) if identity not in known]
        if missing:
            raise BuildError(f"apt fetched what its index does not know: {', '.join(missing)}")
        return [known[identity] for identity in wanted]

    def _get(
        self,
        arguments: Sequence[str],
        log: Callable[[str], None],
        progress: Callable[[float | None, str], None] | None,
        cwd: Path | None = None,
    ) -> None:
        options = ["-o", "APT::Status-Fd=1"] if progress else []

        def line(text: str) -> None:
            if (status := _STATUS.fullmatch(text)) and progress:
                progress(min(float(status[1]) / 100, 1.0), status[2])
            else:
                log(text)

        command: list[str | Path] = [tools.find_program("apt-get"), "--quiet", *options, *arguments]
        try:
            tools.run(command, log=line, env=self._env, cwd=cwd or self._root)
        except tools.ToolError as error:
            unknown = any("NO_PUBKEY" in text for text in error.tail)
            error.hint = error.hint or (_UNKNOWN_KEYS if unknown else _UNREACHED)
            raise


def parse_stanza(stanza: str) -> dict[str, str]:
    """The fields of one package in an index; continuation lines are left out."""
    fields = {}
    for line in stanza.splitlines():
        name, colon, value = line.partition(":")
        if colon and not line[0].isspace():
            fields[name] = value.strip()
    return fields


def _configuration(root: Path, arch: str) -> Iterable[str]:
    yield f'Dir "{root}";\n'
    yield f'Dir::State::status "{root}/var/lib/dpkg/status";\n'
    yield 'Dir::Etc::netrc "/etc/apt/auth.conf";\n'
    yield 'Dir::Etc::netrcparts "/etc/apt/auth.conf.d";\n'
    yield f'APT::Architecture "{arch}";\n'
    yield f'APT::Architectures {{ "{arch}"; }};\n'
    yield 'APT::Install-Recommends "false";\n'
    yield 'APT::Install-Suggests "false";\n'
    # The unprivileged user of apt could not get to a private directory; its methods parse what is hostile all the same
    # in a process of their own, and everything is verified.
    yield 'APT::Sandbox::User "";\n'
    yield 'Acquire::Languages "none";\n'
    yield 'Acquire::Retries "3";\n'
    # At once: apt 2.6 waits for ever where a disk is full and what could not be written is put off for another try.
    yield 'Acquire::Retries::Delay "false";\n'
    host = tools.capture([tools.find_program("apt-config"), "dump", "--format", '%F "%v";%n'])
    for line in host.splitlines():
        name, _, value = line.partition(" ")
        if _REACH.fullmatch(name) and value != '"";':
            yield f"{line}\n"


def _identity(file: str) -> tuple[str, str, str]:
    """Name, version and architecture of a .deb that apt has saved."""
    name, version, arch = file.removesuffix(".deb").split("_")
    return name, unquote(version), arch
