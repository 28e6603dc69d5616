"""The builder's small parts: module order, cpio, sizes of disks, argv of tools, repositories."""

from __future__ import annotations

import ast
import io
import re
import subprocess
import sys
import tarfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airlock_builder.kernel.modules import ModuleIndex, parse_table, read_index
from airlock_builder.pack import cpio, disk
from airlock_builder.pack.airlockd import airlockd_sources, digest_sources
from airlock_builder.pack.guest_python import own_modules
from airlock_builder.rootfs import fetch
from airlock_builder.rootfs.apt import parse_stanza
from airlock_builder.rootfs.fetch import read_packages, write_repository
from airlock_builder.tools import ToolError
from airlock_store.contents import sha256_of
from airlock_store.errors import BuildError, Location
from airlock_store.paths import StorePath

# Modules


@pytest.fixture
def index(tmp_path: Path) -> ModuleIndex:
    (tmp_path / "modules.dep").write_text(
        "kernel/fs/ext4/ext4.ko.xz: kernel/lib/crc16.ko.xz kernel/fs/jbd2/jbd2.ko.xz\n"
        "kernel/fs/jbd2/jbd2.ko.xz:\n"
        "kernel/lib/crc16.ko.xz:\n"
        "kernel/crypto/crc32c-intel.ko.xz: kernel/lib/crc16.ko.xz\n"
        "kernel/crypto/crc32c_generic.ko.xz:\n"
        "kernel/drivers/char/hw_random/virtio-rng.ko.xz:\n"
    )
    (tmp_path / "modules.softdep").write_text(
        "# Soft dependencies\nsoftdep ext4 pre: crypto-crc32c\nsoftdep jbd2 pre: gone post: virtio_rng\n"
    )
    (tmp_path / "modules.alias").write_text(
        "# Aliases\nalias crypto-crc32c crc32c_intel\nalias crypto-crc32c crc32c_generic\nalias pci:v*d* jbd2\n"
    )
    (tmp_path / "modules.builtin").write_text("kernel/drivers/char/virtio_console.ko\n")
    return read_index(tmp_path)


def test_modules_come_after_what_they_need(index: ModuleIndex) -> None:
    order = index.order({"a": ["virtio_rng"], "b": ["ext4", "virtio-rng"]})
    assert order == ["virtio_rng", "jbd2", "crc16", "crc32c_intel", "crc32c_generic", "ext4"]


def test_builtin_modules_need_no_file(index: ModuleIndex) -> None:
    assert index.order({"a": ["virtio-console", "jbd2"]}) == ["jbd2"]


def test_a_module_that_is_not_there(index: ModuleIndex) -> None:
    with pytest.raises(BuildError, match="no module 'zfs', which CONFIG_STORAGE"):
        index.order({"STORAGE": ["ext4", "zfs"]})


def test_modules_that_need_each_other() -> None:
    index = ModuleIndex({"a": "a.ko", "b": "b.ko"}, {"a": ("b",), "b": ("a",)}, {}, frozenset())
    assert index.order({"f": ["a"]}) == ["b", "a"]


def test_the_table_of_modules() -> None:
    table = parse_table('[modules]\n9P_FS = ["9p"]\nOLD_NAME = []\n', Path("modules.toml"))
    assert dict(table) == {"9P_FS": ("9p",), "OLD_NAME": ()}


# cpio

NAMES = st.from_regex(r"[a-z]{1,3}(/[a-z]{1,3}){0,3}", fullmatch=True)


@given(st.dictionaries(NAMES, st.binary(max_size=600), max_size=8))
def test_cpio_is_read_back(files: dict[str, bytes]) -> None:
    # A file cannot be a directory too.
    files = {name: data for name, data in files.items() if not any(n.startswith(f"{name}/") for n in files)}
    output = io.BytesIO()
    cpio.write([cpio.Entry.file(name, data) for name, data in files.items()], output)
    assert len(output.getvalue()) % 512 == 0
    back = read_newc(output.getvalue())
    assert {name: data for name, (mode, data) in back.items() if mode >> 12 == 0o10} == files
    directories = {str(parent) for name in files for parent in Path(name).parents} - {"."}
    assert {name for name, (mode, _) in back.items() if mode >> 12 == 0o4} == directories


def read_newc(data: bytes) -> dict[str, tuple[int, bytes]]:
    """A reader of its own, from the description of the format. Fails for a member before its directory."""
    found: dict[str, tuple[int, bytes]] = {}
    position = 0
    while True:
        assert data[position : position + 6] == b"070701"
        fields = [int(data[position + 6 + n * 8 : position + 14 + n * 8], 16) for n in range(13)]
        mode, size, length = fields[1], fields[6], fields[11]
        start = position + 110
        name = data[start : start + length - 1].decode()
        start += length + -(start + length) % 4
        if name == "TRAILER!!!":
            return found
        parent = name.rpartition("/")[0]
        assert not parent or parent in found
        found[name] = (mode, data[start : start + size])
        position = start + size + -(start + size) % 4


def test_cpio_as_the_real_tool_reads_it(tmp_path: Path) -> None:
    with (tmp_path / "archive").open("wb") as file:
        entries = [
            cpio.Entry.file("usr/bin/tool", b"#!/bin/sh\n", executable=True),
            cpio.Entry.link("bin", "usr/bin"),
            cpio.Entry.directory("proc"),
        ]
        cpio.write(entries, file)
    listing = subprocess.run(
        ["cpio", "-itv", "--quiet", "--numeric-uid-gid", "-F", tmp_path / "archive"],
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    lines = [line.split() for line in listing.splitlines()]
    assert [(line[0], line[2], line[3], line[8]) for line in lines] == [
        ("lrwxrwxrwx", "0", "0", "bin"),
        ("drwxr-xr-x", "0", "0", "proc"),
        ("drwxr-xr-x", "0", "0", "usr"),
        ("drwxr-xr-x", "0", "0", "usr/bin"),
        ("-rwxr-xr-x", "0", "0", "usr/bin/tool"),
    ]


def test_a_file_that_the_format_cannot_hold() -> None:
    with pytest.raises(ValueError, match="too large"):
        cpio.write([cpio.Entry("big", 0o100644, _Huge())], io.BytesIO())


class _Huge(bytes):
    def __len__(self) -> int:
        return 1 << 32


# Disk


def member(name: str, size: int = 0, kind: bytes = tarfile.REGTYPE, **more: object) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.size, info.type = size, kind
    for key, value in more.items():
        setattr(info, key, value)
    return info


@pytest.mark.parametrize(
    ("members", "inodes", "blocks"),
    [
        ([], 1, 1),
        ([member("./a", 1)], 2, 2),
        ([member("./a", 4096), member("./b", 4097)], 3, 4),
        ([member("./d", kind=tarfile.DIRTYPE), member("./e")], 3, 2),
        ([member("./a", 1), member("./b", kind=tarfile.LNKTYPE)], 2, 2),
        ([member("./l", kind=tarfile.SYMTYPE, linkname="x" * 59)], 2, 1),
        ([member("./l", kind=tarfile.SYMTYPE, linkname="x" * 60)], 2, 2),
        ([member("./p", pax_headers={"SCHILY.xattr.security.capability": "x"})], 2, 2),
    ],
)
def test_what_a_tree_takes(members: list[tarfile.TarInfo], inodes: int, blocks: int) -> None:
    assert disk.measure(members) == disk.Needs(inodes, blocks)


@pytest.fixture
def disk_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Builds the disk of an empty tree, of a size that a recipe asks for, by an mke2fs that needs another: the sizes
    that it is given."""
    for name in ("rootfs", "toolbox", "output"):
        (tmp_path / name).mkdir()
    tarfile.open(tmp_path / "rootfs" / "rootfs.tar", "w").close()
    (tmp_path / "rootfs" / "epoch").write_text("1\n")
    tried: list[int] = []

    def build(size: int | None, needed: int, says: str) -> list[int]:
        def run(*_: object, **__: object) -> None:
            tried.append((tmp_path / "output" / disk.IMAGE).stat().st_size)
            if tried[-1] < needed:
                raise ToolError("mke2fs failed (exit code 1)", [says])

        monkeypatch.setattr(disk, "Toolbox", lambda root, _arch: SimpleNamespace(root=root, run=run))
        work: Any = SimpleNamespace(
            inputs={name: StorePath(tmp_path / name, "0" * 32, name) for name in ("rootfs", "toolbox")},
            parameters={"size": size, "arch": "x86_64"},
            step=SimpleNamespace(payload={"size_place": Location(tmp_path / "recipe.toml", 3, 4)}),
            output=tmp_path / "output",
            scratch=tmp_path,
            log=lambda _line: None,
            progress=lambda _fraction, _text: None,
        )
        disk.build(work)
        return tried

    return build


NO_ROOM = 'handle_entry: Could not allocate block in ext2 filesystem while writing file "a"'


def test_a_disk_of_no_size_of_its_own_grows_until_the_tree_fits(disk_of: Any) -> None:
    assert disk_of(None, 13 << 20, NO_ROOM) == [9 << 20, 12 << 20, 16 << 20]


@pytest.mark.parametrize(
    ("size", "says", "message", "placed"),
    [
        (10 << 20, NO_ROOM, "does not fit into an image of 10 MB", True),
        (None, "No space left on device", "mke2fs failed", False),
        (1 << 62, "", "a file of .* cannot be here: File too large", True),
    ],
)
def test_a_disk_that_cannot_be(size: int | None, says: str, message: str, placed: bool, disk_of: Any) -> None:
    with pytest.raises(BuildError, match=message) as caught:
        disk_of(size, 11 << 20, says)
    assert (caught.value.at is not None) is placed


def test_arguments_of_mke2fs() -> None:
    argv = disk.arguments(42, Path("in.tar"), Path("out.img"))
    assert argv[-3:] == ["-d", Path("in.tar"), Path("out.img")]
    assert argv[argv.index("-N") + 1] == "42"
    assert "hash_seed=" in str(argv[argv.index("-E") + 1])


# Repositories


def make_deb(path: Path, date: int) -> None:
    path.write_bytes(
        b"!<arch>\n" + f"{'debian-binary':<16}{date:<12}{0:<6}{0:<6}{100644:<8}{4:<10}`\n".encode() + b"2.0\n"
    )


def stanza(name: str, version: str, deb: Path) -> str:
    return (
        f"Package: {name}\nVersion: {version}\nArchitecture: amd64\nDescription: a thing\n of two lines\n"
        f"Filename: pool/main/x/{deb.name}\nSize: {deb.stat().st_size}\nSHA256: {sha256_of(deb)}"
    )


def test_a_repository(tmp_path: Path) -> None:
    debs = [tmp_path / "a_1%3a2.0_amd64.deb", tmp_path / "b_3_amd64.deb"]
    make_deb(debs[0], 1000)
    make_deb(debs[1], 2000)
    stanzas = [stanza("a", "1:2.0", debs[0]), stanza("b", "3", debs[1])]
    output = tmp_path / "out"
    output.mkdir()
    write_repository(output, "trixie", "amd64", debs, stanzas)
    packages, epoch = read_packages(output)
    assert epoch == 2000
    assert [(p["name"], p["version"], p["file"]) for p in packages] == [
        ("a", "1:2.0", "pool/a_2.0_amd64.deb"),
        ("b", "3", "pool/b_3_amd64.deb"),
    ]
    listed = (output / "dists/trixie/main/binary-amd64/Packages").read_text().split("\n\n")
    assert [parse_stanza(each)["Filename"] for each in listed] == [p["file"] for p in packages]
    assert all(sha256_of(output / str(p["file"])) == p["sha256"] for p in packages)


def test_the_callers_locale_is_not_in_what_is_stored(tmp_path: Path) -> None:
    deb = tmp_path / "a_1_amd64.deb"
    make_deb(deb, 1)
    (tmp_path / "out").mkdir()
    text = stanza("a", "1", deb).replace("a thing", "für alle")
    code = (
        "import sys; from pathlib import Path; from airlock_builder.rootfs.fetch import write_repository\n"
        "write_repository(Path('out'), 'trixie', 'amd64', [Path(sys.argv[1])], [bytes.fromhex(sys.argv[2]).decode()])"
    )
    ascii_only = {
        "LC_ALL": "C",
        "PYTHONCOERCECLOCALE": "0",
        "PYTHONUTF8": "0",
        "PYTHONPATH": ":".join(sys.path),
    }
    subprocess.run(
        [sys.executable, "-c", code, deb.name, text.encode().hex()], cwd=tmp_path, env=ascii_only, check=True
    )
    listed = tmp_path / "out/dists/trixie/main/binary-amd64/Packages"
    assert "für alle".encode() in listed.read_bytes()


def test_texts_are_read_and_written_as_utf8() -> None:
    """Not as the locale of who builds has it, which keys do not have."""
    checkout = Path(__file__).resolve().parents[2]
    for path in [*(checkout / "builder").rglob("*.py"), *(checkout / "store").rglob("*.py")]:
        for call in ast.walk(ast.parse(path.read_bytes())):
            if isinstance(call, ast.Call) and isinstance(call.func, ast.Attribute):
                named = {keyword.arg for keyword in call.keywords}
                wanted = call.func.attr in {"read_text", "write_text"} or "text" in named
                assert not wanted or "encoding" in named, f"{path}:{call.lineno}"


def test_a_package_that_is_not_what_was_promised(tmp_path: Path) -> None:
    deb = tmp_path / "a_1_amd64.deb"
    make_deb(deb, 1)
    promised = stanza("a", "1", deb)
    make_deb(deb, 2)
    with pytest.raises(BuildError, match="not what the signed index promises"):
        write_repository(tmp_path, "trixie", "amd64", [deb], [promised])


INDEX = """\
Package: libncurses6
Version: 1
Architecture: amd64
Maintainer: nobody
Filename: ./a.deb
Size: 1
SHA256: 0000000000000000000000000000000000000000000000000000000000000000
Provides: curses

"""


@pytest.mark.parametrize(
    ("package", "hint"), [("libncurses.6", "Nearest: libncurses6."), ("lib+=1", None), ("node.js", None)]
)
def test_a_package_is_not_one_that_its_name_matches(
    package: str, hint: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """apt takes a name that it does not know as a regular expression."""
    (tmp_path / "Packages").write_text(INDEX)
    lines = [f"deb [trusted=yes] file:{tmp_path} ./"]
    mirrors = SimpleNamespace(security="none", lines=lambda _suite, _arch: lines)
    monkeypatch.setattr(fetch, "find_mirrors", lambda: mirrors)
    at = Location(tmp_path / "recipe.toml", 3, 4)
    work: Any = SimpleNamespace(
        parameters={
            "suite": "trixie",
            "arch": "x86_64",
            "what": "install",
            "packages": ["?essential", "libncurses6", "curses", package],
        },
        step=SimpleNamespace(payload={"places": {package: at}}),
        scratch=tmp_path,
        log=lambda _line: None,
        progress=lambda _fraction, _text: None,
    )
    with pytest.raises(BuildError, match=f"no package '{re.escape(package.partition('=')[0])}'") as caught:
        fetch.build(work)
    assert (caught.value.at, caught.value.hint) == (at, hint)


# airlockd


def test_the_digest_of_sources_sees_names_and_bytes(tmp_path: Path) -> None:
    digests = set()
    for name, text in [("a.py", "x"), ("a.py", "y"), ("b.py", "x"), ("a.py", "")]:
        (tmp_path / name).write_text(text)
        digests.add(digest_sources(tmp_path, [Path(name)]))
    assert len(digests) == 4


def test_airlockd_is_found_whole() -> None:
    root, files = airlockd_sources()
    assert {Path("__init__.py"), Path("supervisor.py"), Path("protocol/frames.py")} <= set(files)
    assert {"airlockd", "airlockd.supervisor", "airlockd.protocol", "airlockd.protocol.frames"} <= set(
        own_modules(root)
    )
