"""Daemons in real sandboxes: order and readiness, logs, crash loops, and those that do not want to end."""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING

from sandboxes import running, write_config

if TYPE_CHECKING:
    from pathlib import Path

    from conftest import Airlock

ORDERED = """
[env]
GREETING = "hello"
[daemons.second]
command = ["sh", "-c", "cat /run/socket-is-there; echo $GREETING $WHO; id -u; pwd; exec sleep infinity"]
after = ["first"]
cwd = "/usr"
env = { WHO = "second" }
ready = { log = "second" }
[daemons.first]
command = ["sh", "-c", "sleep 1; echo yes >/run/socket-is-there; echo out; echo err >&2; exec sleep infinity"]
ready = { command = ["test", "-e", "/run/socket-is-there"] }
"""


def test_they_start_in_order_and_the_command_after_them(
    airlock: Airlock, base_image: object, project: Path
) -> None:
    write_config(project, ORDERED)
    script = (
        "cd /airlock/daemons; cat first/stdout.log first/stderr.log second/stdout.log;"
        "cat /proc/$(pgrep -n sleep)/cgroup; grep CapBnd /proc/$(pgrep -n sleep)/status"
    )
    done = airlock("start", "--", "sh", "-ec", script, cwd=project)
    assert done.returncode == 0, done.stderr
    *lines, bounding = done.stdout.decode().splitlines()
    assert lines == ["out", "err", "yes", "hello second", "0", "/usr", "0::/daemon-second"]
    assert not int(bounding.split()[1], 16) & 1 << 21, "a hardened daemon has CAP_SYS_ADMIN"
    said = [line for line in done.stderr.decode().splitlines() if "daemon" in line]
    assert said == [
        "airlock: daemon first is up",
        "airlock: daemon second is up",
        "airlock: daemon second has stopped",
        "airlock: daemon first has stopped",
    ]


def test_one_runs_as_the_user_that_it_names(airlock: Airlock, project: Path) -> None:
    write_config(
        project,
        """
[daemons.his]
command = ["sh", "-c", "id -un; id -gn; echo $HOME >>/dev/stdout; touch /tmp/his; exec sleep 1000"]
user = "games"
ready = { command = ["sh", "-c", "[ $(id -un) = games ] && test -O /tmp/his"] }
[daemons.roots]
command = ["sh", "-c", "id -un; exec sleep 1000"]
after = ["his"]
""",
    )
    script = "cat /airlock/daemons/*/stdout.log; stat -c '%U %a' /dev/null; ls -A /airlock/daemons/his"
    done = airlock("start", "--", "sh", "-ec", script, cwd=project)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == b"games games /usr/games root root 666 stderr.log stdout.log".split()


def test_ports_and_sockets_tell_that_one_is_ready(airlock: Airlock, project: Path) -> None:
    perl = "use IO::Socket::INET; my $s = IO::Socket::INET->new(Listen=>9,LocalPort=>8099) or die; sleep 600"
    unix = "use IO::Socket::UNIX; my $s = IO::Socket::UNIX->new(Listen=>9,Local=>'/run/ready.sock') or die; sleep 600"
    write_config(
        project,
        f'[daemons.tcp]\ncommand = ["perl", "-e", "{perl}"]\nready = {{ tcp = 8099 }}\n'
        f'[daemons.unix]\ncommand = ["perl", "-e", "{unix}"]\nready = {{ socket = "/run/ready.sock" }}\n',
    )
    done = airlock(
        "start",
        "--",
        "sh",
        "-c",
        'test -S /run/ready.sock && grep -q ":1FA3 00000000:0000 0A" /proc/net/tcp && echo 1',
        cwd=project,
    )
    assert (done.returncode, done.stdout) == (0, b"1\n"), done.stderr


def test_one_that_ignores_its_signal_is_killed(airlock: Airlock, project: Path) -> None:
    write_config(
        project,
        "[daemons.deaf]\ntimeout = 1\n"
        """command = ["sh", "-c", "trap '' TERM; echo listening; while :; do sleep 1; done"]\n"""
        'ready = { log = "listening" }\n',
    )
    done = airlock("start", "--", "true", cwd=project)
    assert done.returncode == 0
    assert b"airlock: daemon deaf did not end in 1.0 s and is killed\n" in done.stderr
    assert b"airlock: daemon deaf has stopped\n" in done.stderr


def test_a_crash_loop_is_given_up_and_harms_nobody(airlock: Airlock, project: Path) -> None:
    command = "sleep 4321 & echo ouch >&2; exit 3"
    write_config(project, f'[daemons.crash]\ncommand = ["sh", "-c", "{command}"]\nmax_restarts = 1\n')
    # Until it was run a second time.
    script = (
        "until [ $(wc -l </airlock/daemons/crash/stderr.log) = 2 ]; do sleep 0.2; done; sleep 1;"
        # What it left behind is gone.
        "pgrep -x sleep; echo fine"
    )
    done = airlock("start", "--", "sh", "-c", script, cwd=project)
    assert (done.returncode, done.stdout) == (0, b"fine\n")
    assert b"daemon crash ended (exit code 3); restart 1 in 1.0 s\n" in done.stderr
    assert b"daemon crash ended (exit code 3) and is given up; it said: ouch\n" in done.stderr


def test_one_that_cannot_be_executed_fails_the_start(airlock: Airlock, project: Path) -> None:
    for command, cwd, how, place, advice in (
        ("/no/such/program", "/", "exec", "6:1", "/no/such/program has to be a program of the sandbox"),
        ("sleep", "/no/such", "/no/such: chdir", "7:1", "/no/such has to be a directory that is there"),
    ):
        write_config(project, f'[daemons.none]\ncommand = ["{command}", "9"]\ncwd = "{cwd}"\n')
        done = airlock("start", "--", "echo", "not reached", cwd=project)
        assert (done.returncode, done.stdout) == (1, b"")
        *_, told, error, hint = done.stderr.decode().splitlines()
        assert told == f"airlock: daemon none ended ({how}: No such file or directory) and is given up"
        assert error == f"Error: {project}/airlock.toml:{place}: daemon none ended before it was ready"
        assert hint.startswith(f"  hint: {advice}")


def test_a_stop_while_daemons_start_is_clean(airlock: Airlock, project: Path) -> None:
    write_config(
        project,
        '[daemons.slow]\ncommand = ["sh", "-c", "touch kept; exec sleep infinity"]\ncwd = "/var/tmp"\n'
        'ready = { log = "never" }\nready_timeout = 2\n',
    )
    import subprocess

    from sandboxes import COMMAND

    done = subprocess.run(
        [COMMAND, "start", "--", "true"], cwd=project, capture_output=True, timeout=300, check=False
    )
    assert done.returncode == 1
    assert b"Error: daemon slow was not ready after 2 seconds\n" in done.stderr
    write_config(project, "")
    with running(project) as sandbox:
        # It was put away in an orderly manner: what the daemon wrote is there.
        assert sandbox.sh("ls /var/tmp/kept") == "/var/tmp/kept\n"


def test_a_stop_says_which_daemon_it_waits_for(airlock: Airlock, project: Path) -> None:
    stubborn = "trap '' TERM; echo listening; while :; do sleep 1; done"
    write_config(
        project,
        f'[daemons.stubborn]\ncommand = ["sh", "-c", "{stubborn}"]\nready = {{ log = "listening" }}\ntimeout = 5\n'
        '[daemons.quick]\ncommand = ["sleep", "infinity"]\nafter = ["stubborn"]\n',
    )
    for options, said in (((), "airlock: waiting for daemon stubborn to end\n"), (("-q",), "")):
        with running(project):
            done = airlock(*options, "stop", cwd=project)
            assert (done.returncode, done.stderr.decode()) == (0, said)


def test_a_sandbox_that_can_start_nothing_goes_on_when_it_can(airlock: Airlock, project: Path) -> None:
    """Its own root lowers the number of processes: commands are refused, and a daemon's restart is tried again."""
    daemon = "mkfifo /run/end; echo risen; read x </run/end"
    write_config(
        project,
        f'harden = false\n[daemons.phoenix]\ncommand = ["sh", "-c", "{daemon}"]\nready = {{ log = "risen" }}\n',
    )
    limit = "/proc/sys/kernel/threads-max"
    # From the limit on this shell does without a fork. It goes on when it is told by a signal.
    script = (
        f"mkfifo /run/never; old=$(cat {limit}); trap 'echo $old >{limit}' USR1; echo 20 >{limit}; echo >/run/end;"
        "echo low; read x <>/run/never;"
        "until [ $(wc -l </airlock/daemons/phoenix/stdout.log) = 2 ]; do sleep 0.2; done; echo again"
    )
    with running(project, script) as sandbox:
        assert sandbox.stdout.readline() == b"low\n"
        done = airlock("exec", "true", cwd=project)
        assert done.returncode == 126
        assert b"airlock: true: [Errno 11] Resource temporarily unavailable\n" in done.stderr
        while b"daemon phoenix ended (not started: Resource" not in sandbox.stderr.readline():
            pass
        sandbox.process.send_signal(signal.SIGUSR1)
        assert sandbox.wait()[:2] == (0, b"again\n")


def test_a_sandbox_with_daemons_leaves_its_disk_clean(airlock: Airlock, project: Path) -> None:
    write_config(project, '[daemons.d]\ncommand = ["sh", "-c", "while echo x; do sleep 0.1; done"]\n')
    for _ in range(2):
        done = airlock("start", "--", "sh", "-c", "dmesg | grep -c 'EXT4-fs.*recovery'", cwd=project)
        assert done.stdout == b"0\n", done.stderr
