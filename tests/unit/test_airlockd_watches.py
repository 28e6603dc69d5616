"""What airlockd holds for who watches files in a share: as long as that lives, and until it is gone from the host."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from manual_loop import ManualLoop

from airlockd import watches
from airlockd.asks import Question
from airlockd.mountinfo import Mount
from airlockd.protocol.inotify import ATTRIB, CHANGES, Inotify
from airlockd.watches import Share, Watches

if TYPE_CHECKING:
    from collections.abc import Iterator

DONT_FOLLOW = 0x02000000


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
        self.loop = ManualLoop()
        self.told: list[tuple[str, bool]] = []
        shares = {device: Share("project", os.open(share, os.O_PATH))}
        self.watches = Watches(self.loop, shares, self.tell)  # type: ignore[arg-type]
        mounts = [Mount(device, b"/", os.fsencode(share))]
        monkeypatch.setattr(self.watches, "_mounts_of", lambda _process: mounts)

    def tell(self, tag: str, path: bytes, on: bool) -> None:
        assert tag == "project"
        self.told.append((path.decode(), on))

    def changed(self, path: str, *names: str) -> None:
        """The host says so."""
        self.watches.changed("project", path.encode(), [name.encode() for name in names])

    def host_cannot_watch(self) -> None:
        for _device, path in list(self.watches._directories):
            self.watches.unwatched("project", path)

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
        assert not self.watches._by_number
        if self.watches._inotify is not None:
            # Nor does the kernel.
            assert "inotify wd" not in Path(f"/proc/self/fdinfo/{self.watches._inotify._fd}").read_text()
        # The host watches no more than is watched here.
        assert sorted(path for path, on in self.told if on) == sorted(
            path for path, on in self.told if not on
        )


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
    os.close(share.fd)
    if world.watches._inotify is not None:
        world.watches._inotify.close()
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


@pytest.mark.parametrize("first", [0, 1])
def test_it_is_let_go_with_the_last_who_watches_it(world: _World, first: int) -> None:
    watchers = [subprocess.Popen(["cat"], stdin=subprocess.PIPE) for _ in range(2)]
    for watcher in watchers:
        world.ask("src/file", process=watcher.pid)
    world.ask("src", process=watchers[first].pid)
    for watcher, left in zip((watchers[first], watchers[1 - first]), ({"src/file"}, set()), strict=True):
        watcher.communicate()
        ended = world.watches._owners[watcher.pid]
        world.loop.readable[ended.fd]()
        assert world.held == left
    assert list(world.loop.readable) == [world.watches._inotify._fd]  # type: ignore[union-attr]


def test_what_is_gone_is_let_go(world: _World) -> None:
    for path in ("src/file", "src/deep", "src"):
        world.ask(path)
    world.host_cannot_watch()
    world.loop.time_passes()
    assert world.held == {"src/file", "src/deep", "src"}
    (world.share / "src/file").unlink()
    world.loop.time_passes()
    assert world.held == {"src/deep", "src"}
    shutil.rmtree(world.share / "src")
    world.loop.time_passes()
    assert world.held == set()
    # Nobody looks where nothing is held.
    world.loop.time_passes()
    assert not world.loop.due


def test_a_directory_that_became_a_file_is_let_go(world: _World) -> None:
    world.ask("src/deep")
    (world.share / "src/deep").rmdir()
    (world.share / "src/deep").touch()
    world.host_cannot_watch()
    world.loop.time_passes()
    assert world.held == set()


def test_a_file_that_became_a_directory_is_let_go(world: _World) -> None:
    world.ask("src/file")
    (world.share / "src/file").unlink()
    (world.share / "src/file").mkdir()
    world.host_cannot_watch()
    world.loop.time_passes()
    assert world.held == set()


def test_who_is_gone_when_it_is_his_turn_holds_nothing(
    world: _World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """His number may be another's, who does not watch this."""

    def gone(_question: object) -> None:
        raise FileNotFoundError

    monkeypatch.setattr(_Question, "require", gone)
    with pytest.raises(FileNotFoundError):
        world.ask("src/file")
    assert world.held == set()


def test_what_is_gone_while_it_is_asked_for_again_is_let_go(
    world: _World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.ask("src/file")

    def gone(_place: object) -> None:
        raise FileNotFoundError

    monkeypatch.setattr(world.watches, "_enter", gone)
    with pytest.raises(FileNotFoundError):
        world.ask("src/file")
    assert world.held == set()


def test_a_change_is_looked_at_once(world: _World, monkeypatch: pytest.MonkeyPatch) -> None:
    world.ask("src/file")
    world.host_cannot_watch()
    world.loop.time_passes()
    (world.share / "src/other").touch()
    looked: list[object] = []
    monkeypatch.setattr(watches, "_gone", looked.append)
    world.loop.time_passes()
    world.loop.time_passes()
    assert len(looked) == 1


def test_paths_are_seen_from_where_a_process_is() -> None:
    here = os.fsencode(os.getcwd())
    for path, absolute in [
        (b"/a/./b/../c", b"/a/c"),
        (b"//a", b"/a"),
        (b"x/../y", here + b"/y"),
        (b".", here),
    ]:
        assert watches._absolute(os.getpid(), path) == absolute


def test_nothing_is_looked_at_where_nothing_was_changed(
    world: _World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.ask("src/file")
    world.host_cannot_watch()
    world.loop.time_passes()

    def never(_held: object) -> bool:
        raise AssertionError

    monkeypatch.setattr(watches, "_gone", never)
    world.loop.time_passes()
    assert world.held == {"src/file"}


def test_each_directory_has_its_turn(world: _World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watches, "LOOKS", 2)
    for name in "abcde":
        (world.share / name / "inner").mkdir(parents=True)
        world.ask(f"{name}/inner")
        world.watches.unwatched("project", name.encode())
    for name in "cde":
        (world.share / name / "inner").rmdir()
    left = []
    for _ in range(3):
        world.loop.time_passes()
        left.append(len(world.held))
    assert left == [5, 3, 2]


def test_the_oldest_go_where_there_are_too_many(world: _World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watches, "HELD", 2)
    for path in ("src", "src/file", "src", "src/deep"):
        world.ask(path)
    assert world.held == {"src", "src/deep"}


def test_the_host_is_told_of_directories(world: _World) -> None:
    for path in ("src/file", "src/deep", "src", ""):
        world.ask(path)
    # Those around what is watched too, for when they are moved.
    assert world.told == [("", True), ("src", True), ("src/deep", True)]


class _Program:
    """What a program of the sandbox hears that watches these."""

    def __init__(self, world: _World, *paths: str) -> None:
        self.world = world
        self.heard: list[tuple[str, str]] = []
        self.inotify = Inotify(ManualLoop(), self.hear)  # type: ignore[arg-type]
        self.paths = {}
        for path in paths:
            world.ask(path)
            fd = os.open(world.share / path, os.O_PATH)
            self.paths[self.inotify.add(fd, CHANGES)] = path
            os.close(fd)

    def hear(self, number: int, mask: int, name: bytes) -> None:
        if mask & ATTRIB:
            self.heard.append((self.paths[number], name.decode()))

    def hears(self, path: str, *names: str) -> list[tuple[str, str]]:
        """When the host says that these names were changed there."""
        self.inotify.read()
        self.heard.clear()
        self.world.changed(path, *names)
        self.inotify.read()
        return list(self.heard)

    def forget_own(self) -> None:
        """What was changed until now was changed by the host, which is one with the sandbox here."""
        assert self.world.watches._inotify is not None
        self.world.watches._inotify.read()
        self.world.watches._own.clear()


@pytest.fixture
def program(world: _World) -> Iterator[_Program]:
    program = _Program(world, "src", "src/file")
    yield program
    program.inotify.close()


def test_what_the_host_changed_is_told(program: _Program) -> None:
    for _ in range(2):
        # What was done to tell it is no change of the sandbox's own.
        assert program.hears("src", "file") == [("src", "file"), ("src/file", "")]
    (program.world.share / "src/new").touch()
    program.forget_own()
    assert program.hears("src", "new") == [("src", "new")]
    assert program.hears("src", "deep") == [("src", "deep")]
    assert program.hears("src", "") == [("src", "")]


def test_what_the_sandbox_changed_is_not_told_once_more(program: _Program) -> None:
    file = program.world.share / "src/file"
    file.write_text("own")
    assert program.hears("src", "file") == []
    # Then it is the host's.
    assert program.hears("src", "file") == [("src", "file"), ("src/file", "")]
    file.unlink()
    assert program.hears("src", "file") == []
    assert program.world.held == {"src"}


def test_what_was_changed_long_ago_is_not_remembered(
    program: _Program, monkeypatch: pytest.MonkeyPatch
) -> None:
    (program.world.share / "src/file").write_text("own")
    program.world.watches._inotify.read()  # type: ignore[union-attr]
    monkeypatch.setattr(watches, "OWN_SECONDS", -1.0)
    assert program.hears("src", "file") == [("src", "file"), ("src/file", "")]


def test_what_the_host_removed_is_let_go_at_once(program: _Program) -> None:
    (program.world.share / "src/file").unlink()
    program.forget_own()
    # A change of the directory.
    assert ("src", "") in program.hears("src", "file")
    assert program.world.held == {"src"}


def test_a_directory_that_was_told_is_told_again(program: _Program) -> None:
    program.world.ask("")
    assert program.hears("src", "missing") == [("src", "")]
    assert program.hears("", "src") == [("src", "")]


def test_no_more_of_the_sandboxs_own_changes_are_remembered_than_that(
    program: _Program, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watches, "OWN", 3)
    for number in range(10):
        (program.world.share / f"src/{number}").touch()
    program.world.watches._inotify.read()  # type: ignore[union-attr]
    assert 0 < len(program.world.watches._own) <= 3


def test_what_goes_with_a_directory_is_let_go_at_once(program: _Program) -> None:
    (program.world.share / "src/deep/x/y").mkdir(parents=True)
    program.world.ask("src/deep/x/y")
    shutil.rmtree(program.world.share / "src/deep")
    program.forget_own()
    assert program.world.held == {"src", "src/file", "src/deep/x/y (deleted)"}
    assert program.hears("src", "deep") == [("src", "")]
    assert program.world.held == {"src", "src/file"}


def test_where_the_host_lost_count_all_is_looked_at(program: _Program) -> None:
    (program.world.share / "src/file").unlink()
    program.forget_own()
    program.hears("", "")
    assert program.world.held == {"src"}


def test_what_is_watched_by_the_host_is_not_looked_at(world: _World) -> None:
    world.ask("src/file")
    assert world.loop.due == []
    world.watches.unwatched("project", b"elsewhere")
    assert world.loop.due == []


def test_what_is_not_watched_is_left_alone(program: _Program) -> None:
    assert program.hears("src/deep", "x") == []
    assert program.hears("missing", "x") == []


def test_a_symlink_is_touched_itself(program: _Program) -> None:
    """Where it leads is none of the share's."""
    outside = program.world.share.parent / "outside"
    outside.touch()
    (program.world.share / "src/out").symlink_to(outside)
    before = outside.stat().st_ctime_ns
    program.forget_own()
    assert program.hears("src", "out") == [("src", "out")]
    assert outside.stat().st_ctime_ns == before


def test_a_directory_that_was_made_anew_is_watched_anew(program: _Program) -> None:
    shutil.rmtree(program.world.share / "src")
    (program.world.share / "src").mkdir()
    (program.world.share / "src/file").touch()
    program.world.ask("src")
    program.world.ask("src/file")
    (program.world.share / "src/file").write_text("own")
    again = _Program(program.world, "src")
    assert again.hears("src", "file") == []
    assert again.hears("src", "file") == [("src", "file")]
    again.inotify.close()


def test_a_directory_in_place_of_one_that_was_moved_is_another(program: _Program) -> None:
    (program.world.share / "src").rename(program.world.share / "moved")
    (program.world.share / "src").mkdir()
    again = _Program(program.world, "src")
    (program.world.share / "src/new").touch()
    again.forget_own()
    assert again.hears("src", "new") == [("src", "new")]
    # The host has to find it, too.
    assert [on for path, on in program.world.told if path == "src"] == [True, False, True]
    again.inotify.close()


def test_what_was_in_a_directory_that_was_made_anew_is_let_go(program: _Program) -> None:
    (program.world.share / "src/other").touch()
    program.world.ask("src/other")
    shutil.rmtree(program.world.share / "src")
    (program.world.share / "src").mkdir()
    (program.world.share / "src/file").touch()
    program.world.ask("src/file")
    program.world.loop.time_passes()
    assert program.world.held == {"src/file", "src (deleted)"}
    # By its place, where there is a directory again: who wants to hear of that asks anew.
    program.world.ask("src")
    assert program.world.held == {"src/file", "src"}


PATHS = st.sampled_from(["", "a", "b", "a/a", "a/b", "b/a", "a/a/a", "a/b/a", "b/a/a"])
STEPS = st.one_of(
    st.tuples(st.just("ask"), PATHS, st.integers(1, 3)),
    st.tuples(st.just("end"), st.integers(1, 3)),
    st.tuples(st.sampled_from(["mkdir", "touch", "remove"]), PATHS),
    st.tuples(st.just("move"), PATHS, PATHS),
    st.tuples(st.sampled_from(["changed", "unwatched"]), PATHS),
    st.tuples(st.just("look")),
)


class _ManyProcesses(_AsQemu):
    def pidfd_open(self, _process: int) -> int:
        return os.open("/dev/null", os.O_RDONLY)


@given(st.lists(STEPS, max_size=40))
def test_whatever_happens_what_is_held_is_known_and_nothing_is_left(steps: list[tuple[Any, ...]]) -> None:
    with tempfile.TemporaryDirectory() as directory, pytest.MonkeyPatch.context() as patched:
        patched.setattr(watches, "os", _ManyProcesses())
        patched.setattr(watches, "_leader", lambda thread: thread)
        patched.setattr(watches, "HELD", 5)
        before = set(os.listdir("/proc/self/fd"))
        world = _World(Path(directory).resolve(), patched)
        for step in steps:
            with suppress(OSError):
                take(world, *step)
            known = world.watches
            above = {each for place in known._held for each in watches._above(place)}
            assert above <= set(known._directories) == set(known._by_number.values())
            for place, each in known._directories.items():
                assert each.entries <= set(known._held)
                assert all(place == entry or place in watches._above(entry) for entry in each.entries)
            for owner in known._owners.values():
                assert owner.places <= set(known._held)
        world.release_all()
        os.close(next(iter(world.watches._shares.values())).fd)
        if world.watches._inotify is not None:
            world.watches._inotify.close()
        assert set(os.listdir("/proc/self/fd")) == before


def take(world: _World, kind: str, *arguments: Any) -> None:
    """A step of processes 1 to 3, of the sandbox or the host, or of time."""
    path = world.share / str(arguments[0]) if arguments else world.share
    match kind:
        case "ask":
            world.ask(arguments[0], process=arguments[1])
        case "end" if arguments[0] in world.watches._owners:
            world.watches._ended(world.watches._owners[arguments[0]])
        case "mkdir":
            path.mkdir()
        case "touch":
            path.touch()
        case "remove" if arguments[0]:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        case "move" if arguments[0]:
            path.rename(world.share / arguments[1])
        case "changed":
            world.changed(arguments[0], "a", "b", "")
        case "unwatched":
            world.watches.unwatched("project", arguments[0].encode())
        case "look":
            world.loop.time_passes()
