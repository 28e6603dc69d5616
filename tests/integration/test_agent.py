"""The example for coding agents, as docs/agents.md has it: an ordinary user who works on the project with git."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from sandboxes import COMMAND

if TYPE_CHECKING:
    from conftest import Airlock

EXAMPLE = Path(__file__).parents[2] / "examples" / "agent"
OWNER = os.geteuid() or 4321
GIT = "git -c user.name=a -c user.email=a@test"


@pytest.fixture(scope="module")
def agent_image() -> None:
    """Built once for all of them."""
    subprocess.run([COMMAND, "build", "-q", EXAMPLE / "agent.toml"], check=True, stdout=subprocess.DEVNULL)


@pytest.fixture
def copied(agent_image: None, project: Path) -> Path:
    """A project with a copy of the example, which belongs to an ordinary user of the host."""
    for file in EXAMPLE.iterdir():
        shutil.copy(file, project)
    # Ports of the host are everybody's.
    (project / "airlock.local.toml").write_text("[network.ports.preview]\nenabled = false\n")
    if os.geteuid() == 0:
        for path in (project, *project.iterdir()):
            os.chown(path, OWNER, OWNER)
    return project


def run(airlock: Airlock, project: Path, script: str, **env: str) -> list[str]:
    done = airlock("start", "-q", "--", "bash", "-euc", script, cwd=project, env=env)
    assert done.returncode == 0, done.stderr
    assert done.stderr == b""
    return done.stdout.decode().splitlines()


def test_an_agent_works_on_a_project_with_git(airlock: Airlock, copied: Path) -> None:
    script = (
        f"git init -q; echo one >file; git add file; {GIT} commit -qm one; git log --format=%s; id -un;"
        "echo $AGENT_API_KEY; python3 -m venv --without-pip ~/.local/venv; ~/.local/venv/bin/python -c 'print(6 * 7)'"
    )
    assert run(airlock, copied, script, AGENT_API_KEY="k y") == ["one", "agent", "k y", "42"]
    assert {path.stat().st_uid for path in (copied / ".git", copied / "file")} == {OWNER}
    # It has no other key, and reaches nobody who is not named.
    script = "~/.local/venv/bin/python -c 'print(1)'; echo ${AGENT_API_KEY:-none}; curl -s http://www.test/ || echo $?"
    assert run(airlock, copied, script) == ["1", "none", "7"]
    # Root of the sandbox may use git there, too, though nothing of it is his.
    with (copied / "airlock.local.toml").open("a") as file:
        file.write('[vm]\nuser = "root"\n')
    assert run(airlock, copied, "git status --short file; git log --format=%s; id -un") == ["one", "root"]
