"""Running tools: their lines, their failures, and that none outlives a build."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import tracemalloc
from typing import TYPE_CHECKING, Any

import pytest

from airlock_builder import tools
from airlock_builder.build import plan
from airlock_store.contents import sha256_of
from airlock_store.errors import MissingToolError, StoreError
from airlock_store.store import Store

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


def test_lines_are_streamed_from_both_outputs() -> None:
    lines: list[str] = []
    tools.run(["/bin/sh", "-c", "echo one; echo two >&2; printf three"], log=lines.append)
    assert sorted(lines) == ["one", "three", "two"]


def test_a_line_without_end_does_not_fill_the_memory() -> None:
    """Its ends are kept: behind what does not end its line may come what does."""
    lines: list[str] = []
    script = "printf begun; head -c 100000000 /dev/zero | tr '\\0' x; echo ended; echo next"
    tracemalloc.start()
    try:
        tools.run(["/bin/sh", "-c", script], log=lines.append)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    long, after = lines
    assert (long[:6], long[-6:], after) == ("begunx", "xended", "next")
    assert " [...] " in long
    assert len(long) < 150_000
    assert peak < 10_000_000


def test_lines_of_all_usual_lengths_are_whole() -> None:
    lengths = (0, 1, 65535, 65536, 100000)
    script = f"for n in {lengths}: print('ä' * (n // 2) + 'a' * (n % 2), end='\\r\\n')"
    lines: list[str] = []
    tools.run([sys.executable, "-X", "utf8", "-c", script], log=lines.append)
    assert lines == ["ä" * (length // 2) + "a" * (length % 2) for length in lengths]


def test_what_cannot_be_told_is_an_error_when_the_tool_has_ended() -> None:
    def log(line: str) -> None:
        raise OSError(line)

    with pytest.raises(OSError, match=r"^1$"):
        tools.run(["/bin/sh", "-c", "seq 100000"], log=log)


def test_output_that_somebody_else_holds_is_waited_for_shortly() -> None:
    lines: list[str] = []
    tools.run(["/bin/sh", "-c", "echo $$; sleep 1000 & echo $!"], log=lines.append)
    os.kill(int(lines[1]), signal.SIGKILL)
    assert len(lines) == 2


def test_failure_says_the_last_lines() -> None:
    with pytest.raises(tools.ToolError) as caught:
        tools.run(["/bin/sh", "-c", "seq 100; exit 3"], log=lambda _: None)
    assert caught.value.message.splitlines()[0] == "sh failed (exit code 3)"
    assert caught.value.tail == tuple(str(n) for n in range(81, 101))


@pytest.mark.parametrize(
    "script",
    [
        "cat /etc/passwd >/dev/full",
        "cat /etc/passwd >/dev/full; seq 100; exit 1",
        'echo "E: You don\'t have enough free space in /var/cache/apt/archives/."; exit 1',
    ],
)
def test_a_disk_that_is_full_is_what_has_to_be_helped(script: str) -> None:
    with pytest.raises(tools.ToolError) as caught:
        tools.run(["sh", "-c", script], log=lambda _line: None)
    assert caught.value.hint == tools.FULL


def test_a_signal_is_named() -> None:
    with pytest.raises(tools.ToolError, match="killed by SIGKILL"):
        tools.run(["/bin/sh", "-c", "kill -9 $$"], log=lambda _: None)


def test_capture_keeps_everything_and_only_stdout() -> None:
    text = tools.capture([sys.executable, "-c", "import sys; sys.stderr.write('no'); print('x' * 9_000_000)"])
    assert len(text) == 9_000_001
    with pytest.raises(tools.ToolError, match="why"):
        tools.capture(["/bin/sh", "-c", "echo why >&2; exit 1"])


def test_bytes_that_are_no_text() -> None:
    lines: list[str] = []
    tools.run(["/bin/sh", "-c", r"printf '\377\n'"], log=lines.append)
    assert lines == ["\ufffd"]


def test_the_environment_is_clean(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET", "1")
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:3128")
    names = {line.partition("=")[0] for line in tools.capture(["/usr/bin/env"]).splitlines()}
    assert "SECRET" not in names
    assert {"PATH", "HOME", "LC_ALL", "TMPDIR", "http_proxy"} <= names
    assert tools.capture(["/usr/bin/env"], env={"A": "1"}) == "A=1\n"


@pytest.mark.parametrize(
    ("given", "used"), [(None, "/var/tmp"), ("", "/var/tmp"), ("here", "{}/here"), ("/a", "/a")]
)
def test_where_trees_are_built(
    given: str | None, used: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    if given is None:
        monkeypatch.delenv("TMPDIR", raising=False)
    else:
        monkeypatch.setenv("TMPDIR", given)
    assert tools.environment()["TMPDIR"] == used.format(tmp_path)


def test_a_missing_program_names_its_package(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(tools, "SEARCH_PATH", str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(MissingToolError) as caught:
        tools.find_program("newuidmap")
    assert caught.value.hint and "'uidmap'" in caught.value.hint


@pytest.mark.parametrize("path", [None, "", ":", ".", "bin::/nowhere"])
def test_no_program_of_the_current_directory_is_run(
    path: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "bin").mkdir()
    for name in ("tar", "bin/tar"):
        (tmp_path / name).write_text("#!/bin/sh\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.chdir(tmp_path)
    if path is None:
        monkeypatch.delenv("PATH")
    else:
        monkeypatch.setenv("PATH", path)
    assert str(tools.find_program("tar")) in {"/usr/bin/tar", "/bin/tar"}


def test_the_mmdebstrap_that_is_run_is_that_of_the_key(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = tmp_path / "mmdebstrap"
    own.write_text("#!/bin/sh\n")
    own.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin")
    assert tools.find_program("mmdebstrap") == own
    assert plan("base").image.inputs["disk"].inputs["rootfs"].parameters["mmdebstrap"] == sha256_of(own)


RUNNER = """
import signal, sys
from airlock_builder import tools
# A test run in the background of a shell inherits SIGINT as ignored.
signal.signal(signal.SIGINT, signal.default_int_handler)
tools.run(["/bin/sh", "-c", sys.argv[1]], log=lambda line: print(line, flush=True))
"""


def start_runner(script: str) -> tuple[subprocess.Popen[str], list[int]]:
    """A process that runs a tool, and the pids that the tool and its child told, each its own.

    A child that was forked, but not yet executed, would lose a signal that the shell traps.
    """
    process = subprocess.Popen(
        [sys.executable, "-c", RUNNER, script],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": ":".join(sys.path)},
    )
    assert process.stdout
    return process, [int(process.stdout.readline()) for _ in range(2)]


def wait_for_end(pid: int) -> None:
    try:
        handle = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    with os.fdopen(handle, "rb", closefd=True):
        import select

        assert select.select([handle], [], [], 60)[0], f"process {pid} still runs"


def test_interrupting_ends_the_tool_and_its_children() -> None:
    process, pids = start_runner("sh -c 'echo $$; exec sleep 1000' & echo $$; wait")
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=60)
    assert process.returncode not in (0, None)
    for pid in pids:
        wait_for_end(pid)


@pytest.fixture
def interruptible() -> Iterator[None]:
    """Ctrl-C as users have it; and another thread, which the signal may as well be delivered to."""
    over = threading.Event()
    other = threading.Thread(target=over.wait)
    other.start()
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)
    over.set()
    other.join()


@pytest.mark.usefixtures("interruptible")
@pytest.mark.parametrize("early", [True, False])
def test_an_interruption_around_the_fork_ends_it_too(early: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """It comes while sh starts the program, or when it runs and nobody waits for it yet."""
    started = []
    start = tools._start

    def interrupted(*arguments: Any, **options: Any) -> Any:
        if early:
            os.kill(os.getpid(), signal.SIGINT)
        command = start(*arguments, **options)
        started.append(command)
        if not early:
            os.kill(os.getpid(), signal.SIGINT)
        return command

    monkeypatch.setattr(tools, "_start", interrupted)
    with pytest.raises(KeyboardInterrupt):
        tools.run(["/bin/sleep", "1000"], log=lambda _line: None)
    wait_for_end(started[0].pid)


@pytest.mark.usefixtures("interruptible")
def test_an_interruption_at_the_end_comes_when_all_is_cleared(monkeypatch: pytest.MonkeyPatch) -> None:
    """sh waits for its threads then, with locks that nobody would release."""
    cleared = []
    start = tools._start

    def watched(*arguments: Any, **options: Any) -> Any:
        command = start(*arguments, **options)
        cleanup = command.process._process_exit_cleanup

        def interrupted(**options: Any) -> None:
            os.kill(os.getpid(), signal.SIGINT)
            cleanup(**options)
            cleared.append(command.pid)

        command.process._process_exit_cleanup = interrupted
        return command

    monkeypatch.setattr(tools, "_start", watched)
    with pytest.raises(KeyboardInterrupt):
        tools.run(["/bin/true"], log=lambda _line: None)
    assert len(cleared) == 1


@pytest.mark.usefixtures("interruptible")
def test_an_interruption_that_another_thread_gets_is_heard() -> None:
    """As one that comes just before the wait, it interrupts no call of the main thread."""
    lines: list[str] = []

    def log(line: str) -> None:
        # In another thread.
        lines.append(line)
        if line == "up":
            signal.pthread_kill(threading.get_ident(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        tools.run(["/bin/sh", "-c", "sleep 0.5; echo up; sleep 10; echo slept"], log=log)
    assert lines == ["up"]


def test_a_tool_that_could_not_hear_yet_is_asked_again() -> None:
    """As the first process of a PID namespace, which gets no signal that it has no handler for."""
    process, _ = start_runner(
        "trap '' TERM; echo $$; echo $$; sleep 1; trap 'echo polite; exit' TERM; while :; do sleep 0.1; done"
    )
    process.send_signal(signal.SIGINT)
    assert "polite" in process.communicate(timeout=60)[0].splitlines()


def test_an_impatient_user_interrupts_twice() -> None:
    """The first Ctrl-C asks the program to end, and this one says that it heard, but stays."""
    process, pids = start_runner(
        "trap 'echo no' TERM; sh -c 'echo $$; exec sleep 1000' & echo $$; wait; wait"
    )
    process.send_signal(signal.SIGINT)
    assert process.stdout and process.stdout.readline() == "no\n"
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=60)
    assert process.returncode not in (0, None)
    for pid in pids:
        wait_for_end(pid)


def test_what_a_tool_leaves_running_is_ended_with_it() -> None:
    process, pids = start_runner("(trap '' TERM; sh -c 'echo $$; exec sleep 1000') & echo $$; wait")
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=60)
    for pid in pids:
        wait_for_end(pid)


def test_interruptions_that_are_ignored_stay_ignored() -> None:
    """As in a build that a shell runs in the background."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        tools.run(["/bin/sh", "-c", "kill -INT $PPID"], log=lambda _line: None)
    finally:
        signal.signal(signal.SIGINT, before)


def test_a_tool_dies_with_a_builder_that_is_killed() -> None:
    process, pids = start_runner(
        "trap 'kill $!; exit' TERM; sh -c 'echo $$; exec sleep 1000' & echo $$; wait"
    )
    process.kill()
    process.communicate(timeout=60)
    for pid in pids:
        wait_for_end(pid)


BUILDER = """
import sys
from pathlib import Path
from airlock_builder import tools
from airlock_store.store import Store

def build(output):
    tools.run(["/bin/sh", "-c", sys.argv[2], "sh", output], log=lambda line: print(line, flush=True))

Store(Path(sys.argv[1])).realise("0" * 32, "thing", build)
"""


def test_the_next_builder_waits_for_tools_that_outlive_a_killed_one(tmp_path: Path) -> None:
    """What they still write must not get into its output; and nobody collects garbage meanwhile."""
    store, go = Store(tmp_path / "store"), tmp_path / "go"
    os.mkfifo(go)
    script = f"trap '' TERM; echo running; read word <'{go}'; echo late >\"$1/late\""
    process = subprocess.Popen(
        [sys.executable, "-c", BUILDER, store.root, script],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": ":".join(sys.path)},
    )
    assert process.stdout and process.stdout.readline() == "running\n"
    process.kill()
    process.wait()
    with pytest.raises(StoreError, match="a build is using the store"):
        store.gc()
    waited = []

    def waiting() -> None:
        waited.append(True)
        go.write_text("go\n")

    path = store.realise("0" * 32, "thing", lambda output: (output / "data").touch(), waiting=waiting)
    process.communicate()
    assert waited == [True]
    assert sorted(file.name for file in path.path.iterdir()) == ["data", "store.json"]
    assert list((store.root / ".tmp").iterdir()) == []
    assert store.gc().removed == (path,)


def test_what_tools_inherit_leaves_the_low_numbers_free(tmp_path: Path) -> None:
    """mmdebstrap has dash write to the lowest descriptor that is free; dash knows no number of two digits."""

    def inherited() -> set[int]:
        lines: list[str] = []
        tools.run(["/bin/sh", "-c", "ls /proc/$$/fd"], log=lines.append)
        return {int(line) for line in lines}

    found: set[int] = set()
    store = Store(tmp_path / "store")
    # Whoever runs the tests may have left us something, too.
    before = inherited()
    with store.in_use():
        store.realise("0" * 32, "thing", lambda _output: found.update(inherited()))
    # The step's lock, and twice that of the store.
    assert found - before == {100, 101, 102}
