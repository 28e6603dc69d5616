"""`airlock start` on a real VM: exit codes, what a command sees, pipes, signals, hardening off and on."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import signal
import subprocess
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from sandboxes import COMMAND, running, write_config

from airlock_runner.project import Project

if TYPE_CHECKING:
    from conftest import Airlock

    from airlock_store.image import Image

pytestmark = pytest.mark.usefixtures("base_image")

GIB = 1024**3


@pytest.mark.parametrize(
    ("argv", "code", "complaint"),
    [
        (["sh", "-c", "exit 42"], 42, ""),
        (["sh", "-c", "kill -KILL $$"], 137, ""),
        (["no-such-command"], 127, "no-such-command: exec: No such file or directory"),
        (["/etc/passwd"], 126, "/etc/passwd: exec: Permission denied"),
    ],
)
def test_exit_codes(airlock: Airlock, project: Path, argv: list[str], code: int, complaint: str) -> None:
    done = airlock("start", "--", *argv, cwd=project)
    assert done.returncode == code
    assert complaint in done.stderr.decode()


def test_quiet_prints_the_output_of_the_command_only(airlock: Airlock, project: Path) -> None:
    for arguments in (("-q", "start"), ("start", "-q")):
        done = airlock(*arguments, "--", "cat", cwd=project, input=b"data\n")
        assert (done.returncode, done.stdout, done.stderr) == (0, b"data\n", b"")


def test_what_a_command_finds(airlock: Airlock, base_image: Image, tmp_path: Path) -> None:
    project = tmp_path / "a project, with ünusual: 'characters'"
    below = project / "below"
    below.mkdir(parents=True)
    write_config(project, '[env]\nGREETING = "hello"')
    (project / "from-host").write_text("host\n")
    script = """
        uname -r; . /etc/os-release; echo $ID $VERSION_CODENAME; id -u; pwd; hostname; cat /proc/1/comm
        cat from-host; echo guest > from-guest; chmod 755 from-guest
        echo $GREETING $HOME $USER; echo to stderr >&2
        test -w /airlock/disk && stat -fc %T /airlock/disk
        ls -A .airlock | wc -l
        awk '/MemTotal/ { print ($2 > 380000 && $2 < 524288) }' /proc/meminfo; nproc
        ls /sys/class/net
        date +%s
    """
    done = airlock("start", "--", "sh", "-ec", script, cwd=project)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.decode().splitlines()
    assert lines[:-1] == [
        base_image.kernel_release,
        "debian trixie",
        "0",
        os.fspath(project),
        "a-project-with-nusual-characters",
        "airlockd",
        "host",
        "hello /root root",
        "ext2/ext3",
        "0",
        "1",
        "1",
        "airlock0",
        "lo",
    ]
    assert b"to stderr\n" in done.stderr
    assert abs(int(lines[-1]) - (project / "from-guest").stat().st_mtime) < 60
    assert (project / "from-guest").read_text() == "guest\n"
    assert os.access(project / "from-guest", os.X_OK)


def test_variables_of_the_command_come_on_top(airlock: Airlock, project: Path) -> None:
    write_config(project, '[env]\nONE = "1"\nTWO = "2"')
    options = ("-e", "TWO=two", "-e", "OURS")
    done = airlock(
        "start", *options, "--", "sh", "-c", "echo $ONE $TWO $OURS", cwd=project, env={"OURS": "a=b"}
    )
    assert done.stdout == b"1 two a=b\n"


def test_what_airlockd_says_is_shown_by_level(airlock: Airlock, project: Path) -> None:
    debug = airlock("start", "--log-level", "debug", "--", "true", cwd=project).stderr.decode()
    assert re.search(r"airlockd: process \d+: true: started\n", debug)
    assert re.search(r"airlockd: process \d+: ended with 0\n", debug)
    assert "airlockd: process" not in airlock("start", "--", "true", cwd=project).stderr.decode()


def _pour(process: subprocess.Popen[bytes], total: int, digest: hashlib._Hash) -> None:
    assert process.stdin is not None
    block = os.urandom(1 << 20)
    for number in range(total >> 20):
        data = number.to_bytes(8, "big") + block[8:]
        digest.update(data)
        process.stdin.write(data)
    process.stdin.close()


def _peak_memory(pid: int) -> int:
    """Bytes: VmHWM of a process."""
    match = re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    assert match is not None
    return int(match[1]) * 1024


def test_a_gibibyte_each_way_is_exact_and_bounded(project: Path) -> None:
    """The command hands back what it is sent, so both directions are under load at the same time."""
    script = "cat; grep VmHWM /proc/1/status >&2"
    process = subprocess.Popen(
        [COMMAND, "-q", "start", "--", "sh", "-c", script],
        cwd=project,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdout is not None
    assert process.stderr is not None
    sent, received, peak = hashlib.sha256(), hashlib.sha256(), 0
    writer = threading.Thread(target=_pour, args=(process, GIB, sent))
    writer.start()
    size = 0
    while data := process.stdout.read(1 << 20):
        received.update(data)
        size += len(data)
        peak = max(peak, _peak_memory(process.pid)) if size < GIB else peak
    writer.join()
    assert process.wait() == 0
    assert size == GIB
    assert received.digest() == sent.digest()
    guest_peak = int(process.stderr.read().split()[1]) * 1024
    assert peak < 200 << 20
    assert guest_peak < 100 << 20


def test_a_reader_that_leaves_ends_the_command(project: Path) -> None:
    done = subprocess.run(
        f"{COMMAND} -q start -- sh -c 'yes; echo $? >&2' | head -n 2",
        shell=True,
        cwd=project,
        capture_output=True,
        timeout=300,
        check=False,
    )
    assert done.stdout == b"y\ny\n"
    assert done.stderr.split()[-1] in (b"141", b"1")


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 7), (signal.SIGTERM, 8)], ids=["SIGINT", "SIGTERM"]
)
def test_signals_reach_the_command(project: Path, number: signal.Signals, code: int) -> None:
    script = "trap 'exit 7' INT; trap 'exit 8' TERM; echo ready; while :; do sleep 0.1; done"
    with running(project, script) as sandbox:
        assert sandbox.stdout.readline() == b"ready\n"
        sandbox.process.send_signal(number)
        assert sandbox.wait()[0] == code


def test_a_command_that_ignores_signals_is_stopped_by_the_third(project: Path) -> None:
    with running(project, "trap '' INT; echo ready; while :; do sleep 0.1; done") as sandbox:
        assert sandbox.stdout.readline() == b"ready\n"
        for _ in range(3):
            sandbox.process.send_signal(signal.SIGINT)
            # Each is to be seen as one of its own.
            sandbox.exec("true")
        assert sandbox.wait()[0] == 130


def test_ctrl_c_at_any_moment_ends_it_and_leaves_nothing(airlock: Airlock, project: Path) -> None:
    """From the first file that a start makes on, at moments spread over the time that one takes."""
    write_config(project, '[daemons.d]\ncommand = ["sleep", "1000"]\n')

    def begin(script: str) -> subprocess.Popen[bytes]:
        shutil.rmtree(project / ".airlock", ignore_errors=True)
        start = subprocess.Popen(
            [COMMAND, "-q", "start", "--", "sh", "-c", script],
            cwd=project, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
        )  # fmt: skip
        while not (project / ".airlock/sandbox").exists():
            assert start.poll() is None
        return start

    whole = begin("true")
    before = time.monotonic()
    assert whole.wait(300) == 0
    duration = time.monotonic() - before
    moments = 8
    for moment in range(moments):
        start = begin("exec sleep 1000")
        with suppress(subprocess.TimeoutExpired):
            start.wait(duration * moment / moments)
        start.send_signal(signal.SIGINT)
        _, err = start.communicate(timeout=300)
        assert (start.returncode, err) == (130, b""), moment
        # Free only when its machine is gone, too.
        with Project(project).lock():
            pass
    assert airlock("-q", "start", "--", "true", cwd=project).returncode == 0


def test_closing_the_terminal_stops_the_sandbox(project: Path) -> None:
    with running(project, "trap '' HUP; exec sleep infinity") as sandbox:
        sandbox.process.send_signal(signal.SIGHUP)
        assert sandbox.wait()[0] == 129
    assert not (project / ".airlock/sandbox/cli.sock").exists()


def test_a_background_process_that_holds_the_output_does_not_hold_the_exit(
    airlock: Airlock, project: Path
) -> None:
    done = airlock("-q", "start", "--", "sh", "-c", "sleep 1000 & echo done", cwd=project)
    assert (done.returncode, done.stdout) == (0, b"done\n")


def test_standard_input_may_be_closed(project: Path) -> None:
    done = subprocess.run(
        f"{COMMAND} -q start -- sh -c 'cat; echo end' <&-",
        shell=True,
        cwd=project,
        capture_output=True,
        timeout=300,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, b"end\n"), done.stderr


def test_a_kernel_of_ones_own_is_booted_and_restored(
    airlock: Airlock, base_image: Image, project: Path
) -> None:
    kernel = project / "my kernel, mine"
    kernel.write_bytes(base_image.kernel.read_bytes())
    with (project / "airlock.toml").open("a") as file:
        file.write(f'kernel = "{kernel.name}"\n')
    for options in ((), ("--cold",)):
        done = airlock("start", *options, "--", "uname", "-r", cwd=project)
        assert done.stdout.decode().strip() == base_image.kernel_release, done.stderr
    kernel.unlink()
    done = airlock("start", "--", "true", cwd=project)
    assert done.returncode == 2
    assert f"{project}/airlock.toml:5:1: kernel {kernel} is not there".encode() in done.stderr
