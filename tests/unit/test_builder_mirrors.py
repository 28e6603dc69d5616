"""Which mirror is taken from which apt configuration."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from airlock_builder.rootfs.mirrors import KEYRING, Mirrors, Source, find_mirrors, parse_lines, parse_stanzas
from airlock_store.errors import BuildError, MissingToolError

if TYPE_CHECKING:
    from pathlib import Path

HOST = "http://mirror.example"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (f"deb {HOST}/debian trixie main", [Source(f"{HOST}/debian", "trixie", ("main",))]),
        (
            f"  deb\t[arch=amd64 signed-by=/k.gpg,/l.gpg] {HOST}/debian trixie main contrib # own",
            [Source(f"{HOST}/debian", "trixie", ("main", "contrib"), ("/k.gpg", "/l.gpg"))],
        ),
        (f"deb [ trusted=yes ] {HOST}/a/ ./", [Source(f"{HOST}/a/", "./", ())]),
        (f"deb-src {HOST}/debian trixie main", []),
        (f"# deb {HOST}/debian trixie main", []),
        ("deb", []),
        ("debris of a file", []),
        ("", []),
    ],
)
def test_one_line_format(text: str, expected: list[Source]) -> None:
    assert list(parse_lines(text)) == expected


def test_deb822_format() -> None:
    text = f"""\
# the archive
Types: deb deb-src
URIs: {HOST}/debian
  {HOST}/other
Suites: trixie trixie-updates
# a comment between fields
Components: main
 contrib
Signed-By: /k.gpg

Enabled: no
Types: deb
URIs: {HOST}/disabled
Suites: trixie
Components: main

Types: deb-src
URIs: {HOST}/source
Suites: trixie
Components: main

Types: deb
URIs: {HOST}/inline
Suites: trixie
Components: main
Signed-By:
 -----BEGIN PGP PUBLIC KEY BLOCK-----
 .
 mQIN/AAA
"""
    both = ("main", "contrib")
    assert list(parse_stanzas(text)) == [
        Source(f"{HOST}/debian", "trixie", both, ("/k.gpg",)),
        Source(f"{HOST}/debian", "trixie-updates", both, ("/k.gpg",)),
        Source(f"{HOST}/other", "trixie", both, ("/k.gpg",)),
        Source(f"{HOST}/other", "trixie-updates", both, ("/k.gpg",)),
        Source(f"{HOST}/inline", "trixie", ("main",)),
    ]


def configure(etc: Path, **files: str) -> Path:
    (etc / "sources.list.d").mkdir(parents=True)
    for name, text in files.items():
        file = name.replace("__", ".")
        (
            etc / ("sources.list.d" if "." in file else "") / (file if "." in file else "sources.list")
        ).write_text(text)
    return etc


def test_debians_own_are_told_from_others_with_its_suites(tmp_path: Path) -> None:
    etc = configure(
        tmp_path / "apt",
        main=f"deb {HOST}/vendor stable main\ndeb {HOST}/tools bookworm main\n",
        a__list=f"deb {HOST}/debian-cd bookworm contrib\ndeb cdrom:[debian]/ bookworm main\n",
        b__sources=f"Types: deb\nURIs: {HOST}/debian/\nSuites: bookworm bookworm-updates\nComponents: main\n\n"
        f"Types: deb\nURIs: {HOST}/debian-security\nSuites: bookworm-security\nComponents: main\n",
        c__disabled=f"deb {HOST}/debian-disabled bookworm main\n",
    )
    mirrors = find_mirrors({}, etc)
    assert (mirrors.main, mirrors.security) == (f"{HOST}/debian/", f"{HOST}/debian-security")


@pytest.mark.parametrize("word", ["no", "false", "Off", "without", "disable", "0"])
def test_a_source_that_is_switched_off(word: str) -> None:
    text = f"Types: deb\nURIs: {HOST}/debian\nSuites: trixie\nComponents: main\nEnabled: {word}\n"
    assert list(parse_stanzas(text)) == []
    assert list(parse_stanzas(text.replace(word, "yes"))) != []


def test_what_is_no_url_in_the_hosts_sources_is_passed_over(tmp_path: Path) -> None:
    uris = ("http://[half/debian", "http://a\u2100b/debian", f"{HOST}/debian")
    text = "".join(f"deb {uri} trixie main\n" for uri in uris)
    assert find_mirrors({}, configure(tmp_path, main=text)).main == f"{HOST}/debian"


def test_the_environment_wins(tmp_path: Path) -> None:
    etc = configure(
        tmp_path, main=f"deb {HOST}/debian trixie main\ndeb {HOST}/debian-security trixie-security main\n"
    )
    keys = tmp_path / "keys.gpg"
    keys.touch()
    environ = {
        "AIRLOCK_DEBIAN_MIRROR": "http://127.0.0.1/mine",
        "AIRLOCK_DEBIAN_SECURITY_MIRROR": "http://127.0.0.1/safe",
        "AIRLOCK_DEBIAN_KEYRING": str(keys),
    }
    assert find_mirrors(environ, etc) == Mirrors(
        "http://127.0.0.1/mine", "http://127.0.0.1/safe", (str(keys),)
    )
    del environ["AIRLOCK_DEBIAN_SECURITY_MIRROR"]
    assert find_mirrors(environ, etc).security == f"{HOST}/debian-security"


@pytest.mark.parametrize("text", ["", f"deb {HOST}/ubuntu noble main", f"deb {HOST}/vendor trixie main"])
def test_no_debian_source(tmp_path: Path, text: str) -> None:
    with pytest.raises(BuildError) as caught:
        find_mirrors({}, configure(tmp_path, main=text))
    assert caught.value.hint and "AIRLOCK_DEBIAN_MIRROR" in caught.value.hint


@pytest.mark.parametrize(
    "uri", ["mirror.example/debian", "http://x/ y", "gopher://x", 'http://x/"', "http://x/[a]"]
)
def test_what_is_no_uri_of_a_mirror(tmp_path: Path, uri: str) -> None:
    with pytest.raises(BuildError, match="not the URL of a mirror"):
        find_mirrors({"AIRLOCK_DEBIAN_MIRROR": uri}, tmp_path)


def test_keyrings_that_are_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = tmp_path / "own.gpg"
    own.write_bytes(b"")
    text = f"deb [signed-by={own}] {HOST}/debian trixie main\ndeb [signed-by=/missing.gpg] {HOST}/debian trixie main\n"
    etc = configure(tmp_path / "apt", main=text)
    monkeypatch.setattr("airlock_builder.rootfs.mirrors.KEYRING", tmp_path / "debian.gpg")
    assert find_mirrors({}, etc).keyrings == (str(own),)
    (tmp_path / "debian.gpg").write_bytes(b"")
    assert find_mirrors({}, etc).keyrings == (str(tmp_path / "debian.gpg"), str(own))
    own.unlink()
    (tmp_path / "debian.gpg").unlink()
    with pytest.raises(MissingToolError) as caught:
        find_mirrors({}, etc)
    assert caught.value.hint and KEYRING.stem in caught.value.hint


def test_a_keyring_may_be_named_from_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own.gpg").touch()
    environ = {"AIRLOCK_DEBIAN_KEYRING": "own.gpg"}
    etc = configure(tmp_path / "apt", main=f"deb {HOST}/debian trixie main")
    assert find_mirrors(environ, etc).keyrings == (str(tmp_path / "own.gpg"),)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("none", "No such file or directory"),
        (".", "Is a directory"),
        ("a b", "apt cannot be told such a path"),
        ("a,b", "apt cannot be told such a path"),
        ("a]b", "apt cannot be told such a path"),
    ],
)
def test_what_is_no_keyring_is_told_before_apt_runs(name: str, reason: str, tmp_path: Path) -> None:
    for odd in ("a b", "a,b", "a]b"):
        (tmp_path / odd).touch()
    environ = {"AIRLOCK_DEBIAN_MIRROR": HOST, "AIRLOCK_DEBIAN_KEYRING": f"{tmp_path}/{name}"}
    with pytest.raises(
        BuildError, match=f"^AIRLOCK_DEBIAN_KEYRING: '.*' cannot be used: {reason}$"
    ) as caught:
        find_mirrors(environ, tmp_path)
    assert caught.value.hint and "'debian-archive-keyring'" in caught.value.hint


@pytest.mark.parametrize(
    ("suite", "security", "suites"),
    [
        ("trixie", "http://s", ["trixie", "trixie-updates", "trixie-security"]),
        ("trixie", None, ["trixie", "trixie-updates"]),
        ("sid", "http://s", ["sid"]),
    ],
)
def test_lines(suite: str, security: str | None, suites: list[str]) -> None:
    lines = Mirrors("http://m", security, ("/k", "/l")).lines(suite, "amd64")
    assert [line.split()[-2] for line in lines] == suites
    assert lines[0] == f"deb [arch=amd64 signed-by=/k,/l] http://m {suite} main"
