"""Restored machines: quick, private, and never the reason why a start fails."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from sandboxes import COMMAND, running, write_config

from airlock_runner.config import load_config
from airlock_runner.machine import accel
from airlock_runner.machine.argv import Share
from airlock_runner.machine.qemu import find_qemu
from airlock_runner.machine.states import DEVICE, MANIFEST, RAM, States, digest_sparse, state_key
from airlock_runner.mounts import PROJECT
from airlock_runner.shape import machine_spec

if TYPE_CHECKING:
    from collections.abc import Callable

    from conftest import Airlock

    from airlock_store.image import Image
    from airlock_store.store import Store

pytestmark = pytest.mark.usefixtures("base_image")

COLD, SAVING = b"booting cold", b"saving the machine's state"


@pytest.fixture
def own_states(store: Store, project: Path) -> Path:
    """Where states lie, for a project of a shape that no other test has, so that its state is this test's own."""
    (project / "airlock.toml").write_text('[vm]\nimage = "base"\nmemory = "384 MB"\ncpus = 1\n')
    return store.root / "states"


@pytest.fixture
def state(airlock: Airlock, base_image: Image, project: Path, own_states: Path) -> Path:
    """The saved state of this project's shape, made if need be."""
    done = airlock("start", "--", "true", cwd=project)
    assert done.returncode == 0, done.stderr
    qemu = find_qemu(base_image.arch)
    shares = (Share(PROJECT, project),)
    spec = machine_spec(
        base_image, load_config(project), root=project, qemu=qemu, disk=Path("/disk"), shares=shares
    )
    verdict = accel.recall(qemu)
    assert verdict is not None
    state = own_states / state_key(base_image, replace(spec, accelerator=verdict.accelerator))
    assert state.is_dir()
    return state


def start(airlock: Airlock, project: Path) -> bytes:
    """A verbose start whose command must succeed; gives what it said."""
    done = airlock("start", "-v", "--", "sh", "-c", "echo good", cwd=project)
    assert (done.returncode, done.stdout) == (0, b"good\n"), done.stderr
    return done.stderr


def test_the_second_start_boots_no_kernel(airlock: Airlock, project: Path, state: Path) -> None:
    said = start(airlock, project)
    assert SAVING not in said
    assert COLD not in said
    # The restored kernel's clock goes on from the boot of the template, the console of which is not ours.
    done = airlock("start", "--", "sh", "-c", "dmesg | grep -c 'Linux version'; uptime -p", cwd=project)
    assert done.returncode == 0


def test_cold_means_cold(airlock: Airlock, project: Path, state: Path) -> None:
    used = state.stat().st_mtime_ns
    done = airlock("start", "--cold", "-v", "--", "true", cwd=project)
    assert done.returncode == 0
    assert state.stat().st_mtime_ns == used


RECIPE = """
[recipe]
name = "draws-test"
extends = "base"
[rootfs]
packages = ["openssh-client", "python3"]
"""
DRAWS = r"""
import os, random, socket, subprocess, tempfile, uuid

def sequence_number(port):
    with socket.socket() as client:
        client.bind(("127.0.0.1", port))
        client.connect(("127.0.0.1", 7777))
        for option, value in ((19, 1), (20, 2)):  # TCP_REPAIR, and of its queues the one for sending (linux/tcp.h)
            client.setsockopt(socket.IPPROTO_TCP, option, value)
        return client.getsockopt(socket.IPPROTO_TCP, 21) % 2**32

listener = socket.create_server(("127.0.0.1", 7777))
print("sequence-numbers", ",".join(str(sequence_number(port)) for port in range(5000, 5008)))
print("pid", os.getppid())
print("urandom", os.urandom(16).hex())
print("getrandom", os.getrandom(16).hex())
print("random", random.getrandbits(64))
print("hash", hash("a string"))
print("uuid4", uuid.uuid4())
print("name", tempfile.mktemp())
for name in ("/etc/machine-id", "/proc/sys/kernel/random/boot_id", "/proc/sys/kernel/random/uuid"):
    print(name, open(name).read())
print("hostname", socket.gethostname())
for line in open("/proc/self/maps"):
    if line.split()[-1] in ("[stack]", "[heap]", "[vdso]"):
        print(line.split()[-1], line.split()[0])
subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", "/tmp/host_key"], check=True)
print("ssh", open("/tmp/host_key.pub").read())
"""
"""What a program finds random or unique: a line for each, its name first."""


def test_two_sandboxes_of_one_state_have_nothing_random_in_common(airlock: Airlock, tmp_path: Path) -> None:
    (tmp_path / "draws.toml").write_text(RECIPE)
    drawn = []
    for name in ("one", "two"):
        project = tmp_path / name
        project.mkdir()
        (project / "draws.py").write_text(DRAWS)
        (project / "airlock.toml").write_text('[vm]\nimage = "../draws.toml"\nmemory = "512 MB"\ncpus = 1\n')
        done = airlock("start", "-v", "--", "sh", "-c", "python3 draws.py; exit $?", cwd=project)
        assert done.returncode == 0, done.stderr
        assert COLD not in done.stderr
        drawn.append(dict(line.split(" ", 1) for line in done.stdout.decode().splitlines() if line))
    assert len(drawn[0]) == len(drawn[1]) == 16
    numbers = [[int(word) for word in each["sequence-numbers"].split(",")] for each in drawn]
    assert [what for what in drawn[0] if drawn[0][what] == drawn[1][what]] == []
    # A sequence number is the time plus a hash with a secret: with one secret for both, the hashes would differ alike.
    apart = [[(number - each[0]) % 2**32 for number in each[1:]] for each in numbers]
    assert any(2**28 < (a - b) % 2**32 < 2**32 - 2**28 for a, b in zip(*apart, strict=True))


def test_the_clock_is_right_and_timers_run(airlock: Airlock, project: Path, state: Path) -> None:
    script = (
        "date +%s.%N; a=$(cut -d' ' -f1 /proc/uptime); sleep 0.5; b=$(cut -d' ' -f1 /proc/uptime); echo $a $b"
    )
    before = time.time()
    done = airlock("start", "--", "sh", "-c", script, cwd=project)
    after = time.time()
    now, up = done.stdout.decode().splitlines()
    assert before < float(now) < after
    first, second = (float(value) for value in up.split())
    assert 0.4 < second - first < 60


def test_the_disk_is_of_the_projects_size(airlock: Airlock, tmp_path: Path, state: Path) -> None:
    for size in ("256 MB", "6 GB"):
        project = tmp_path / size
        project.mkdir()
        text = f'[vm]\nimage = "base"\nmemory = "384 MB"\ncpus = 1\n[disk]\nsize = "{size}"\n'
        (project / "airlock.toml").write_text(text)
        script = "df --output=size -BM /airlock/disk | tail -1; cat /sys/block/vd?/queue/scheduler"
        done = airlock("start", "--", "sh", "-c", script, cwd=project)
        available, *schedulers = done.stdout.decode().splitlines()
        wanted = {"256 MB": 256, "6 GB": 6144}[size]
        assert 0.85 * wanted < int(available.strip().rstrip("M")) <= wanted
        # A driver that is bound again has forgotten that there is to be none.
        assert [line.split()[0] for line in schedulers] == ["[none]", "[none]"]


def flip(path: Path, at: int) -> None:
    with path.open("r+b") as file:
        file.seek(at)
        byte = file.read(1)
        file.seek(at)
        file.write(bytes([byte[0] ^ 4]))


def vouch(state: Path) -> None:
    """Have the digests be those of what is there, so that only QEMU and the guest can tell that it is wrong."""
    values = json.loads((state / MANIFEST).read_text())
    for name in (RAM, DEVICE):
        with (state / name).open("rb") as file:
            values[name] = digest_sparse(file.fileno())
    (state / MANIFEST).write_text(json.dumps(values))


def blank(path: Path) -> None:
    size = path.stat().st_size
    os.truncate(path, 0)
    os.truncate(path, size)


@pytest.mark.parametrize(
    "damage",
    [
        lambda state: os.truncate(state / DEVICE, 1000),
        lambda state: os.truncate(state / RAM, 1 << 20),
        lambda state: flip(state / DEVICE, 4000),
        lambda state: flip(state / RAM, 200 << 20),
        lambda state: (state / DEVICE).write_bytes(b"QEVM from another QEMU" * 1000),
        lambda state: (state / MANIFEST).unlink(),
        lambda state: ((state / DEVICE).write_bytes(b"QEVM from another QEMU" * 1000), vouch(state)),
        lambda state: (blank(state / RAM), vouch(state)),
    ],
    ids=[
        "device cut short",
        "RAM cut short",
        "device bit",
        "RAM bit",
        "another QEMU",
        "no manifest",
        "another QEMU with the right digest",
        "no RAM with the right digest",
    ],
)
def test_a_bad_state_is_dropped_and_the_start_works(
    airlock: Airlock, project: Path, state: Path, own_states: Path, damage: Callable[[Path], object]
) -> None:
    damage(state)
    said = start(airlock, project)
    assert COLD in said or SAVING in said
    # And the next is quick again, by a state made anew.
    start(airlock, project)
    assert SAVING not in start(airlock, project)


def test_a_first_start_that_is_killed_while_saving_leaves_no_trust(
    airlock: Airlock, project: Path, state: Path, own_states: Path
) -> None:
    States(own_states).drop(state.name)
    process = subprocess.Popen(
        [COMMAND, "start", "-v", "--", "true"], cwd=project, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE
    )
    assert process.stderr is not None
    for line in process.stderr:
        if SAVING in line:
            break
    process.send_signal(signal.SIGKILL)
    process.communicate()
    start(airlock, project)
    assert SAVING not in start(airlock, project)


def test_two_first_starts_race(airlock: Airlock, tmp_path: Path, state: Path, own_states: Path) -> None:
    States(own_states).drop(state.name)
    starts = []
    for name in ("one", "two"):
        project = tmp_path / name
        project.mkdir()
        (project / "airlock.toml").write_text('[vm]\nimage = "base"\nmemory = "384 MB"\ncpus = 1\n')
        starts.append(
            subprocess.Popen(
                [COMMAND, "start", "--", "echo", "good"],
                cwd=project,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
            )
        )
    for process in starts:
        out, _ = process.communicate(timeout=300)
        assert (process.returncode, out) == (0, b"good\n")


def test_a_state_may_be_deleted_while_a_sandbox_runs_on_it(project: Path, state: Path) -> None:
    with running(project) as sandbox:
        States(state.parent).drop(state.name)
        # Pages that were not touched yet come from the file now.
        assert sandbox.sh("cat /proc/kallsyms | wc -l; find /proc/sys -type f | wc -l; echo good").endswith(
            "good\n"
        )


def test_sandboxes_do_not_write_to_the_state(airlock: Airlock, project: Path, state: Path) -> None:
    done = airlock(
        "start", "--", "sh", "-c", "head -c 100000000 /dev/zero | tr '\\0' x > /dev/shm/x", cwd=project
    )
    assert done.returncode == 0, done.stderr
    saved = States(state.parent).find(state.name, 384 << 20)
    assert saved is not None
    saved.verify()
    saved.close()


def test_a_stopped_host_does_not_upset_a_sandbox(project: Path) -> None:
    """Suspended for a while, both the session and its machine go on where they were."""
    write_config(project, "")
    with running(project, env={"AIRLOCK_HANG_SECONDS": "4"}) as sandbox:
        both = (sandbox.process.pid, sandbox.qemu())
        for pid in both:
            os.kill(pid, signal.SIGSTOP)
        time.sleep(6)
        for pid in reversed(both):
            os.kill(pid, signal.SIGCONT)
        assert sandbox.sh("echo alive") == "alive\n"


def assert_turns_are_free(states: Path) -> None:
    """Nobody keeps one. Starts of other tests may have them for a moment."""
    places = list(states.glob(".turn-*.lock"))
    assert places
    for place in places:
        subprocess.run(["flock", "--timeout", "240", place, "true"], check=True)


def test_a_sandbox_that_runs_its_command_keeps_no_turn(project: Path, own_states: Path) -> None:
    with running(project):
        assert_turns_are_free(own_states)


def test_a_sandbox_in_the_background_keeps_no_turn(airlock: Airlock, project: Path, own_states: Path) -> None:
    done = airlock("start", "--detach", cwd=project)
    assert done.returncode == 0, done.stderr
    try:
        assert_turns_are_free(own_states)
    finally:
        airlock("stop", cwd=project)


def test_a_sandbox_that_waits_for_its_daemons_keeps_no_turn(project: Path, own_states: Path) -> None:
    began = project / "began"
    command = json.dumps(["sh", "-c", f"echo here > '{began}'; sleep infinity"])
    write_config(
        project, f'[daemons.slow]\ncommand = {command}\nready = {{ log = "never" }}\nready_timeout = 600\n'
    )
    start = subprocess.Popen(
        [COMMAND, "start", "--", "true"], cwd=project, stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        while not began.exists():
            assert start.poll() is None
            time.sleep(0.05)
        assert_turns_are_free(own_states)
    finally:
        start.terminate()
        start.wait(60)


def test_build_warm_makes_the_state_ahead(
    airlock: Airlock, project: Path, state: Path, own_states: Path
) -> None:
    States(own_states).drop(state.name)
    done = airlock("build", "--warm", "-q", cwd=project)
    assert done.returncode == 0, done.stderr
    said = start(airlock, project)
    assert SAVING not in said
    assert COLD not in said


def test_gc_removes_states(airlock: Airlock, tmp_path: Path) -> None:
    env = {"AIRLOCK_STORE": os.fspath(tmp_path)}
    directory = tmp_path / "states" / ("k" * 32)
    directory.mkdir(parents=True)
    (directory / RAM).write_bytes(bytes(1 << 20))
    done = airlock("store", "gc", "--states", env=env)
    assert done.returncode == 0, done.stderr
    assert b"1 MB freed" in done.stdout
    assert not directory.exists()
