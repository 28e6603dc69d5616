"""A guest that has taken over airlockd, against the real command: the connection ends with a reason, memory is bounded.

QEMU is a program that speaks as such a guest would, byte by byte; see hostile_qemu.py.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import pytest

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[1] / "integration"))
from hostile_qemu import ATTACKS, BEFORE
from sandboxes import COMMAND, write_config

if TYPE_CHECKING:
    from airlock_store.image import Image

pytestmark = pytest.mark.usefixtures("base_image")

LIMIT = 150 << 20
"""Bytes of memory that the command may have needed at most. The largest attack sends a hundred megabytes."""


# Between pytest and what is measured: a process starts with the peak of the one that it was forked from.
MEASURE = """
import os, subprocess, sys
process = subprocess.Popen(sys.argv[2:])
_, status, usage = os.wait4(process.pid, 0)
os.write(int(sys.argv[1]), b"%d" % usage.ru_maxrss)
sys.exit(os.waitstatus_to_exitcode(status))
"""


class Outcome(NamedTuple):
    code: int
    said: str
    memory: int


@pytest.fixture
def qemu(base_image: Image, tmp_path: Path) -> Path:
    """A directory for PATH with a QEMU that is none."""
    directory = tmp_path / "bin"
    directory.mkdir()
    script = directory / f"qemu-system-{base_image.arch}"
    stand_in = Path(__file__).with_name("hostile_qemu.py")
    script.write_text(f'#!/bin/sh\nexec "{sys.executable}" "{stand_in}" "$@"\n')
    script.chmod(0o755)
    return directory


def attack(project: Path, qemu: Path, name: str) -> Outcome:
    write_config(project, "verify_kernel = false")
    read, write = os.pipe()
    measured, measure = os.pipe()
    process = subprocess.Popen(
        [
            *(sys.executable, "-S", "-c", MEASURE, str(measure)),
            *(COMMAND, "start", "--cold", "--accel", "tcg", "--log-level", "warning", "--", "true"),
        ],
        cwd=project, stdin=subprocess.DEVNULL, stdout=write, stderr=subprocess.PIPE, pass_fds=(measure,),
        env={**os.environ, "PATH": f"{qemu}:{os.environ['PATH']}", "HOSTILE": name}, start_new_session=True,
    )  # fmt: skip
    os.close(write)
    os.close(measure)
    # One that hangs fails for its code.
    timer = threading.Timer(120, os.killpg, (process.pid, signal.SIGKILL))
    timer.start()
    # Nobody reads its standard output.
    said = process.communicate()[1].decode()
    timer.cancel()
    os.close(read)
    with os.fdopen(measured) as peak:
        return Outcome(process.returncode, said, int(peak.read() or "0") * 1024)


def check(outcome: Outcome, code: int, reason: str) -> None:
    assert (outcome.code, reason in outcome.said) == (code, True), outcome.said
    assert "Internal error" not in outcome.said
    assert "Traceback" not in outcome.said
    assert all(character.isprintable() or character in "\n\t" for character in outcome.said), outcome.said
    assert "\nairlock: fine" not in outcome.said
    assert outcome.memory < LIMIT


@pytest.mark.parametrize("name", ATTACKS)
def test_a_breach_ends_the_sandbox(project: Path, qemu: Path, name: str) -> None:
    check(attack(project, qemu, name), 1, ATTACKS[name][1])


@pytest.mark.parametrize("name", BEFORE)
def test_a_breach_before_ready_ends_the_start(project: Path, qemu: Path, name: str) -> None:
    check(attack(project, qemu, name), 1, BEFORE[name][1])


def test_a_flood_on_the_console_is_bounded(project: Path, qemu: Path) -> None:
    check(attack(project, qemu, "console-flood"), 1, "ended with status 1")


def test_odd_refusals_are_told_in_one_line(project: Path, qemu: Path) -> None:
    check(attack(project, qemu, "drawn-refusal"), 1, "could not be set up: \\x1b[31m no airlock: fine")
    check(attack(project, qemu, "odd-refusal"), 126, "true: {'a': [1]}")
