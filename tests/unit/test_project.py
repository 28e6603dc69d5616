"""A project's directory on the host: locks, state and disk, also where the guest has tampered with them."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from airlock_runner.config import load_config
from airlock_runner.project import DIRECTORY, DISK, LOCK, NEW_DISK, STATE, Project, ProjectError
from airlock_runner.start import StartRequest, settle_disk_size
from airlock_runner.state import State
from airlock_store.errors import ConfigError, UsageError

MIB = 1024**2
STATE_NOW = State("base", "/store/x-base", 2, 512 * MIB, 64 * MIB, "2026-01-02T03:04:05Z")


@pytest.fixture
def project(tmp_path: Path) -> Project:
    project = Project(tmp_path)
    project.prepare()
    return project


def test_find_walks_up(project: Project) -> None:
    below = project.root / "a" / "b"
    below.mkdir(parents=True)
    assert Project.find(below) == project
    assert Project.find(project.root) == project


def test_find_ignores_a_link_in_place_of_the_directory(tmp_path: Path) -> None:
    (tmp_path / ".airlock").mkdir()
    (tmp_path / DIRECTORY).symlink_to(tmp_path)
    assert Project.find(tmp_path) != Project(tmp_path)


def test_prepare_is_private_and_repeatable(project: Project) -> None:
    project.prepare()
    assert project.directory.stat().st_mode & 0o777 == 0o700
    assert (project.root / ".airlock/.gitignore").read_text() == "*\n"


def test_prepare_refuses_a_link(tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (tmp_path / ".airlock").symlink_to(elsewhere)
    with pytest.raises(ProjectError, match="is not a directory"):
        Project(tmp_path).prepare()
    assert list(elsewhere.iterdir()) == []


@pytest.mark.parametrize(
    "place",
    ["/", "/proc", "/proc/self", "/dev/shm/x", "/sys/fs", "/airlock/disk", "/usr", "/etc", "/run", "/var"],
)
def test_a_project_where_a_sandbox_has_a_directory_of_its_own_is_refused(place: str) -> None:
    with pytest.raises(UsageError, match=f"^{place} cannot be a project"):
        Project(Path(place)).check_place()


@pytest.mark.parametrize(
    "place",
    ["/root", "/home/me", "/srv/x", "/tmp", "/usr/src/tool", "/var/www/site", "/run/user/1000/x", "/process"],
)
def test_a_project_anywhere_else_is_fine(place: str) -> None:
    Project(Path(place)).check_place()


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="needs /proc")
def test_a_project_that_is_moved_is_found_by_its_lock(tmp_path: Path) -> None:
    project = Project(tmp_path / "old")
    project.root.mkdir()
    project.prepare()
    with project.lock() as lock:
        assert project.moved(lock) == project
        moved = Project(project.root.rename(tmp_path / "new"))
        assert project.moved(lock) == moved
        # What is no project's any more is not taken for one.
        (moved.root / ".airlock").rename(moved.root / "elsewhere")
        assert project.moved(lock) == project
        (moved.root / "elsewhere" / "sandbox" / LOCK).unlink()
        assert project.moved(lock) == project


HOLD = """
import sys; from pathlib import Path; from airlock_runner.project import Project
with Project(Path(sys.argv[1])).lock():
    print("held", flush=True); sys.stdin.read()
"""


def hold(project: Project) -> subprocess.Popen[str]:
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, project.root], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"
    return holder


def test_a_second_start_names_the_pid_that_holds_the_project(project: Project) -> None:
    with hold(project) as holder:
        assert project.running_pid() == holder.pid
        with pytest.raises(ProjectError, match=rf"already running \(pid {holder.pid}\)"), project.lock():
            pass
        holder.communicate("")
    assert project.running_pid() is None


def test_a_sandbox_is_starting_until_it_takes_commands(project: Project) -> None:
    assert project.status() is None
    with project.lock() as lock:
        starting = project.status()
        assert starting is not None
        assert (starting.state, starting.running_pid, starting.image_name) == ("starting", os.getpid(), "")
        project.note_up(lock)
        running = project.status()
        assert running is not None
        assert (running.state, running.running_pid) == ("running", os.getpid())
        # Whoever holds it next is not up because somebody was.
    with project.lock():
        again = project.status()
        assert again is not None
        assert again.state == "starting"
    project.write_state(STATE_NOW)
    stopped = project.status()
    assert stopped is not None
    assert stopped.state == "stopped"


def test_the_lock_of_a_killed_start_is_stale(project: Project) -> None:
    with hold(project) as holder:
        holder.kill()
    assert project.running_pid() is None
    with project.lock():
        assert project.running_pid() == os.getpid()


def test_a_lock_file_full_of_nonsense_is_no_obstacle(project: Project) -> None:
    (project.directory / LOCK).write_bytes(b"\xff" * 100)
    with project.lock():
        pass


def test_state_comes_back(project: Project) -> None:
    assert project.read_state() is None
    assert project.status() is None
    project.write_state(STATE_NOW)
    assert project.read_state() == STATE_NOW
    status = project.status()
    assert status is not None
    assert (status.image_name, status.running_pid, status.disk_size) == ("base", None, 64 * MIB)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", None),
        ("[]", None),
        ("{" * 100_000, None),
        ("[" * 60_000, None),
        ('{"image_name": 7, "cpus": "many", "memory": true}', State()),
        ('{"image_name": "x", "evil": 1}', replace(State(), image_name="x")),
    ],
)
def test_tampered_state_is_bounded_and_checked(project: Project, text: str, expected: State | None) -> None:
    (project.directory / STATE).write_text(text)
    assert project.read_state() == expected


def test_links_and_pipes_in_place_of_files_are_refused(project: Project, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("precious")
    for name in (LOCK, STATE, NEW_DISK, DISK):
        (project.directory / name).symlink_to(secret)
    assert project.read_state() is None
    with pytest.raises(ProjectError, match="not a regular file"), project.lock():
        pass
    with pytest.raises(ProjectError, match="is not a file"):
        project.ensure_disk(MIB)
    (project.directory / DISK).unlink()
    with pytest.raises(ProjectError, match="not a regular file"):
        project.ensure_disk(MIB)
    assert secret.read_text() == "precious"
    (project.directory / STATE).unlink()
    os.mkfifo(project.directory / STATE)
    assert project.read_state() is None


def test_a_disk_is_sparse_and_only_kept_once_formatted(project: Project) -> None:
    path, new = project.ensure_disk(64 * MIB)
    assert new
    assert path.stat().st_size == 64 * MIB
    assert path.stat().st_blocks == 0
    assert project.disk_size() is None
    # A start that died before it formatted leaves nothing that the next would trust.
    assert project.ensure_disk(64 * MIB) == (path, True)
    project.keep_disk()
    assert project.ensure_disk(64 * MIB) == (project.directory / DISK, False)
    assert project.ensure_disk(96 * MIB) == (project.directory / DISK, False)
    assert project.disk_size() == 96 * MIB


def test_remove_takes_everything_but_not_while_it_runs(project: Project) -> None:
    project.ensure_disk(MIB)
    with hold(project):
        with pytest.raises(ProjectError, match="already running") as caught:
            project.remove()
        assert caught.value.hint == "end it first with `airlock stop`"
        assert project.directory.exists()
    project.remove()
    assert not project.directory.exists()


@pytest.mark.parametrize("place", [".airlock", ".airlock/sandbox"])
def test_a_symlink_on_the_way_to_the_directory_is_not_followed(
    project: Project, tmp_path: Path, place: str
) -> None:
    """Root in a sandbox without hardening can make one, also while a session runs that has all checks behind it."""
    other = Project(tmp_path / "other")
    other.root.mkdir()
    other.prepare()
    for name in (DISK, "cli.sock", "net.log"):
        (other.directory / name).write_text("other's")
    before = {path.name: path.read_text() for path in other.directory.iterdir()}
    (project.root / place).rename(project.root / "moved")
    (project.root / place).symlink_to(other.root / place)
    for touch in (
        lambda: project.forget("cli.sock"), lambda: project.rotate("net.log", "net.log.1"), project.drop_disk,
        lambda: project.keep("m", b"x"), lambda: project.open_log("session.log"), project.wait_until_free,
        lambda: project.write_state(STATE_NOW), project.keep_disk, project.remove, lambda: project.write_console("x"),
    ):  # fmt: skip
        with pytest.raises((OSError, ProjectError)):
            touch()
    assert project.disk_size() is None
    assert {path.name: path.read_text() for path in other.directory.iterdir()} == before


def test_who_waits_for_a_sandbox_that_is_removed_does_not_run_beside_the_next(project: Project) -> None:
    """The file that was locked is gone with the directory, and a lock on it keeps nobody away."""
    before = os.open(project.directory / LOCK, os.O_RDWR | os.O_CREAT)
    project.remove()
    project.prepare()

    class Late(Project):
        def _open(self, name: str, flags: int) -> int:
            return os.dup(before) if name == LOCK else super()._open(name, flags)

    with pytest.raises(ProjectError, match="was removed just now"), Late(project.root).lock():
        pass
    with project.lock():
        assert project.running_pid() == os.getpid()
    os.close(before)


def test_a_disk_that_is_cut_short_is_refused_and_left(project: Project) -> None:
    project.write_state(STATE_NOW)
    (project.directory / DISK).write_bytes(b"x" * MIB)
    with pytest.raises(ProjectError, match="is cut short"):
        project.ensure_disk(STATE_NOW.disk_size)
    assert (project.directory / DISK).stat().st_size == MIB


def test_a_size_below_that_of_the_disk_is_told_at_its_place(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "isatty", lambda _fd: False)
    config = project.root / "airlock.toml"
    config.write_text('[disk]\nsize = "64 MB"\n')
    project.ensure_disk(96 * MIB)
    project.keep_disk()
    with pytest.raises(ConfigError) as caught:
        settle_disk_size(StartRequest(project, image=Any, config=load_config(project.root), argv=()))
    assert str(caught.value).startswith(f"{config}:2:1: the disk would shrink from 96 MB to 64 MB")
    assert project.disk_size() == 96 * MIB


def test_a_sandbox_of_another_user_is_left_to_its_owner(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)
    for use in (project.prepare, project.remove):
        with pytest.raises(ProjectError, match="belongs to another user"):
            use()


def trouble(project: Project) -> str:
    status = project.status()
    assert status is not None
    assert status.state == "broken"
    return status.trouble.replace(f"{project.root}", "")


@pytest.mark.parametrize("content", ["", "{", "[]", "\udcff"])
def test_a_broken_state_is_no_sandbox_that_is_not_there(project: Project, content: str) -> None:
    (project.directory / STATE).write_bytes(os.fsencode(content))
    (project.directory / DISK).write_bytes(b"x" * MIB)
    told = "/.airlock/sandbox/state.json is broken: the next start writes it anew, and keeps the disk"
    assert trouble(project) == told
    with project.lock():
        status = project.status()
        assert status is not None
        assert (status.state, status.disk_size) == ("starting", MIB)
    project.write_state(STATE_NOW)
    status = project.status()
    assert status is not None
    assert (status.state, status.trouble) == ("stopped", "")


@pytest.mark.parametrize("place", [".airlock", ".airlock/sandbox"])
@pytest.mark.parametrize("kind", ["file", "symlink"])
def test_what_is_in_the_place_of_the_directory_is_told(project: Project, place: str, kind: str) -> None:
    path = project.root / place
    path.rename(project.root / "moved")
    if kind == "file":
        path.touch()
    else:
        path.symlink_to(project.root / "moved")
    assert trouble(project) == f"/{place} is not a directory: remove it"
    for use in (project.prepare, project.check_directory):
        with pytest.raises(ProjectError, match=f"{path} is not a directory") as caught:
            use()
        assert caught.value.hint == "remove it"


@pytest.mark.parametrize("place", [".airlock", ".airlock/sandbox"])
def test_a_directory_that_may_not_be_entered_is_told(
    project: Project, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    path = project.root / place
    real = os.open

    def refuse(name: str | Path, *arguments: Any, **keywords: Any) -> int:
        if Path(name).name == path.name:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), name)
        return real(name, *arguments, **keywords)

    monkeypatch.setattr(os, "open", refuse)
    assert trouble(project) == f"/{place} cannot be read: Permission denied: chmod u+rwx /{place}"


def test_a_project_without_a_sandbox_has_no_trouble(tmp_path: Path) -> None:
    for _ in range(2):
        Project(tmp_path).check_directory()
        assert Project(tmp_path).status() is None
        (tmp_path / ".airlock").mkdir(exist_ok=True)
