"""What `make` and its scripts install, print and leave alone. apt and sudo are stand-ins that note what they get."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).resolve().parents[2]
REAL = ("bash", "sh", "env", "grep", "dirname", "true")
USE = ["qemu-system-x86", "mmdebstrap", "mount", "uidmap", "python3", "python3-venv"]
ONLY_TESTS = [
    "gcc",
    "flex",
    "bison",
    "bc",
    "binutils",
    "xz-utils",
    "gcc-aarch64-linux-gnu",
    "cpio",
    "openssl",
]
APT = 'echo "apt-get $*" >>"$LOG"\n'


class Host:
    """A machine with next to nothing in its PATH."""

    def __init__(self, directory: Path) -> None:
        self.bin, self.log = directory / "bin", directory / "log"
        self.bin.mkdir()
        self.log.touch()
        for name in REAL:
            (self.bin / name).symlink_to(shutil.which(name) or f"/usr/bin/{name}")
        self.add("id", "echo 1000")
        self.add("uname", "echo x86_64")

    def add(self, name: str, script: str = "") -> None:
        (self.bin / name).unlink(missing_ok=True)
        (self.bin / name).write_text(f"#!/bin/sh\n{script}\n")
        (self.bin / name).chmod(0o755)

    def run(self, *argv: str | Path) -> subprocess.CompletedProcess[str]:
        env = {"PATH": str(self.bin), "LOG": str(self.log)}
        return subprocess.run(argv, cwd=CHECKOUT, env=env, capture_output=True, text=True, check=False)

    def packages(self, *purpose: str) -> subprocess.CompletedProcess[str]:
        return self.run("bash", CHECKOUT / "scripts" / "system-packages", *purpose)

    def calls(self) -> list[str]:
        return self.log.read_text().splitlines()


@pytest.fixture
def host(tmp_path: Path) -> Host:
    return Host(tmp_path)


@pytest.mark.parametrize(("user", "prefix"), [("root", ""), ("with sudo", "sudo -n env ")])
def test_what_is_missing_is_installed_step_by_step(host: Host, user: str, prefix: str) -> None:
    host.add("apt-get", APT)
    if user == "root":
        host.add("id", "echo 0")
    else:
        host.add("sudo", 'test "$2" = true || echo "sudo $*" >>"$LOG"; shift; exec "$@"')
    done = host.packages()
    assert done.returncode == 0, done.stderr
    wanted = " ".join(USE)
    install = f"apt-get install --yes --no-install-recommends {wanted} --quiet=2"
    calls = [call for call in host.calls() if call.startswith("apt-get")]
    assert calls == ["apt-get update --quiet=2", install]
    if prefix:
        assert f"{prefix}apt-get update --quiet=2" in host.calls()
        assert f"{prefix}DEBIAN_FRONTEND=noninteractive {install}" in host.calls()
    shown = re.sub(r"\d+\.\d s", "N s", done.stdout).splitlines()
    assert shown == [
        "==> lists of Debian packages",
        "    lists of Debian packages: done in N s",
        f"==> Debian packages: {wanted}",
        f"    Debian packages: {wanted}: done in N s",
    ]


def test_tests_need_more_than_a_demo(host: Host) -> None:
    host.add("apt-get", APT)
    host.add("id", "echo 0")
    assert host.packages("test").returncode == 0
    words = host.calls()[-1].split()
    assert [word for word in words if word in USE] == USE
    assert [word for word in words if word in ONLY_TESTS] == ONLY_TESTS


def test_without_the_right_to_install_the_command_is_printed(host: Host) -> None:
    host.add("apt-get", APT)
    host.add("sudo", "exit 1")
    done = host.packages()
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == (
        "Packages are missing. Run this, then make again:\n\n    sudo apt-get update && "
        f"sudo apt-get install --yes --no-install-recommends {' '.join(USE)}\n\n"
    )
    assert host.calls() == []


def test_without_apt_the_packages_are_named(host: Host) -> None:
    done = host.packages()
    assert done.returncode == 1
    assert done.stderr.endswith(f"are missing: {' '.join(USE)}\n")


def test_where_all_is_there_nothing_is_done_or_said(host: Host) -> None:
    host.add("apt-get", APT)
    for program in ("qemu-system-x86_64", "mmdebstrap", "mount", "newuidmap", "python3"):
        host.add(program)
    done = host.packages()
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert host.calls() == []


def test_a_failure_of_apt_ends_it(host: Host) -> None:
    host.add("apt-get", APT + "exit 100")
    host.add("id", "echo 0")
    done = host.packages()
    assert done.returncode == 100
    assert "lists of Debian packages: FAILED (exit code 100) in " in done.stdout
    assert host.calls() == ["apt-get update --quiet=2"]


@pytest.mark.parametrize(
    ("machine", "code", "said"),
    [
        ("aarch64", 1, "qemu-system-arm"),
        ("riscv64", 1, "airlock knows x86_64 and aarch64, this is riscv64\n"),
    ],
)
def test_other_machines(host: Host, machine: str, code: int, said: str) -> None:
    host.add("uname", f"echo {machine}")
    done = host.packages()
    assert done.returncode == code
    assert said in done.stderr


def test_a_step_tells_its_time_and_passes_its_exit_code_on(host: Host) -> None:
    done = host.run("bash", CHECKOUT / "scripts" / "step", "a thing", "sh", "-c", "echo out; exit 7")
    assert done.returncode == 7
    assert re.fullmatch(
        r"==> a thing\nout\n    a thing: FAILED \(exit code 7\) in \d+\.\d s\n", done.stdout
    ), done.stdout


def test_an_old_python_is_refused_with_what_to_do(host: Host, tmp_path: Path) -> None:
    host.add("python3", "exit 1")
    host.add("flock")
    done = host.run("bash", CHECKOUT / "scripts" / "venv", tmp_path / "venv")
    assert done.returncode == 1
    assert done.stderr.startswith("airlock needs Python 3.11 or newer. PYTHON=/path/to/python make")
    assert not (tmp_path / "venv").exists()


def made(goal: str) -> list[str]:
    """The commands that `make` would run for a goal in a checkout without an environment."""
    argv = ["make", "--dry-run", "--no-print-directory", "VENV=nowhere", goal]
    text = subprocess.run(argv, cwd=CHECKOUT, capture_output=True, text=True, check=True).stdout
    return text.splitlines()


def test_a_demo_installs_builds_and_runs_and_asks_for_no_more() -> None:
    assert [line.removeprefix("scripts/step ") for line in made("demo")] == [
        "scripts/system-packages",
        '"virtual environment in nowhere" scripts/venv nowhere',
        f'"build the image base" {CHECKOUT}/nowhere/bin/airlock build base',
        f'"run commands in a sandbox" scripts/demo {CHECKOUT}/nowhere/bin/airlock',
    ]


def test_a_test_run_has_everything_before_it_begins() -> None:
    lines = made("test")
    assert lines[0] == "scripts/system-packages test"
    titles = [line.split('"')[1] for line in lines if line.startswith("scripts/step")]
    assert titles[1:] == [
        "ruff check", "ruff format", "mypy", "import rules", "unit tests", "integration tests",
    ]  # fmt: skip


def test_ci_is_make_test_and_nothing_else() -> None:
    lines = (CHECKOUT / ".ci" / "run").read_text().splitlines()
    assert [line for line in lines if line and not line.startswith(("#", "set ", "cd "))] == [
        "exec make test"
    ]


def test_clean_removes_what_was_made_and_nothing_else(tmp_path: Path) -> None:
    shutil.copy(CHECKOUT / "Makefile", tmp_path)
    kept = ["README.md", "airlock/cli.py", ".airlock/sandbox/disk.img", "store/keep", "recipes/mine.toml"]
    gone = [
        ".venv/bin/python",
        "build/x",
        "dist/x",
        ".mypy_cache/x",
        ".pytest_cache/x",
        "airlock/__pycache__/x.pyc",
    ]
    for name in (*kept, *gone):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    home = tmp_path / "home"
    (home / ".local/share/airlock/store").mkdir(parents=True)
    subprocess.run(
        ["make", "clean"],
        cwd=tmp_path,
        env={**os.environ, "HOME": str(home)},
        check=True,
        capture_output=True,
    )
    left = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()}
    assert left == {"Makefile", *kept}
    assert (home / ".local/share/airlock/store").is_dir()
