"""The installed command from end to end: real image, real machine. What the issue's proof and the README promise."""

from __future__ import annotations

import json
import os
import pty
import subprocess
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from pathlib import Path

    from conftest import Airlock

    from airlock_store.image import Image


@pytest.mark.usefixtures("base_image")
def test_a_command_runs_in_the_sandbox_and_its_exit_code_is_ours(airlock: Airlock, project: Path) -> None:
    (project / "note.txt").write_text("from the host\n")
    script = 'echo "$(uname -s) $(id -u) $(pwd) $(cat note.txt)"; . /etc/os-release; echo "$ID"; echo oops >&2; exit 42'
    done = airlock("-q", "start", "--", "sh", "-c", script, cwd=project)
    assert done.stdout.decode() == f"Linux 0 {project} from the host\ndebian\n"
    assert done.stderr == b"oops\n"
    assert done.returncode == 42


@pytest.mark.usefixtures("base_image")
def test_stdin_reaches_the_command_and_show_and_rm_know_the_sandbox(airlock: Airlock, project: Path) -> None:
    done = airlock("start", "-q", "--", "cat", cwd=project, input=b"data\n")
    assert (done.stdout, done.stderr, done.returncode) == (b"data\n", b"", 0)

    below = project / "deep" / "down"
    below.mkdir(parents=True)
    shown = json.loads(airlock("show", "--json", cwd=below).stdout)
    assert shown["path"] == str(project)
    assert shown["status"] == "stopped"
    assert shown["image_name"] == "base"
    assert (shown["cpus"], shown["memory"], shown["disk_size"]) == (1, 512 << 20, 10 << 30)
    assert 0 < shown["disk_used"] < 1 << 30

    assert airlock("rm", cwd=project).returncode == 2
    removed = airlock("rm", "--force", cwd=project)
    assert (removed.stdout, removed.returncode) == (b"Sandbox removed\n", 0)
    assert airlock("show", cwd=project).returncode == 1


def test_the_image_may_be_a_store_path_and_garbage_collection_spares_it(
    airlock: Airlock, project: Path, base_image: Image
) -> None:
    done = airlock("-q", "start", "--image", str(base_image.path), "--", "true", cwd=project)
    assert (done.returncode, done.stderr) == (0, b"")
    assert (project / ".airlock" / "sandbox" / "image").resolve() == base_image.path
    inspected = json.loads(airlock("image", "inspect", base_image.path.name, "--json").stdout)
    assert inspected["path"] == str(base_image.path)
    assert inspected["kernel"] == base_image.kernel_release


def test_a_second_build_does_nothing(airlock: Airlock, base_image: Image) -> None:
    result = json.loads(airlock("build", "base", "--json").stdout)
    assert result["path"] == str(base_image.path)
    assert result["key"] == base_image.key
    assert all(step["cached"] for step in result["steps"])


def test_doctor_finds_this_machine_fit(airlock: Airlock) -> None:
    done = airlock("doctor", "--json")
    findings = {finding["name"]: finding for finding in json.loads(done.stdout)}
    assert done.returncode == 0, done.stdout.decode()
    assert findings["qemu"]["status"] == "ok"
    assert findings["accelerator"]["detail"].partition(":")[0] in ("kvm", "hvf", "tcg")


def test_the_store_verifies(airlock: Airlock, base_image: Image) -> None:
    done = airlock("store", "verify", str(base_image.path))
    assert (done.stdout.decode(), done.returncode) == (f"{base_image.path}: good\n", 0)


def test_without_a_config_a_terminal_is_asked(tmp_path: Path) -> None:
    from conftest import COMMAND

    terminal, end = pty.openpty()
    process = subprocess.Popen(
        [COMMAND, "start"], cwd=tmp_path, stdin=end, stdout=end, stderr=end, start_new_session=True
    )
    os.close(end)
    said = b""
    try:
        while b"[Y/n]" not in said:
            said += os.read(terminal, 1000)
        os.write(terminal, b"n\n")
        assert process.wait(60) == 2
    finally:
        process.kill()
        process.wait()
        os.close(terminal)
    assert b"No airlock.toml found" in said
    assert not (tmp_path / "airlock.toml").exists()
