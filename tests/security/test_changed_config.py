"""A sandbox that changes the config of its project gets nothing by it: the next start asks, or refuses."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pexpect
import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "integration"))
from sandboxes import COMMAND, running

if TYPE_CHECKING:
    from conftest import Airlock

pytestmark = pytest.mark.usefixtures("base_image")

WANTED = '[mounts.all]\nsource = "/"\ntarget = "/\\u001b[31mhost"\n'
SHOWN = [
    b'+ airlock.local.toml: mounts.all.source = "/"',
    b'+ airlock.local.toml: mounts.all.target = "/\\u001b[31mhost"',
]


def test_what_a_sandbox_asks_for_is_shown_and_waits_for_a_yes(airlock: Airlock, project: Path) -> None:
    (project / "wanted").write_text(WANTED)
    done = airlock("start", "--", "cp", "wanted", "airlock.local.toml", cwd=project)
    assert done.returncode == 0
    assert b"airlock.local.toml was changed while the sandbox ran: the next start asks" in done.stderr
    for options in ((), ("-q",), ("--detach",)):
        refused = airlock("start", *options, cwd=project)
        assert refused.returncode == 2
        assert [line.strip() for line in refused.stderr.splitlines() if b"  + " in line] == SHOWN
        assert b"hint: `airlock config approve` agrees to this; or undo it" in refused.stderr
        assert b"\x1b" not in refused.stderr
    child = pexpect.spawn(
        os.fspath(COMMAND), ["start", "--", "true"], cwd=project, timeout=120, encoding="utf-8"
    )
    child.expect(r"mounts.all.source = ")
    child.expect(r"Start with it\? \[y/N\]")
    child.sendline("n")
    child.expect("not started")
    child.expect(pexpect.EOF)
    child.close()
    assert child.exitstatus == 1
    # As it was: nobody asks.
    (project / "airlock.local.toml").unlink()
    # Other words for the same are no change, neither are edits of one's own between runs.
    comment = "echo '# of the sandbox' >> airlock.toml"
    done = airlock("start", "--", "sh", "-c", comment, cwd=project)
    assert (done.returncode, b"was changed" in done.stderr) == (0, False)
    (project / "airlock.local.toml").write_text('[env]\nOURS = "yes"\n')
    done = airlock("-q", "start", "--", "sh", "-c", "echo $OURS", cwd=project)
    assert (done.returncode, done.stdout) == (0, b"yes\n")


def test_killed_or_not_the_sandbox_has_no_way_around(airlock: Airlock, project: Path) -> None:
    """What the config said was written down before the guest ran."""
    script = "echo harden=false >> airlock.toml; echo written; exec sleep infinity"
    with running(project, script) as sandbox:
        assert sandbox.stdout.readline() == b"written\n"
        sandbox.process.kill()
        sandbox.wait()
    refused = airlock("start", "--", "true", cwd=project)
    assert refused.returncode == 2
    assert b"+ airlock.toml: vm.harden = false" in refused.stderr
    approved = airlock("config", "approve", cwd=project)
    assert approved.returncode == 0
    assert b"Approved:" in approved.stdout
    assert b"+ airlock.toml: vm.harden = false" in approved.stdout
    assert airlock("start", "--", "true", cwd=project).returncode == 0
    assert b"nothing to approve" in airlock("config", "approve", cwd=project).stderr
