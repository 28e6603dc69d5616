"""What a host does to a sandbox: no room, nothing writable, odd paths, starts that race, sleep."""

from __future__ import annotations

import os
import queue
import re
import signal
import subprocess
import threading
import time
from typing import TYPE_CHECKING

import pytest
from sandboxes import COMMAND, running, write_config

if TYPE_CHECKING:
    from pathlib import Path

    from conftest import Airlock

    from airlock_store.store import Store

pytestmark = pytest.mark.usefixtures("base_image")


def in_small_filesystem(tmp_path: Path, script: str, size: str, **variables: str) -> str:
    """What a bash script says on both outputs, in an empty directory on a filesystem of its own of `size`.

    `mount -o remount,size=... .` changes that. In a mount namespace, for which nobody has to be root.
    """
    place = tmp_path / "small"
    place.mkdir()
    prelude = f"""
        exec 2>&1; mount -t tmpfs -o size={size} none {place}; cd {place}
        printf '[vm]\\nimage = "base"\\nmemory = "512 MB"\\ncpus = 1\\n' > airlock.toml
    """
    done = subprocess.run(
        ["unshare", "--mount", "--map-root-user", "bash", "-c", prelude + script],
        env={**os.environ, "AIRLOCK": os.fspath(COMMAND), **variables},
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, timeout=600, check=False,
    )  # fmt: skip
    return done.stdout.decode()


def test_a_store_without_room_for_an_index_is_told(tmp_path: Path) -> None:
    """apt waited for ever to try again what it could not write."""
    script = 'AIRLOCK_STORE=$PWD/store timeout 120 $AIRLOCK build base; echo "built: $?"'
    said = in_small_filesystem(tmp_path, script, "10m")
    assert said.endswith("built: 1\n")
    assert "No space left on device" in said
    assert "hint: Make room on the disk" in said


def test_a_host_disk_that_fills_up_breaks_nothing(tmp_path: Path) -> None:
    """The guest sees errors, the user is told why, and when there is room again all that was synced is there."""
    script = r"""
        $AIRLOCK start -- sh -c '
            cd /airlock/disk; echo precious > kept; sync
            dd if=/dev/urandom of=big bs=1M count=96 conv=fsync || echo the guest saw it; echo and goes on'
        echo "first: $?"
        $AIRLOCK start -- true
        echo "full: $?"
        mount -o remount,size=1g .
        $AIRLOCK start -- sh -ec '
            cd /airlock/disk; cat kept; rm -f big; dd if=/dev/zero of=big bs=1M count=96 conv=fsync
            cmp -n 96M big /dev/zero'
        echo "room: $?"
        e2fsck -fn .airlock/sandbox/disk.img >/dev/null 2>&1
        echo "fsck: $?"
    """
    said = in_small_filesystem(tmp_path, script, "32m")
    first, _, rest = said.partition("first: 0\n")
    assert "airlock: the host cannot write the sandbox's disk (" in first
    assert "disk.img): No space left on device; the sandbox sees I/O errors; make room" in first
    assert "the guest saw it\nand goes on\n" in first
    full, _, rest = rest.partition("full: 1\n")
    assert "No space left on device" in full
    assert "hint: make room" in full
    assert "precious\n" in rest
    assert rest.endswith("room: 0\nfsck: 0\n"), said


def test_no_room_for_a_new_disk(tmp_path: Path) -> None:
    script = """
        $AIRLOCK start -- true; echo "full: $?"
        mount -o remount,size=1g .; $AIRLOCK start -- echo fine; echo "room: $?"
    """
    said = in_small_filesystem(tmp_path, script, "64k")
    full, _, rest = said.partition("full: 1\n")
    assert "No space left on device" in full
    assert "Traceback" not in full
    assert rest == "fine\nroom: 0\n", said


@pytest.mark.parametrize(
    ("options", "fault", "reason"),
    [
        # Its RAM is a file there, which the machine cannot write any more while it boots.
        (
            "size=2g",
            'until [ -e "$STATES"/.new-*/ram ]; do :; done; mount -o remount,size=12m "$STATES"',
            "ended with status -7",
        ),
        # There is a file for the RAM, and none for the rest of the state.
        ("size=2g,nr_inodes=9", ":", "could not be saved: [Errno 28] No space left on device"),
    ],
    ids=["RAM", "device"],
)
def test_a_disk_that_fills_up_while_a_state_is_saved(
    tmp_path: Path, store: Store, options: str, fault: str, reason: str
) -> None:
    """On a filesystem of its own over the directory of states, which nobody else sees."""
    script = f"""
        mkdir -p "$STATES"; mount -t tmpfs -o {options},mode=700 none "$STATES"
        $AIRLOCK start -v -- echo fine & {fault} || echo "no fault"
        wait $!; echo "code: $?"; ls -A "$STATES" | grep -v lock
    """
    said = in_small_filesystem(tmp_path, script, "1g", STATES=os.fspath(store.root / "states"))
    (line,) = [line for line in said.splitlines() if line.startswith("airlock: no saved state: ")]
    assert reason in line
    assert line.endswith("; booting cold")
    assert said.endswith("fine\ncode: 0\n"), said


def test_a_read_only_project(tmp_path: Path) -> None:
    """Whether airlock was there before or not: it says what must be writable, and does not hang."""
    script = """
        mount -o remount,ro .; $AIRLOCK start -- true; echo "never: $?"
        mount -o remount,rw .; mkdir -p .airlock/sandbox; chmod 700 .airlock/sandbox; echo '*' > .airlock/.gitignore
        mount -o remount,ro .; $AIRLOCK start -- true; echo "before: $?"
    """
    said = in_small_filesystem(tmp_path, script, "1m")
    first, _, second = said.partition("never: 1\n")
    assert "Read-only file system" in first
    assert "the directory must be writable" in first
    assert "Read-only file system" in second
    assert "the directory must be writable" in second
    assert second.endswith("before: 1\n")
    assert "Traceback" not in said


def test_a_project_whose_path_is_odd(airlock: Airlock, tmp_path: Path) -> None:
    """Every character that a shell, a terminal, QEMU's options or a mount table takes for something else."""
    name = os.fsdecode(b"a b'c\"d,e=f,,g\\h$(i)`j`%s\tk\nl;m*n?[o]{p}#~\xc3\xbc\xe2\x98\xba\xff")
    project = tmp_path / name / "-below"
    project.mkdir(parents=True)
    write_config(project, '[mask.one]\npaths = ["hid den"]\n[mounts.up]\nsource = ".."\ntarget = "/up"\n')
    (project / "hid den").mkdir()
    (project / "hid den" / "secret").touch()
    script = "pwd; ls -A 'hid den' .airlock /up/-below/.airlock | grep -v :; cat from-host; echo guest > from-guest"
    (project / "from-host").write_text("host\n")
    done = airlock("-q", "start", "--", "sh", "-ec", script, cwd=project)
    assert done.returncode == 0, done.stderr
    assert b"".join(line for line in done.stdout.splitlines(True) if line.strip()) == (
        os.fsencode(project) + b"\nhost\n"
    )
    assert (project / "from-guest").read_text() == "guest\n"
    with running(project) as sandbox:
        assert sandbox.exec("pwd").stdout == os.fsencode(project) + b"\n"
    shown = airlock("show", cwd=project)
    assert shown.returncode == 0
    assert b"\\n" in shown.stdout or b" l;m" in shown.stdout
    assert airlock("rm", "-f", cwd=project).returncode == 0


def test_of_starts_that_race_one_wins(project: Path) -> None:
    starts = [
        subprocess.Popen(
            [COMMAND, "-q", "start", "--", "sh", "-c", "read line; echo $line"],
            cwd=project, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )
        for _ in range(4)
    ]  # fmt: skip
    ended: queue.Queue[subprocess.Popen[bytes]] = queue.Queue()
    for start in starts:
        threading.Thread(target=lambda start=start: (start.wait(), ended.put(start))).start()
    for loser in [ended.get(timeout=300) for _ in range(3)]:
        assert loser.returncode == 1
        _, err = loser.communicate()
        assert b"already running" in err or b"just now" in err, err
        starts.remove(loser)
    (winner,) = starts
    out, err = winner.communicate(b"won\n", timeout=300)
    assert (winner.returncode, out, err) == (0, b"won\n", b"")


def test_the_clock_is_right_at_the_start_and_after_a_sleep(project: Path) -> None:
    """A stopped QEMU and session stand in for a host that sleeps; a clock that is set wrong, for what that does."""
    write_config(project, "harden = false")
    with running(project, env={"AIRLOCK_HANG_SECONDS": "4"}) as sandbox:

        def off() -> float:
            before = time.time()
            guest = float(sandbox.sh("date +%s.%N"))
            after = time.time()
            return max(before - guest, guest - after, 0.0)

        assert off() < 1
        qemu = sandbox.qemu()
        os.kill(sandbox.process.pid, signal.SIGSTOP)
        os.kill(qemu, signal.SIGSTOP)
        # Longer than the silence at which a sandbox counts as hung: nothing tells of the time but the time.
        time.sleep(6)
        os.kill(qemu, signal.SIGCONT)
        os.kill(sandbox.process.pid, signal.SIGCONT)
        assert off() < 1
        for wrong in ("2001-01-01", "2037-01-01"):
            # `date` ends when the host has set the clock right.
            sandbox.sh(f"date -s {wrong}; while [ $(date +%Y) = {wrong[:4]} ]; do sleep 0.1; done")
            assert off() < 1
        assert sandbox.stop() == 143


def test_hundreds_of_commands_leave_nothing_behind(project: Path) -> None:
    with running(project) as sandbox:

        def left() -> tuple[list[str], int]:
            """The names of the guest's processes, zombies too, and how many descriptors the session has.

            By one shell that starts nothing itself; the kernel's own threads, children of 2, come and go.
            """
            lines = sandbox.sh('for p in /proc/[0-9]*/stat; do read -r line < $p && echo "$line"; done 2>&-')
            pairs = [re.fullmatch(r"\d+ \((.*)\) \S (\d+) .*", line) for line in lines.splitlines()]
            names = sorted(found[1] for found in pairs if found and found[2] != "2")
            return names, len(os.listdir(f"/proc/{sandbox.process.pid}/fd"))

        before = left()
        for number in range(200):
            assert sandbox.exec("sh", "-c", f"exit {number}").returncode == number
        at_once = [
            subprocess.Popen(
                [COMMAND, "exec", "sh", "-c", "cat; exit $0", str(number)],
                cwd=project, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            )
            for number in range(20)
        ]  # fmt: skip
        for number, command in reversed(list(enumerate(at_once))):
            out, _ = command.communicate(b"%d" % number, timeout=300)
            assert (out, command.returncode) == (b"%d" % number, number)
        assert left() == before


ESCAPES = r"\033]0;owned\007\033[2J\233[31m\r\nairlock: all is well\n"


def test_a_guest_cannot_draw_on_the_terminal_with_our_messages(airlock: Airlock, project: Path) -> None:
    """By a daemon's last words, and by the console that is shown when the kernel has died."""
    loud = f"""printf '{ESCAPES}' >&2; printf 'last\\033[5m' >&2; exit 1"""
    write_config(
        project,
        f"harden = false\n[daemons.loud]\ncommand = ['sh', '-c', '''{loud}''']\nmax_restarts = 1\n"
        "ready = { log = 'never' }\n",
    )
    done = airlock("start", "--", "true", cwd=project)
    assert done.returncode == 1
    assert b"it said: last\\x1b[5m\n" in done.stderr
    write_config(project, "harden = false")
    with running(project, f"printf '{ESCAPES}' > /dev/console; echo written; exec sleep infinity") as sandbox:
        assert sandbox.stdout.readline() == b"written\n"
        os.kill(sandbox.qemu(), signal.SIGKILL)
        code, _, died = sandbox.wait()
    assert code == 1
    assert b"\\x1b]0;owned\\x07\\x1b[2J" in died
    for said in (done.stderr, died):
        assert not any(byte < 32 and byte not in b"\n\t" for byte in said), said
        assert b"\x9b" not in said.decode().encode("latin-1", "replace")
        # What the guest said never begins a line of ours.
        assert b"\nairlock: all is well" not in said
