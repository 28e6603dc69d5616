"""Our own terminal and stderr, also when they are gone: a sandbox then still ends in an orderly manner."""

from __future__ import annotations

import os
import pty
import subprocess
import sys


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
        child = subprocess.Popen([sys.executable, "-c", script], stdin=ours, pass_fds=[main])
        os.close(main)
        os.close(ours)
        assert child.wait(60) == 0


def test_nobody_has_to_read_what_is_told() -> None:
    read, write = os.pipe()
    os.close(read)
    assert run("from airlock_runner.stdio import tell; tell('one'); tell('two')", stderr=write) == 0
    os.close(write)
