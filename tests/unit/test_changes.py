"""What the host tells a sandbox whose programs watch files: names in directories of its shares, and nothing else."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from manual_loop import ManualLoop

from airlock_runner import changes
from airlock_runner.changes import Changes
from airlock_runner.machine.argv import Share

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping


class _Control:
    """Keeps the calls; the test answers them."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, str, list[str]]] = []
        self.answers: list[Callable[[Any], None]] = []
        self.unwatched: list[tuple[str, str]] = []

    def call(
        self,
        op: str,
        arguments: Mapping[str, Any],
        then: Callable[[Any], None],
        failed: Callable[[Any], None],
    ) -> None:
        if op == "unwatched":
            self.unwatched.append((arguments["share"], arguments["path"]))
            return
        assert op == "changed"
        self.calls.append((arguments["share"], arguments["path"], arguments["names"]))
        # One that refuses is no reason to stop.
        self.answers.append(failed if len(self.calls) % 2 else then)


class _World:
    """A project with a directory that is shared a second time, and one that is read-only."""

    def __init__(self, root: Path) -> None:
        self.root = root
        for name in ("src/deep", ".airlock", "shared"):
            (root / name).mkdir(parents=True)
        (root / "link").symlink_to("src")
        self.loop, self.control = ManualLoop(), _Control()
        shares = (
            Share("project", root),
            Share("again", root / "src"),
            Share("closed", root / "shared", read_only=True),
        )
        self.changes = Changes(self.loop, self.control, shares)  # type: ignore[arg-type]

    def watch(self, path: object, share: object = "project", on: object = True) -> None:
        self.changes.watch({"t": "event", "name": "watch", "share": share, "path": path, "on": on})

    def told(self) -> list[tuple[str, str, list[str]]]:
        """All that is told from here on, each call answered."""
        if self.changes._inotify is not None:
            self.changes._inotify.read()
        self.loop.time_passes()
        while self.control.answers:
            self.control.answers.pop()({})
        calls, self.control.calls = self.control.calls, []
        return calls


@pytest.fixture
def world(tmp_path: Path) -> Iterator[_World]:
    before = set(os.listdir("/proc/self/fd"))
    world = _World(tmp_path)
    yield world
    world.changes.close()
    assert set(os.listdir("/proc/self/fd")) == before


def test_changes_are_told_together(world: _World) -> None:
    world.watch("src")
    (world.root / "src/a").write_text("1")
    (world.root / "src/b").write_text("1")
    (world.root / "src/a").write_text("2")
    (world.root / "src/deep/not").touch()
    (world.root / "not").touch()
    assert world.told() == [("project", "src", ["a", "b"])]
    (world.root / "src/b").rename(world.root / "src/c")
    (world.root / "src/a").unlink()
    assert world.told() == [("project", "src", ["a", "b", "c"])]
    assert world.told() == []


def test_the_sandbox_sets_the_pace(world: _World) -> None:
    world.watch("src")
    world.watch("")
    inotify = world.changes._inotify
    assert inotify is not None
    (world.root / "src/a").touch()
    inotify.read()
    world.loop.time_passes()
    assert world.control.calls == [("project", "src", ["a"])]
    for name in "bcd":
        (world.root / "src" / name).touch()
        (world.root / name).touch()
        inotify.read()
        assert not world.loop.due
    assert len(world.control.calls) == 1
    world.control.answers.pop()({})
    world.control.answers.pop()({})
    names = ["b", "c", "d"]
    assert world.control.calls[1:] == [("project", "src", names), ("project", "", names)]


@pytest.mark.parametrize(
    "path",
    [
        "missing", "src/missing", "..", "src/..", "src/../src", ".", "src/.", "/", "/etc", "src/", "src//deep",
        "link", "link/deep", ".airlock", "src\0", "\ud800", "\udcff", "s" * 300, "a/" * 3000, "src/file",
        None, 1, ["src"], {},
    ],
)  # fmt: skip
def test_nothing_else_is_watched(world: _World, path: object) -> None:
    (world.root / "src/file").touch()
    world.watch(path)
    assert world.changes._numbers == {}
    # Then airlockd has to look.
    known = isinstance(path, str) and len(path) <= changes.PATH
    assert world.control.unwatched == ([("project", path)] if known else [])


@pytest.mark.parametrize("share", ["other", "", None, 1, ["project"]])
def test_no_other_share_is_watched(world: _World, share: object) -> None:
    world.watch("", share)
    assert (world.changes._numbers, world.control.unwatched) == ({}, [])


def test_what_the_host_removes_of_a_read_only_share_is_told(world: _World) -> None:
    (world.root / "shared/file").touch()
    world.watch("", "closed")
    (world.root / "shared/file").unlink()
    assert world.told() == [("closed", "", ["file"])]


def test_a_directory_that_becomes_a_symlink_leads_nowhere(world: _World, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (world.root / "src/deep").rmdir()
    (world.root / "src/deep").symlink_to(outside)
    world.watch("src/deep")
    (outside / "secret").touch()
    assert world.told() == []


def test_no_more_than_so_many_are_watched(world: _World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(changes, "DIRECTORIES", 2)
    for path in ("src", "src/deep", "shared"):
        world.watch(path)
    assert [path for _, path in world.changes._numbers] == ["src", "src/deep"]
    assert world.control.unwatched == [("project", "shared")]
    world.watch("src", on=False)
    world.watch("shared")
    assert [path for _, path in world.changes._numbers] == ["src/deep", "shared"]


def test_what_is_watched_no_more_is_not_told(world: _World) -> None:
    world.watch("src")
    assert world.changes._inotify is not None
    (world.root / "src/a").touch()
    world.changes._inotify.read()
    world.watch("src", on=False)
    world.watch("src", on=False)
    (world.root / "src/b").touch()
    assert world.told() == []
    assert world.changes._places == {}
    assert "inotify wd" not in Path(f"/proc/self/fdinfo/{world.changes._inotify._fd}").read_text()


def test_a_path_that_is_too_long_is_none(world: _World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(changes, "PATH", 5)
    world.watch("src/deep")
    assert world.changes._numbers == {}


def test_no_more_times_are_remembered_than_that(world: _World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(changes, "TIMES", 3)
    world.watch("src")
    for number in range(10):
        (world.root / f"src/{number}").touch()
        assert world.told() == [("project", "src", [str(number)])]
    assert 0 < len(world.changes._times) <= 3


def test_a_directory_may_be_in_two_shares(world: _World) -> None:
    world.watch("src")
    world.watch("", "again")
    (world.root / "src/a").touch()
    assert sorted(world.told()) == [("again", "", ["a"]), ("project", "src", ["a"])]
    world.watch("src", on=False)
    (world.root / "src/b").touch()
    assert world.told() == [("again", "", ["b"])]


def test_a_directory_that_is_gone_is_forgotten(world: _World) -> None:
    world.watch("src/deep")
    shutil.rmtree(world.root / "src/deep")
    assert world.told() == []
    assert (world.changes._numbers, world.changes._places) == ({}, {})
    (world.root / "src/deep").mkdir()
    world.watch("src/deep")
    (world.root / "src/deep/x").touch()
    assert world.told() == [("project", "src/deep", ["x"])]


def test_a_time_that_was_set_is_a_change_and_an_owner_is_none(world: _World) -> None:
    """airlockd sets the owner, so that programs in there hear of it."""
    file = world.root / "src/file"
    file.write_text("1")
    world.watch("src")
    file.write_text("2")
    assert world.told() == [("project", "src", ["file"])]
    os.chown(file, os.getuid(), -1)
    os.chown(world.root / "src/deep", os.getuid(), -1)
    assert world.told() == []
    os.utime(file, ns=(1, 1))
    assert world.told() == [("project", "src", ["file"])]
    os.chown(file, os.getuid(), -1)
    assert world.told() == []


def test_of_very_many_the_directory_is_told(world: _World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(changes, "NAMES", 2)
    world.watch("src")
    for name in "abcde":
        (world.root / "src" / name).touch()
    assert world.told() == [("project", "src", ["", "a", "b"])]


def test_where_the_kernel_lost_count_all_is_told(world: _World) -> None:
    world.watch("src")
    world.watch("shared")
    world.changes._on_change(-1, 0x4000, b"")
    assert world.told() == [("project", "src", [""]), ("project", "shared", [""])]


def test_a_user_with_no_watches_left_is_told_nothing(world: _World, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_arguments: object) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(changes.Inotify, "add", refuse)
    world.watch("src")
    assert (world.changes._numbers, world.control.unwatched) == ({}, [("project", "src")])
