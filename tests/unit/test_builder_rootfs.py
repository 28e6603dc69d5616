"""How a root filesystem is made: what mmdebstrap is told, and the hook that it runs."""

from __future__ import annotations

import fcntl
import os
import socket
import subprocess
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from airlock_builder.rootfs import leftovers, mmdebstrap
from airlock_builder.rootfs.room import room_for


def test_arguments_of_mmdebstrap() -> None:
    argv = mmdebstrap.arguments(
        mode="unshare",
        suite="trixie",
        arch="amd64",
        packages=["bash", "curl"],
        files=Path("/a b/files.tar"),
        hook=Path("/room/hook"),
        target=Path("/out/rootfs.tar"),
        port=1234,
    )
    assert argv[:6] == [
        "--mode=unshare",
        "--variant=apt",
        "--format=tar",
        "--architectures=amd64",
        "--include=bash,curl",
        "--skip=cleanup/apt,cleanup/reproducible",
    ]
    assert argv[-5:-3] == [
        "--customize-hook=upload '/a b/files.tar' /.airlock-files",
        "--customize-hook=/room/hook",
    ]
    assert argv[-3:] == [
        "trixie",
        Path("/out/rootfs.tar"),
        "deb [trusted=yes] http://127.0.0.1:1234/ trixie main",
    ]


@pytest.mark.parametrize(
    ("error", "heard"), [(ConnectionResetError(), False), (BrokenPipeError(), False), (ValueError(), True)]
)
def test_an_apt_that_leaves_early_is_no_error(
    error: Exception, heard: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    server = mmdebstrap._Server(tmp_path)
    with server:
        try:
            raise error
        except Exception:
            server._server.handle_error(socket.socket(), ("127.0.0.1", 1))
    assert ("Traceback" in capsys.readouterr().err) is heard


@pytest.mark.parametrize(
    ("lines", "says", "fails"),
    [
        (['echo "it\'s" $((1 + 1))', "echo 'two  words'"], ["it's 2", "two  words"], False),
        (["a=1\necho $a", "echo ${a-unset}"], ["1", "unset"], False),
        (["echo one; false; echo two", "echo three"], ["one"], True),
        (["echo $undefined", "echo three"], [], True),
    ],
)
def test_lines_reach_the_shell_as_they_are(lines: list[str], says: list[str], fails: bool) -> None:
    """The script that the hook hands to the shell of the new root, run by a shell without one."""
    script = mmdebstrap.script(lines, cleanup=())
    result = subprocess.run(["/bin/sh", "-uc", script], capture_output=True, text=True, check=False, cwd="/")
    output = result.stdout.splitlines()
    assert [line for line in output if not line.startswith("airlock-run: ")] == says
    assert (result.returncode != 0) == fails
    marks = [line.removeprefix("airlock-run: ") for line in output if line.startswith("airlock-run: ")]
    assert marks == (["0", "failed"] if fails else ["0", "1", "done"])


@pytest.mark.parametrize(
    ("lines", "failed", "said"),
    [
        (["printf hello", "echo this one fails; false"], 1, ["this one fails"]),
        (["echo fine", "printf oops; exit 1"], 1, ["oops"]),
        (["printf 'a\\n\\nb'; false"], 0, ["a", "", "b"]),
        (["true", "false"], 1, []),
        (["printf 'airlock-run: '; false"], 0, ["airlock-run: "]),
        (["printf end"], None, ["end"]),
    ],
)
def test_the_line_that_failed_is_told_however_output_ends(
    lines: list[str], failed: int | None, said: list[str]
) -> None:
    work: Any = SimpleNamespace(log=lambda _line: None)
    story = mmdebstrap._Story(work, len(lines))
    script = mmdebstrap.script(lines, cleanup=())
    result = subprocess.run(["/bin/sh", "-uc", script], capture_output=True, text=True, check=False)
    for line in result.stdout.splitlines():
        story.line(line)
    assert (story.failed, list(story.said)) == (failed, said)


def test_leftovers_go_but_not_what_the_recipe_put_there(tmp_path: Path) -> None:
    files = (
        "/etc/apt/sources.list",
        "/var/log/my own.log",
        "/var/tmp/a/b",
        "/var/lib/mine",
        "/var/log/apt.log/a",
    )
    others = (
        "etc/apt/sources.list.d/0000x",
        "var/log/dpkg.log",
        "var/tmp/junk",
        "var/tmp/.kept",
        "etc/.pwd.lock",
    )
    kept = leftovers.spared(files)
    assert kept == ["etc/apt/sources.list", "var/log/apt.log", "var/log/my own.log", "var/tmp/a"]
    for name in (*(file[1:] for file in files), *others):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    subprocess.run(["/bin/sh", "-euc", "\n".join(leftovers.removal(kept))], check=True, cwd=tmp_path)
    left = {f"/{path.relative_to(tmp_path)}" for path in tmp_path.rglob("*") if path.is_file()}
    assert left == {*files, "/var/tmp/.kept"}


def test_the_hook_is_a_script_that_a_shell_can_read(tmp_path: Path) -> None:
    (tmp_path / "hook").write_text(mmdebstrap.hook_script(['echo "it\'s" $((1 + 1))', "true\nfalse"]))
    subprocess.run(["/bin/sh", "-n", tmp_path / "hook"], check=True)


def test_a_tree_of_root_is_roots_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    work: Any = SimpleNamespace(
        store=SimpleNamespace(root=tmp_path), step=SimpleNamespace(key="0"), log=lambda _line: None
    )
    left, busy = (tmp_path / f"airlock-{os.geteuid()}-{name}" for name in ("left", "busy"))
    for directory in (left, busy):
        (directory / "tree").mkdir(parents=True)
    handle = os.open(busy, os.O_RDONLY)
    fcntl.flock(handle, fcntl.LOCK_EX)
    with room_for(work) as room:
        # An ordinary user's tree has to be passed through by the users that are mapped.
        assert room.stat().st_mode & 0o777 == (0o700 if os.geteuid() == 0 else 0o711)
    # What a killed builder of another step left goes too, and nobody's who still works there.
    assert list(tmp_path.iterdir()) == [busy]
    os.close(handle)
