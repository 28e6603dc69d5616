"""What airlockd holds for who watches files in a share: as long as that lives, and until it is gone from the host."""

from __future__ import annotations

import os
import shutil
import subprocess
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airlockd import watches
from airlockd.asks import Question
from airlockd.watches import Mount, Watches, locate, parse_mounts

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

DEVICE = os.makedev(0, 31)
DONT_FOLLOW = 0x02000000


@pytest.mark.parametrize(
    ("path", "found"),
    [
        (b"/project/src", (DEVICE, b"src")),
        (b"/project/src/a b", (DEVICE, b"src/a b")),
        # The share itself is held by its mount.
        (b"/project", None),
        (b"/projects/src", None),
        (b"/etc/hosts", None),
        (b"/project/inner/x", (1, b"x")),
        (b"/app/x", (DEVICE, b"src/x")),
        (b"/app", (DEVICE, b"src")),
        # What is mounted over another hides it.
        (b"/twice/x", (2, b"x")),
    ],
)
def test_a_path_is_found_by_what_is_mounted(path: bytes, found: tuple[int, bytes] | None) -> None:
    mounts = [
        Mount(DEVICE, b"/", b"/project"),
        Mount(1, b"/", b"/project/inner"),
        Mount(DEVICE, b"/src", b"/app"),
        Mount(DEVICE, b"/", b"/twice"),
        Mount(2, b"/", b"/twice"),
    ]
    assert locate(mounts, path) == found


def test_a_share_may_be_the_root() -> None:
    assert locate([Mount(DEVICE, b"/", b"/")], b"/src/x") == (DEVICE, b"src/x")


NAMES = st.binary(min_size=1, max_size=30).map(
    lambda name: b"/" + name.replace(b"\0", b"").replace(b"/", b"")
)


@given(st.lists(st.tuples(st.sampled_from([DEVICE, 5]), NAMES, NAMES), max_size=5), st.binary(max_size=20))
def test_mounts_are_read_as_the_kernel_writes_them(
    mounts: list[tuple[int, bytes, bytes]], torn: bytes
) -> None:
    def escaped(path: bytes) -> bytes:
        for byte in b"\\ \t\n#":
            path = path.replace(bytes([byte]), b"\\%03o" % byte)
        return path

    lines = [
        b"36 35 %d:%d %s %s rw,noatime master:1 - 9p project rw\n"
        % (os.major(device), os.minor(device), escaped(root), escaped(target))
        for device, root, target in mounts
    ]
    table = b"".join(lines) + torn.replace(b"\n", b"")
    assert parse_mounts(table, {DEVICE: 0}) == [
        Mount(device, root, target) for device, root, target in mounts if device == DEVICE
    ]


class _Loop:
    """What the watches ask of a loop, to be called by hand."""

    def __init__(self) -> None:
        self.readable: dict[int, Callable[[], None]] = {}
        self.due: list[Callable[[], None]] = []

    def on_readable(self, fd: int, callback: Callable[[], None]) -> None:
        self.readable[fd] = callback

    def forget(self, fd: int) -> None:
        del self.readable[fd]

    def call_later(self, _seconds: float, callback: Callable[[], None]) -> object:
        self.due.append(callback)
        return object()

    def look(self) -> None:
        for callback in [self.due.pop() for _ in range(len(self.due))]:
            callback()


class _Question(Question):
    """Of this test's own memory there is nothing to read."""

    path = b""

    def strings(self, *_arguments: int) -> list[bytes]:
        return [self.path]

    def require(self) -> None:
        pass


class _World:
    """Watches of one share."""

    def __init__(self, share: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.share = share
        device = share.stat().st_dev
        self.loop = _Loop()
        self.watches = Watches(self.loop, {device: os.open(share, os.O_PATH)})  # type: ignore[arg-type]
        mounts = [Mount(device, b"/", os.fsencode(share))]
        monkeypatch.setattr(self.watches, "_mounts_of", lambda _process: mounts)

    def ask(self, path: str, *, process: int | None = None, mask: int = 0) -> None:
        question = _Question(-1, 1, process or os.getpid(), "inotify_add_watch", (3, 0, mask))
        question.path = os.fsencode(self.share / path)
        assert self.watches.handlers["inotify_add_watch"](question) is False

    @property
    def held(self) -> set[str]:
        """By where the descriptors lead."""
        paths = {os.readlink(f"/proc/self/fd/{held.fd}") for held in self.watches._held.values()}
        return {os.path.relpath(path, self.share) for path in paths}

    def release_all(self) -> None:
        for owner in list(self.watches._owners.values()):
            self.watches._ended(owner)
        assert not self.watches._directories


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[_World]:
    before = set(os.listdir("/proc/self/fd"))
    (tmp_path / "src/deep").mkdir(parents=True)
    (tmp_path / "src/file").touch()
    (tmp_path / "link").symlink_to("src")
    (tmp_path / "out").symlink_to("/etc")
    world = _World(tmp_path, monkeypatch)
    yield world
    world.release_all()
    (share,) = world.watches._shares.values()
    os.close(share)
    assert set(os.listdir("/proc/self/fd")) == before


class _AsQemu:
    """Its `os`: what is open in a share is asked for by its path, each time, and what is gone is gone there, too."""

    def __getattr__(self, name: str) -> Any:
        return getattr(os, name)

    def fstat(self, fd: int) -> os.stat_result:
        return os.stat(self._path_of(fd), follow_symlinks=False)

    def open(self, path: str, flags: int) -> int:
        directory, _, name = path.rpartition("/")
        return os.open(self._path_of(int(name)) if directory == "/proc/self/fd" else path, flags)

    def _path_of(self, fd: int) -> str:
        return os.readlink(f"/proc/self/fd/{fd}").removesuffix(" (deleted)")


@pytest.fixture(autouse=True)
def as_qemu_has_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watches, "os", _AsQemu())


def test_what_is_watched_is_held(world: _World) -> None:
    for path in ("src", "src/file", "src/file", "src/deep", "link/deep", "link"):
        world.ask(path)
    assert world.held == {"src", "src/file", "src/deep"}
    world.ask("link", mask=DONT_FOLLOW)
    assert world.held == {"src", "src/file", "src/deep", "link"}


@pytest.mark.parametrize("path", ["missing", "src/file/x", "out/hosts", "out", "../outside"])
def test_what_is_not_in_the_share_is_not_held(world: _World, path: str) -> None:
    (world.share.parent / "outside").touch()
    try:
        world.ask(path)
    except OSError:
        # Asks has the kernel go on.
        pass
    assert world.held == set()


def test_it_is_let_go_with_the_last_who_watches_it(world: _World) -> None:
    watchers = [subprocess.Popen(["cat"], stdin=subprocess.PIPE) for _ in range(2)]
    for watcher in watchers:
        world.ask("src/file", process=watcher.pid)
    world.ask("src", process=watchers[0].pid)
    for watcher, left in zip(watchers, ({"src/file"}, set()), strict=True):
        watcher.communicate()
        ended = world.watches._owners[watcher.pid]
        world.loop.readable[ended.fd]()
        assert world.held == left
    assert not world.loop.readable


def test_what_is_gone_is_let_go(world: _World) -> None:
    for path in ("src/file", "src/deep", "src"):
        world.ask(path)
    world.loop.look()
    assert world.held == {"src/file", "src/deep", "src"}
    (world.share / "src/file").unlink()
    world.loop.look()
    assert world.held == {"src/deep", "src"}
    shutil.rmtree(world.share / "src")
    world.loop.look()
    assert world.held == set()
    # Nobody looks where nothing is held.
    world.loop.look()
    assert not world.loop.due


def test_a_directory_that_became_a_file_is_let_go(world: _World) -> None:
    world.ask("src/deep")
    (world.share / "src/deep").rmdir()
    (world.share / "src/deep").touch()
    world.loop.look()
    assert world.held == set()


def test_nothing_is_looked_at_where_nothing_was_changed(
    world: _World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.ask("src/file")

    def never(_held: object) -> bool:
        raise AssertionError

    monkeypatch.setattr(watches, "_gone", never)
    world.loop.look()
    assert world.held == {"src/file"}


def test_each_directory_has_its_turn(world: _World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watches, "LOOKS", 2)
    for name in "abcde":
        (world.share / name / "inner").mkdir(parents=True)
        world.ask(f"{name}/inner")
    for name in "abcde":
        (world.share / name / "inner").rmdir()
    left = []
    for _ in range(3):
        world.loop.look()
        left.append(len(world.held))
    assert left == [3, 1, 0]


def test_the_oldest_go_where_there_are_too_many(world: _World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watches, "HELD", 2)
    for path in ("src", "src/file", "src", "src/deep"):
        world.ask(path)
    assert world.held == {"src", "src/deep"}
