"""`airlock exec` in one sandbox that runs for this module: many commands, one after another and at once."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from typing import TYPE_CHECKING

import pytest
from sandboxes import COMMAND, Running, running, write_config

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from conftest import Airlock


@pytest.fixture(scope="module")
def sandbox(base_image: object, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    project = tmp_path_factory.mktemp("project")
    (project / "below").mkdir()
    write_config(
        project, '[env]\nGREETING = "hello"\nPRICE = "$$5 ${AIRLOCK_TEST_VALUE:} ${AIRLOCK_TEST_NONE:$USD}"'
    )
    with running(project, env={"AIRLOCK_TEST_VALUE": "US $$"}) as sandbox:
        yield sandbox


def test_output_and_code(sandbox: Running) -> None:
    done = sandbox.exec("sh", "-c", "cat; echo problem >&2; exit 3", input=b"in")
    assert (done.returncode, done.stdout, done.stderr) == (3, b"in", b"problem\n")


def test_found_from_below_and_started_there(sandbox: Running) -> None:
    assert sandbox.exec("pwd", cwd=sandbox.project / "below").stdout.decode().strip() == os.fspath(
        sandbox.project / "below"
    )


def test_a_relative_directory_is_relative_to_ours(sandbox: Running) -> None:
    assert sandbox.exec("-w", "below", "pwd").stdout.decode() == f"{sandbox.project}/below\n"
    assert (
        sandbox.exec("-w", "..", "pwd", cwd=sandbox.project / "below").stdout.decode()
        == f"{sandbox.project}\n"
    )


def test_directory_and_environment(airlock: Airlock, sandbox: Running) -> None:
    script = "pwd; echo $GREETING $ONE $TWO $OURS $HOME"
    options = ("-w", "/usr", "-e", "ONE=1 and", "-e", "TWO=", "-e", "OURS")
    done = airlock("x", *options, "sh", "-c", script, cwd=sandbox.project, env={"OURS": "a=b"})
    assert done.stdout == b"/usr\nhello 1 and a=b /root\n"
    assert sandbox.sh('echo "$PRICE"') == "$5 US $$ $USD\n"


def test_a_directory_that_is_not_there(airlock: Airlock, sandbox: Running) -> None:
    done = airlock("exec", "-w", "/nowhere", "true", cwd=sandbox.project)
    assert done.returncode == 126
    assert b"airlock: true: /nowhere: chdir: No such file or directory" in done.stderr
    # However long it is, and wherever its name would be cut.
    for name in ("é" * 120, "xé" + "é" * 119, "\udcff" * 250):
        done = airlock("exec", "-w", f"/{name}", "true", cwd=sandbox.project)
        assert done.returncode == 126
        assert done.stderr.startswith(b"airlock: true: /")
    assert sandbox.sh("echo alive") == "alive\n"


def test_several_at_once_keep_their_output_apart(sandbox: Running) -> None:
    script = "for i in 1 2 3; do echo $0; cat; done"
    commands = [
        subprocess.Popen(
            [COMMAND, "exec", "sh", "-c", script, str(number)],
            cwd=sandbox.project,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        for number in range(6)
    ]
    for number, command in reversed(list(enumerate(commands))):
        out, _ = command.communicate(b"x" * number, timeout=300)
        assert out == f"{number}\n{'x' * number}{number}\n{number}\n".encode()
        assert command.returncode == 0


def test_a_large_transfer_is_exact(sandbox: Running) -> None:
    data = os.urandom(24 << 20)
    assert sandbox.exec("cat", input=data).stdout == data


def test_output_that_cannot_be_written_is_told(sandbox: Running) -> None:
    # As in any other pipeline: SIGPIPE. And what is lost is no success, though the command knows nothing of it.
    for command, code in ((["yes"], 141), (["echo", "lost"], 1), (["sh", "-c", "echo lost; exit 7"], 7)):
        with open("/dev/full", "wb") as full:
            done = subprocess.run(
                [COMMAND, "exec", *command],
                cwd=sandbox.project, stdout=full, stderr=subprocess.PIPE, check=False,
            )  # fmt: skip
        assert done.returncode == code
        assert done.stderr == b"airlock: the command's output cannot be written: No space left on device\n"


def test_signals_reach_it(sandbox: Running) -> None:
    command = subprocess.Popen(
        [COMMAND, "exec", "sh", "-c", "trap 'exit 9' TERM; echo ready; while :; do sleep 0.1; done"],
        cwd=sandbox.project,
        stdout=subprocess.PIPE,
    )
    assert command.stdout is not None
    assert command.stdout.readline() == b"ready\n"
    command.send_signal(signal.SIGTERM)
    command.communicate(timeout=300)
    assert command.returncode == 9


def test_what_a_killed_exec_ran_is_hung_up(sandbox: Running) -> None:
    command = subprocess.Popen(
        [COMMAND, "exec", "sh", "-c", "echo $$; exec sleep 4321"],
        cwd=sandbox.project,
        stdout=subprocess.PIPE,
    )
    assert command.stdout is not None
    pid = int(command.stdout.readline())
    command.kill()
    command.communicate()
    # `tail --pid` returns when the process is gone, and not before.
    sandbox.sh(f"timeout 60 tail --pid={pid} -f /dev/null")


def test_one_that_is_too_long_is_refused_and_harms_nobody(sandbox: Running) -> None:
    # Linux takes no longer word than 128 KiB.
    done = sandbox.exec("true", *["x" * 100_000] * 3)
    assert done.returncode == 126
    assert b"Error: true: argument list too long\n" in done.stderr
    assert sandbox.exec("sh", "-c", "echo $# ${#1}", "sh", "x" * 100_000, "y").stdout == b"2 100000\n"


def test_locks_are_everybodys(sandbox: Running) -> None:
    assert sandbox.sh("stat -c %a /run/lock") == "1777\n"


def test_as_many_files_may_be_open_as_elsewhere(sandbox: Running) -> None:
    """What systemd gives: few at first, for programs that know no better, and many for those that ask."""
    assert sandbox.sh("ulimit -S -n; ulimit -H -n").split() == ["1024", "524288"]
    assert sandbox.sh("grep 'open files' /proc/1/limits").split()[3:5] == ["65536", "524288"]


def test_a_command_without_a_name_is_not_found(sandbox: Running) -> None:
    done = sandbox.exec("")
    assert (done.returncode, b"No such file or directory" in done.stderr) == (127, True), done.stderr


def test_shared_memory_may_hold_code(sandbox: Running) -> None:
    assert sandbox.sh("cp /bin/echo /dev/shm/x && /dev/shm/x run; rm /dev/shm/x") == "run\n"


def test_orphans_are_reaped(sandbox: Running) -> None:
    pid = int(sandbox.sh("sleep 0.2 & echo $!"))
    # A zombie is still there.
    sandbox.sh(f"while [ -e /proc/{pid} ]; do sleep 0.1; done")


def test_show_tells_of_the_running_sandbox(airlock: Airlock, sandbox: Running) -> None:
    shown = json.loads(airlock("show", "--json", cwd=sandbox.project).stdout)
    assert shown["path"] == os.fspath(sandbox.project)
    assert shown["status"] == "running"
    assert shown["cpus"] == 1


def test_a_second_start_is_refused_with_the_pid_of_the_first(airlock: Airlock, sandbox: Running) -> None:
    done = airlock("start", "--", "true", cwd=sandbox.project)
    assert done.returncode == 1
    assert f"already running (pid {sandbox.process.pid})" in done.stderr.decode()


def test_rm_refuses_while_it_runs(airlock: Airlock, sandbox: Running) -> None:
    done = airlock("rm", "-f", cwd=sandbox.project)
    assert done.returncode == 1
    assert b"already running" in done.stderr
    assert sandbox.sh("echo alive") == "alive\n"


def test_without_a_running_sandbox(airlock: Airlock, tmp_path: Path) -> None:
    done = airlock("exec", "true", cwd=tmp_path)
    assert done.returncode == 1
    assert b"no running VM" in done.stderr


def test_the_end_of_the_sandbox_ends_it(base_image: object, project: Path) -> None:
    with running(project) as sandbox:
        command = subprocess.Popen(
            [COMMAND, "exec", "sh", "-c", "echo up; exec sleep 4321"], cwd=project, stdout=subprocess.PIPE
        )
        assert command.stdout is not None
        assert command.stdout.readline() == b"up\n"
        assert sandbox.stop() == 143
        command.communicate(timeout=300)
        assert command.returncode in (143, 1)
        assert sandbox.exec("true").returncode == 1
