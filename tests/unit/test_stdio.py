"""Our own terminal and stderr, also when they are gone: a sandbox then still ends in an orderly manner."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
from typing import TYPE_CHECKING

from airlock_runner.stdio import tell

if TYPE_CHECKING:
    from pathlib import Path

    import pytest


def run(script: str, **stdio: int) -> int:
    return subprocess.run([sys.executable, "-c", script], timeout=60, check=False, **stdio).returncode


def test_a_terminal_that_was_closed_is_neither_set_nor_restored() -> None:
    for when in ("before", "after"):
        main, ours = pty.openpty()
        script = f"""
import os, signal
from airlock_runner.stdio import Terminal
signal.signal(signal.SIGHUP, signal.SIG_IGN)
terminal = Terminal()
assert terminal.present
if {when!r} == "before": os.close({main})
terminal.raw()
if {when!r} == "after": os.close({main})
terminal.restore()
assert terminal.size() == (24, 80)
"""
        child = subprocess.Popen([sys.executable, "-c", script], stdin=ours, stdout=ours, pass_fds=[main])
        os.close(main)
        os.close(ours)
        assert child.wait(60) == 0


def test_nobody_has_to_read_what_is_told() -> None:
    read, write = os.pipe()
    os.close(read)
    assert run("from airlock_runner.stdio import tell; tell('one'); tell('two')", stderr=write) == 0
    os.close(write)


def test_what_is_told_cannot_draw_on_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    tell("/home/\x1b[2Jme\r is\nfull")
    assert capsys.readouterr().err == "airlock: /home/\\x1b[2Jme\\r is\nfull\n"


def test_the_log_of_a_session_in_the_background_is_bounded(tmp_path: Path) -> None:
    script = f"""
import os
from pathlib import Path
from airlock_runner import detach
from airlock_runner.project import Project
from airlock_runner.stdio import tell
project = Project(Path({str(tmp_path)!r}))
project.prepare()
read, write = os.pipe()
background = detach._Background(project, write)
tell("before"); background.told()
background.up()
assert os.read(read, 9) == b"y"
detach.LIMIT = 1000
for number in range(1000):
    tell(f"line {{number}}"); background.told()
"""
    assert run(script) == 0
    logs = sorted(tmp_path.glob(".airlock/sandbox/session.log*"))
    assert [log.name for log in logs] == ["session.log", "session.log.1"]
    assert all(log.stat().st_size < 1100 for log in logs)
    last = (logs[1].read_text() + logs[0].read_text()).splitlines()
    assert last == [f"airlock: line {number}" for number in range(1000 - len(last), 1000)]
