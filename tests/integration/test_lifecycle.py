"""A sandbox that goes on in the background: start --detach, exec, ps, logs, list, stop."""

from __future__ import annotations

import json
import os
import select
import shutil
import signal
import subprocess
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from conftest import TIMEOUT
from sandboxes import COMMAND, running, write_config

if TYPE_CHECKING:
    from collections.abc import Iterator

    from conftest import Airlock

DAEMON = """
[daemons.talker]
command = ["sh", "-c", "mkfifo /run/talk; echo problem >&2; echo begun; exec cat <>/run/talk"]
ready = { log = "begun" }
[daemons.maker]
command = ["true"]
restart = "on-failure"
"""


@pytest.fixture
def detached(airlock: Airlock, base_image: object, project: Path) -> Iterator[Path]:
    """A project whose sandbox runs in the background."""
    write_config(project, DAEMON)
    done = airlock("start", "--detach", cwd=project)
    assert done.returncode == 0, done.stderr
    assert b"airlock: daemon talker is up\n" in done.stderr
    yield project
    airlock("stop", cwd=project)


def test_a_sandbox_in_the_background(airlock: Airlock, detached: Path) -> None:
    assert airlock("exec", "sh", "-c", "echo in $PWD", cwd=detached).stdout.decode() == f"in {detached}\n"
    shown = json.loads(airlock("show", "--json", cwd=detached).stdout)
    assert shown["status"] == "running"
    listed = {each["path"]: each for each in json.loads(airlock("list", "--json", cwd=detached).stdout)}
    assert listed[os.fspath(detached)]["status"] == "running"

    assert airlock("stop", cwd=detached).returncode == 0
    # When stop returns nothing is left: a start need not wait, and the disk was put away in an orderly manner.
    again = airlock("start", "--", "echo", "again", cwd=detached)
    assert (again.returncode, again.stdout) == (0, b"again\n")
    for words in (["stop"], ["ps"], ["logs"]):
        done = airlock(*words, cwd=detached)
        assert done.returncode == 1
        assert b"no running VM" in done.stderr
    assert "stopped" in airlock("list", cwd=detached).stdout.decode()


def test_a_sandbox_whose_project_is_moved_is_where_that_is_now(airlock: Airlock, detached: Path) -> None:
    def listed() -> dict[str, str]:
        found = json.loads(airlock("list", "--json", cwd=detached.parent).stdout)
        return {each["path"]: each["status"] for each in found}

    moved = detached.with_name("moved")
    detached.rename(moved)
    deadline = time.monotonic() + TIMEOUT
    try:
        while os.fspath(moved) not in listed():
            assert time.monotonic() < deadline
        assert os.fspath(detached) not in listed()
        assert listed()[os.fspath(moved)] == "running"
        # In the sandbox all is where it was.
        (moved / "inner").mkdir(exist_ok=True)
        for directory, options in (
            (detached, ("-w", os.fspath(detached))),
            (detached, ()),
            (detached / "inner", ()),
        ):
            here = moved / directory.relative_to(detached)
            inner = airlock("exec", *options, "pwd", cwd=here)
            assert (inner.stdout.decode(), inner.stderr) == (f"{directory}\n", b"")
        assert airlock("stop", cwd=moved).returncode == 0
        assert listed()[os.fspath(moved)] == "stopped"
    finally:
        airlock("stop", cwd=moved)
        moved.rename(detached)


def test_a_sandbox_whose_directory_is_removed_does_not_stay_behind(airlock: Airlock, detached: Path) -> None:
    """As `git clean -fdx` does: nobody could find it any more, and its ports would stay taken."""
    pid = json.loads(airlock("show", "--json", cwd=detached).stdout)["running_pid"]
    (qemu,) = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    ends = [os.pidfd_open(pid), os.pidfd_open(int(qemu))]
    shutil.rmtree(detached / ".airlock")
    for end in ends:
        assert select.select([end], [], [], 120)[0]
        os.close(end)
    assert airlock("start", "--", "true", cwd=detached).returncode == 0


def test_a_command_whose_sandboxs_directory_is_removed_goes_on(project: Path) -> None:
    with running(project, "until test -e on; do sleep 0.1; done; exit 3") as sandbox:
        shutil.rmtree(project / ".airlock")
        assert b".airlock/sandbox was removed while the sandbox ran" in sandbox.stderr.readline()
        (project / "on").touch()
        assert sandbox.wait()[0] == 3


def test_ps_and_logs(airlock: Airlock, detached: Path) -> None:
    command = subprocess.Popen(
        [COMMAND, "exec", "sh", "-c", "echo up; exec sleep 4321"], cwd=detached, stdout=subprocess.PIPE
    )
    assert command.stdout is not None
    assert command.stdout.readline() == b"up\n"
    found = json.loads(airlock("ps", "--json", cwd=detached).stdout)
    assert {each["name"]: each["state"] for each in found["daemons"]} == {"talker": "up", "maker": "ended"}
    (attached,) = found["commands"]
    assert attached["argv"] == ["sh", "-c", "echo up; exec sleep 4321"]
    comm = airlock("exec", "cat", f"/proc/{attached['pid']}/comm", cwd=detached)
    assert comm.stdout == b"sleep\n"
    table = airlock("ps", cwd=detached).stdout.decode()
    assert [line.split()[:3] for line in table.splitlines()[1:3]] == [
        ["daemon", "talker", "up"], ["daemon", "maker", "ended"],
    ]  # fmt: skip
    command.send_signal(signal.SIGTERM)
    command.communicate(timeout=300)
    assert json.loads(airlock("ps", "--json", cwd=detached).stdout)["commands"] == []

    logs = airlock("logs", "talker", cwd=detached).stdout.decode()
    assert "begun\n" in logs
    assert "problem\n" in logs
    follower = subprocess.Popen([COMMAND, "logs", "-f", "talker"], cwd=detached, stdout=subprocess.PIPE)
    assert follower.stdout is not None
    while follower.stdout.readline() != b"problem\n":
        pass
    airlock("exec", "sh", "-c", "echo fresh >/run/talk", cwd=detached)
    while follower.stdout.readline() != b"fresh\n":
        pass
    follower.send_signal(signal.SIGINT)
    follower.communicate(timeout=300)
    done = airlock("logs", "talkre", cwd=detached)
    assert done.returncode == 1
    assert b"there is no daemon 'talkre' in this sandbox" in done.stderr


def test_what_cannot_start_in_the_background_says_so(airlock: Airlock, project: Path) -> None:
    write_config(project, '[daemons.none]\ncommand = ["/no/such/program"]\n')
    done = airlock("start", "-d", cwd=project)
    assert done.returncode == 1
    said = f"Error: {project}/airlock.toml:6:1: daemon none ended before it was ready\n"
    assert said.encode() in done.stderr
    assert airlock("stop", cwd=project).returncode == 1
    done = airlock("start", "-d", "--", "true", cwd=project)
    assert done.returncode == 2
    assert b"--detach runs no command" in done.stderr


def test_a_sandbox_that_is_still_starting_says_so_and_can_be_stopped(
    airlock: Airlock, base_image: object, project: Path
) -> None:
    write_config(
        project,
        '[daemons.d]\ncommand = ["sleep", "infinity"]\nready = { log = "never" }\nready_timeout = 250',
    )
    start = subprocess.Popen([COMMAND, "start", "--detach", "--cold"], cwd=project, stderr=subprocess.PIPE)

    def shown() -> str:
        done = airlock("show", "--json", cwd=project)
        return str(json.loads(done.stdout)["status"]) if done.returncode == 0 else ""

    # Until then there is nothing to be shown.
    while shown() != "starting":
        assert start.poll() is None
    for words in (["exec", "true"], ["ps"], ["logs"], ["net", "policy"]):
        done = airlock(*words, cwd=project)
        assert done.returncode == 1
        assert b"start" in done.stderr
        assert b"try again in a moment" in done.stderr
    assert airlock("stop", cwd=project).returncode == 0
    _, said = start.communicate(timeout=300)
    assert start.returncode == 1
    assert b"the sandbox was stopped while it started" in said
    assert airlock("stop", cwd=project).returncode == 1
    # It takes commands, but whoever started it still waits for its daemon.
    start = subprocess.Popen([COMMAND, "start", "--detach"], cwd=project, stderr=subprocess.PIPE)
    while shown() != "running":
        assert start.poll() is None
    assert airlock("exec", "true", cwd=project).returncode == 0
    assert airlock("stop", cwd=project).returncode == 0
    _, said = start.communicate(timeout=300)
    assert start.returncode == 1
    assert b"the sandbox was stopped while it started" in said
    assert not list((project / ".airlock/sandbox").glob("*.sock"))


def test_a_start_in_another_terminal_is_stopped(airlock: Airlock, base_image: object, project: Path) -> None:
    with running(project) as sandbox:
        attached = subprocess.Popen([COMMAND, "exec", "sleep", "4321"], cwd=project, stderr=subprocess.PIPE)
        while not json.loads(airlock("ps", "--json", cwd=project).stdout)["commands"]:
            pass
        assert airlock("stop", cwd=project).returncode == 0
        assert sandbox.wait()[0] == 143
        attached.communicate(timeout=300)
        assert attached.returncode in (143, 1)
