"""Where Debian packages come from: the host's own apt sources, or what the environment says. Called by fetch.

Nothing here names a mirror. What is found is verified by apt with Debian's keys, whoever serves it.
"""

from __future__ import annotations

import os
import re
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from airlock_store.errors import BuildError, MissingToolError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")

INSTALL_KEYS = "Install the package 'debian-archive-keyring'."

UNRELEASED = ("sid", "unstable", "experimental")
"""Suites that have neither updates nor security updates beside them."""

_SUITES = re.compile(
    r"(?:old)*(?:stable|testing|unstable|sid|bullseye|bookworm|trixie|forky|duke)"
    r"(?:-updates|-security|-backports|-proposed-updates|/updates)?"
)
_SECURITY = re.compile(r"-security$|/updates$")
_NO = ("no", "false", "without", "off", "disable", "0")  # as apt has it
_SCHEMES = ("http", "https", "ftp", "file", "copy", "mirror", "tor")


@dataclass(frozen=True, slots=True)
class Source:
    """One URI of an apt source, with a suite of it and the keyrings that the host trusts for it."""

    uri: str
    suite: str
    components: tuple[str, ...]
    keyrings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Mirrors:
    """Where to fetch from. `security` is None where nobody knows one; `keyrings` are files."""

    main: str
    security: str | None
    keyrings: tuple[str, ...]

    def lines(self, suite: str, arch: str) -> list[str]:
        """The lines of a sources.list for `suite` with its updates, for Debian's name of the architecture."""
        options = f"[arch={arch} signed-by={','.join(self.keyrings)}]"
        lines = [f"deb {options} {self.main} {suite} main"]
        if suite not in UNRELEASED:
            lines.append(f"deb {options} {self.main} {suite}-updates main")
            if self.security:
                lines.append(f"deb {options} {self.security} {suite}-security main")
        return lines


def find_mirrors(environ: Mapping[str, str] = os.environ, etc: Path = Path("/etc/apt")) -> Mirrors:
    """The mirrors of this host: `AIRLOCK_DEBIAN_MIRROR` and `AIRLOCK_DEBIAN_SECURITY_MIRROR`, or else apt's.

    `AIRLOCK_DEBIAN_KEYRING` overrides the keyring. Raises BuildError where no mirror is known and MissingToolError
    where Debian's keys are missing.
    """
    sources = [source for source in read_sources(etc) if _is_debian(source)]
    security = [source for source in sources if _SECURITY.search(source.suite)]
    plain = [source for source in sources if source not in security]
    main_uri = environ.get("AIRLOCK_DEBIAN_MIRROR") or next((source.uri for source in plain), None)
    if main_uri is None:
        raise BuildError(
            "this host's apt sources name no Debian mirror",
            hint="Set AIRLOCK_DEBIAN_MIRROR to the URL of one (and AIRLOCK_DEBIAN_SECURITY_MIRROR).",
        )
    security_uri = environ.get("AIRLOCK_DEBIAN_SECURITY_MIRROR") or next(
        (source.uri for source in security), None
    )
    for uri in filter(None, (main_uri, security_uri)):
        if not _is_uri(uri):
            raise BuildError(
                f"{uri!r} is not the URL of a mirror", hint="Such as http://mirror.example/debian"
            )
    return Mirrors(main_uri, security_uri, _keyrings(environ, sources))


def read_sources(etc: Path) -> Iterator[Source]:
    """Every binary source of apt's configuration in `etc`, in both of apt's formats."""
    for path in (etc / "sources.list", *sorted((etc / "sources.list.d").glob("*"))):
        try:
            text = path.read_text(errors="replace", encoding="utf-8")
        except OSError:
            continue
        if path.suffix == ".list":
            yield from parse_lines(text)
        elif path.suffix == ".sources":
            yield from parse_stanzas(text)


def parse_lines(text: str) -> Iterator[Source]:
    """The sources in a file of one-line entries."""
    for line in text.splitlines():
        match = re.match(r"\s*deb\s+(?:\[([^\]]*)\]\s*)?([^#]+)", line)
        words = match[2].split() if match else []
        if match and len(words) >= 2:
            options = dict(option.split("=", 1) for option in (match[1] or "").split() if "=" in option)
            keyrings = _files(options.get("signed-by", "").split(","))
            yield Source(words[0], words[1], tuple(words[2:]), keyrings)


def parse_stanzas(text: str) -> Iterator[Source]:
    """The sources in a deb822 file."""
    for stanza in re.split(r"\n\s*\n", text):
        fields: dict[str, str] = {}
        last = ""
        for line in stanza.splitlines():
            if line.startswith("#"):
                continue
            if line[:1].isspace():
                fields[last] = f"{fields.get(last, '')}\n{line}"
            elif ":" in line:
                last, _, value = line.partition(":")
                last = last.strip().lower()
                fields[last] = value
        if "deb" not in fields.get("types", "").split() or fields.get("enabled", "").strip().lower() in _NO:
            continue
        keyrings = _files(fields.get("signed-by", "").split())
        for uri in fields.get("uris", "").split():
            for suite in fields.get("suites", "").split():
                yield Source(uri, suite, tuple(fields.get("components", "").split()), keyrings)


def _is_debian(source: Source) -> bool:
    """Whether this is a mirror of Debian's own archive: others use its names of suites too, but not its path."""
    try:
        path = urlsplit(source.uri).path.split("/")
    except ValueError:
        return False
    return (
        _is_uri(source.uri)
        and _SUITES.fullmatch(source.suite) is not None
        and "main" in source.components
        and any(part.startswith("debian") for part in path)
    )


def _is_uri(uri: str) -> bool:
    scheme = uri.partition(":")[0].partition("+")[0]
    return scheme in _SCHEMES and not re.search(r"[\s\[\]\"'\\]", uri) and "\0" not in uri


def _files(names: Iterable[str]) -> tuple[str, ...]:
    return tuple(name for name in names if name.startswith("/") and shlex.quote(name) == name)


def _keyrings(environ: Mapping[str, str], sources: Iterable[Source]) -> tuple[str, ...]:
    if chosen := environ.get("AIRLOCK_DEBIAN_KEYRING"):
        return (_chosen(os.path.abspath(chosen)),)
    # Debian's own keyring first: what the host trusts for its release need not have the keys of another.
    names = dict.fromkeys([str(KEYRING), *(name for source in sources for name in source.keyrings)])
    found = tuple(name for name in names if Path(name).is_file())
    if not found:
        raise MissingToolError(
            "the keys of Debian's archive are not installed",
            hint=INSTALL_KEYS,
        )
    return found


def _chosen(keyring: str) -> str:
    """What is no keyring is the same to apt as a mirror that nobody has signed for."""
    try:
        with open(keyring, "rb") as file:
            file.read(1)
        if not _files([keyring]) or "," in keyring:
            raise OSError(0, "apt cannot be told such a path")
    except OSError as error:
        raise BuildError(
            f"AIRLOCK_DEBIAN_KEYRING: {keyring!r} cannot be used: {error.strerror}",
            hint="Name a file with keys, or unset it for Debian's own, of the package 'debian-archive-keyring'.",
        ) from error
    return keyring
