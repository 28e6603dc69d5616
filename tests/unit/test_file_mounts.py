"""Single files, both ends in one process: the host's `Files` against airlockd's, over a socket, on real directories."""

from __future__ import annotations

import os
import socket
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from airlock_runner import files as host
from airlock_runner.control import Control
from airlock_runner.files import FileMount
from airlock_runner.project import Project
from airlockd import files as guest
from airlockd.protocol import files as shared
from airlockd.protocol import watch
from airlockd.protocol.link import Link
from airlockd.protocol.loop import Loop
from airlockd.root import FilePlace

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from airlock_store.errors import MachineError
    from airlockd.protocol.mux import Message


@pytest.fixture(autouse=True, scope="module")
def _quick() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(host, "PAUSE_SECONDS", 0.005)
        for module in (host, guest, shared):
            patch.setattr(module, "RACY_NS", 5_000_000)
        yield


class Pair:
    """A host's file and a sandbox's, with all between them. `settle` runs the loop until both have nothing to say."""

    def __init__(
        self, work: Path, *, read_only: bool = False, bound: bool = False, content: str = "old"
    ) -> None:
        self.loop = Loop()
        self.notes: list[str] = []
        self.source, self.target = work / "host" / "file", work / "guest" / "file"
        for path in (self.source, self.target):
            path.parent.mkdir()
        self.source.write_text(content)
        if bound:
            self.target.touch()
        project = Project(work / "project")
        project.root.mkdir()
        project.prepare()
        self.kept = project.directory
        ours, theirs = socket.socketpair()
        self.control = Control(self.loop, ours.detach(), self._on_event, self._closed)
        self.link = Link(self.loop, theirs.detach(), self._serve, self._closed)
        directory = os.open(self.target.parent, os.O_PATH | os.O_DIRECTORY)
        place = FilePlace(0, directory, "file", bound, read_only, (os.geteuid(), os.getegid()), "/target")
        self.guest = guest.Files(self.link, [place], self.tell)
        self.host = host.Files(self.loop, self.control, project, lambda _level, text: self.notes.append(text))
        self.failures: list[MachineError] = []
        self.up = False
        mount = FileMount(0, "m", self.source, "/target", read_only)
        self.host.start([mount], self._started, self.failures.append)
        self.settle()

    def tell(self, number: object) -> None:
        self.link.mux.send({"t": "event", "name": "file", "file": number})

    def settle(self) -> None:
        """Run until nothing is left to be carried over, twice in a row, for longer than any of the pauses."""
        quiet = 0
        while quiet < 2:
            # What was sent before a ping was received before its answer.
            self.control.call("ping", {}, lambda _header: self._rest(), lambda _header: None)
            self.loop.run()
            busy = self.host._busy or any(each.put or each.get for each in self.host._files)
            quiet = 0 if busy or self.guest._sending else quiet + 1

    def _rest(self) -> None:
        self.loop.call_later(0.015, self.loop.stop)

    def close(self) -> None:
        self.host.close()
        self.control.link.close()
        self.link.close()
        self.loop.close()

    def kept_texts(self) -> list[str]:
        return sorted(path.read_text() for path in self.kept.glob("m.kept-*"))

    def _started(self) -> None:
        self.up = True

    def _on_event(self, header: dict[str, Any]) -> None:
        assert header["name"] == "file"
        self.host.changed(header)

    def _closed(self, reason: str | None) -> None:
        assert reason is None

    def _serve(self, message: Message) -> None:
        header = message.header

        def answer(values: dict[str, Any]) -> None:
            self.link.mux.send({**values, "id": header["id"]})

        if header["op"] == "ping":
            answer({"t": "reply"})
            return
        try:
            (self.guest.put if header["op"] == "put_file" else self.guest.get)(header, answer)
        except OSError as error:
            self.link.refuse(header["streams"])
            answer({"t": "error", "message": str(error)})


@pytest.fixture
def pair(tmp_path: Path) -> Any:
    made = Pair(tmp_path)
    yield made
    made.close()


@pytest.fixture(params=["inotify", "looking"])
def any_pair(tmp_path: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Any:
    """With what the kernel tells, and without."""
    if request.param == "looking":
        monkeypatch.setattr(sys, "platform", "another")
        monkeypatch.setattr(watch, "LOOK_SECONDS", 0.001)
    made = Pair(tmp_path)
    yield made
    made.close()


def in_place(path: Path, text: str) -> None:
    path.write_text(text)


def by_rename(path: Path, text: str) -> None:
    new = path.with_name("new")
    new.write_text(text)
    new.replace(path)


def with_backup(path: Path, text: str) -> None:
    path.rename(path.with_name("backup"))
    path.write_text(text)


WRITES = [in_place, by_rename, with_backup]


@pytest.mark.parametrize("write", WRITES)
def test_finished_writes_come_over(any_pair: Pair, write: Callable[[Path, str], None]) -> None:
    assert any_pair.up
    assert any_pair.target.read_text() == "old"
    write(any_pair.source, "from the host")
    any_pair.settle()
    assert any_pair.target.read_text() == "from the host"
    write(any_pair.target, "from the sandbox")
    any_pair.settle()
    assert any_pair.source.read_text() == "from the sandbox"
    assert not any_pair.notes
    # Nothing of the way is left behind.
    assert {path.name for path in any_pair.source.parent.iterdir()} <= {"file", "backup"}


def test_large_and_empty_files(pair: Pair) -> None:
    data = os.urandom(3 << 20)
    pair.source.write_bytes(data)
    pair.settle()
    assert pair.target.read_bytes() == data
    pair.target.write_bytes(b"")
    pair.settle()
    assert pair.source.read_bytes() == b""


def test_the_sandbox_cannot_change_what_is_read_only(tmp_path: Path) -> None:
    pair = Pair(tmp_path, read_only=True, bound=True)
    pair.target.write_text("changed")
    pair.tell(0)
    pair.settle()
    assert pair.source.read_text() == "old"
    pair.close()


def test_a_file_that_is_mounted_keeps_its_inode(tmp_path: Path) -> None:
    pair = Pair(tmp_path, bound=True)
    before = pair.target.stat().st_ino
    pair.source.write_text("a shorter one"[2:9])
    pair.settle()
    assert (pair.target.read_text(), pair.target.stat().st_ino) == ("shorter", before)
    pair.close()


@pytest.mark.parametrize("number", [1, -1, None, True, "0", 1 << 70])
def test_the_sandbox_names_what_is_not_there(pair: Pair, number: object) -> None:
    pair.tell(number)
    pair.settle()
    assert pair.source.read_text() == "old"


def test_more_than_is_allowed_is_not_taken(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shared, "MAX_FILE", 1000)
    pair.target.write_text("x" * 1001)
    pair.settle()
    assert pair.source.read_text() == "old"
    assert ["cannot be taken over" in note for note in pair.notes] == [True]
    pair.target.write_text("x" * 1000)
    pair.settle()
    assert pair.source.read_text() == "x" * 1000


def test_a_refusal_begins_no_line_of_its_own(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    def get(header: dict[str, Any], answer: Callable[[dict[str, Any]], None]) -> None:
        pair.link.refuse(header["streams"])
        answer({"t": "error", "message": "no\nairlock: \x1b[2Jall is well"})

    monkeypatch.setattr(pair.guest, "get", get)
    pair.tell(0)
    pair.settle()
    assert pair.notes == ["mount m: /target cannot be taken over: no airlock: \\x1b[2Jall is well"]


def test_a_symlink_is_no_version_of_a_file(pair: Pair, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("secret")
    pair.source.unlink()
    pair.source.symlink_to(secret)
    pair.settle()
    assert pair.target.read_text() == "old"
    pair.target.write_text("mine")
    pair.settle()
    assert secret.read_text() == "secret"
    assert pair.source.is_symlink()
    assert pair.kept_texts() == ["mine"]
    assert (
        f"{pair.source} cannot be read (Too many levels of symbolic links); the sandbox's version is kept as"
        in (pair.notes[0])
    )


def test_a_deletion_is_no_change_and_undone_by_the_next(pair: Pair) -> None:
    pair.source.unlink()
    pair.target.unlink()
    pair.settle()
    assert not pair.source.exists()
    pair.target.write_text("again")
    pair.settle()
    assert pair.source.read_text() == "again"
    assert not pair.notes


def test_other_names_and_the_mode_of_the_hosts_file_stay(pair: Pair, tmp_path: Path) -> None:
    (tmp_path / "other").hardlink_to(pair.source)
    pair.source.chmod(0o600)
    pair.settle()
    pair.target.write_text("both")
    pair.target.chmod(0o4755)
    pair.settle()
    assert (tmp_path / "other").read_text() == "both"
    assert pair.source.stat().st_mode & 0o7777 == 0o600


@pytest.mark.parametrize(("first", "second"), [("host", "sandbox"), ("sandbox", "host")])
def test_of_two_changes_at_once_the_newer_stays_and_the_other_is_kept(
    pair: Pair, first: str, second: str
) -> None:
    paths = {"host": pair.source, "sandbox": pair.target}
    for number, side in enumerate((first, second)):
        paths[side].write_text(side)
        os.utime(paths[side], ns=(0, 10**18 + number * 10**9))
    pair.settle()
    assert (pair.source.read_text(), pair.target.read_text()) == (second, second)
    assert pair.kept_texts() == [first]
    assert len(pair.notes) == 1
    assert f"the {second}'s version is newer and stays" in pair.notes[0]


def test_a_change_of_the_same_size_in_the_same_tick_is_seen(pair: Pair) -> None:
    for path, other in ((pair.source, pair.target), (pair.target, pair.source)):
        for number in range(10, 30):
            path.write_text(f"{number}")
            pair.loop.call_later(0, pair.loop.stop)
            pair.loop.run()
        pair.settle()
        assert other.read_text() == "29"
    assert not pair.notes


def test_another_mode_on_the_host_is_no_conflict(pair: Pair) -> None:
    pair.source.chmod(0o600)
    os.utime(pair.source)
    pair.target.write_text("new")
    pair.settle()
    assert pair.source.read_text() == "new"
    assert not pair.notes


def test_a_touch_is_no_conflict(pair: Pair) -> None:
    pair.source.write_text("new")
    os.utime(pair.target)
    pair.settle()
    assert pair.target.read_text() == "new"
    assert not pair.notes


def test_two_equal_changes_are_no_conflict(pair: Pair) -> None:
    pair.source.write_text("same")
    pair.target.write_text("same")
    pair.settle()
    assert not pair.notes
    pair.target.write_text("and on")
    pair.settle()
    assert pair.source.read_text() == "and on"


def test_where_a_loser_cannot_be_kept_both_stay(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("airlock_runner.project.KEPT", 0)
    pair.source.write_text("ours")
    pair.target.write_text("theirs")
    pair.settle()
    pair.source.write_text("ours again")
    pair.target.write_text("theirs again")
    pair.settle()
    assert (pair.source.read_text(), pair.target.read_text()) == ("ours again", "theirs again")
    assert len(pair.notes) == 1
    assert "keep what each has" in pair.notes[0]


def test_a_directory_that_was_replaced_by_a_symlink_is_refused(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "file").touch()
    (tmp_path / "link").symlink_to("real")
    with pytest.raises(OSError, match="directory"):
        host._open_directory(tmp_path / "link")


def test_the_end_waits_until_the_host_has_everything(pair: Pair) -> None:
    # Written where no event tells of it, as through a mapping.
    pair.guest._watch.close()
    pair.target.write_text("last")
    settled: list[bool] = []
    pair.guest.settle(lambda: settled.append(True))
    assert not settled
    pair.settle()
    assert settled == [True]
    assert pair.source.read_text() == "last"


def test_what_cannot_be_sent_does_not_hold_up_the_end(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shared, "MAX_FILE", 1000)
    pair.guest._watch.close()
    pair.target.write_text("x" * 1001)
    settled: list[bool] = []
    pair.guest.settle(lambda: settled.append(True))
    pair.settle()
    assert settled == [True]
    assert pair.source.read_text() == "old"
    assert len(pair.notes) == 1


def test_trouble_is_told_once(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shared, "MAX_FILE", 1000)
    pair.target.write_text("x" * 1001)
    for _ in range(5):
        pair.tell(0)
        pair.settle()
    assert len(pair.notes) == 1


def test_where_the_directory_is_gone_the_sandboxes_version_is_kept(pair: Pair) -> None:
    pair.source.unlink()
    pair.source.parent.rmdir()
    pair.target.write_text("mine")
    pair.settle()
    assert pair.kept_texts() == ["mine"]
    assert f"{pair.source} cannot be written (No such file or directory)" in pair.notes[0]


class Histories(RuleBasedStateMachine):
    """Whatever both sides write, in whatever order: both end with one version, and nobody's last word is lost."""

    @initialize()
    def begin(self) -> None:
        import tempfile

        self.work = tempfile.TemporaryDirectory()
        self.pair = Pair(Path(self.work.name))
        self.written: list[str] = []
        self.seen = {"old"}

    @rule(at_host=st.booleans(), write=st.sampled_from(WRITES), settle=st.booleans())
    def write(self, *, at_host: bool, write: Callable[[Path, str], None], settle: bool) -> None:
        path = self.pair.source if at_host else self.pair.target
        # What a side overwrites by itself is gone, as it is without us.
        self.seen.add(path.read_text())
        text = f"{len(self.written)}"
        self.written.append(text)
        write(path, text)
        if settle:
            self.pair.settle()
            self.check()

    def check(self) -> None:
        assert self.pair.source.read_text() == self.pair.target.read_text()
        assert set(self.written) <= {self.pair.source.read_text(), *self.pair.kept_texts(), *self.seen}

    @invariant()
    def quiet(self) -> None:
        if hasattr(self, "pair"):
            assert not self.pair.failures

    def teardown(self) -> None:
        if hasattr(self, "pair"):
            self.pair.settle()
            self.check()
            self.pair.close()
            self.work.cleanup()


TestHistories = Histories.TestCase
TestHistories.settings = settings(max_examples=15, stateful_step_count=8, deadline=None)
