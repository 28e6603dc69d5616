"""Who commands of a sandbox run as, by which shell, and where."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from sandboxes import Running, running, write_config

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from conftest import Airlock

WHO = "id -u; id -g; echo $HOME $USER $SHELL; pwd; echo via-stdout >/dev/stdout"


@pytest.fixture(scope="module")
def sandbox(base_image: object, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """A sandbox whose commands run as games, a user that Debian always has."""
    project = tmp_path_factory.mktemp("project")
    project.chmod(0o755)
    write_config(project, 'user = "games"\n[env]\nSHELL = "/bin/dash"')
    with running(project) as sandbox:
        yield sandbox


def test_commands_run_as_the_configured_user(sandbox: Running) -> None:
    lines = sandbox.sh(WHO).splitlines()
    assert lines == ["5", "60", "/usr/games games /bin/dash", str(sandbox.project), "via-stdout"]
    assert sandbox.sh("grep -E '^(Groups|CapEff|CapPrm):' /proc/self/status").split() == [
        "Groups:", "60", "CapPrm:", "0000000000000000", "CapEff:", "0000000000000000",
    ]  # fmt: skip
    # Of this user alone, and gone with the sandbox.
    assert sandbox.sh("stat -c '%U %a' $XDG_RUNTIME_DIR; findmnt -n -o FSTYPE -T $XDG_RUNTIME_DIR").split() == [
        "games", "700", "tmpfs",
    ]  # fmt: skip


def test_a_login_shell_reads_its_profile(airlock: Airlock, sandbox: Running) -> None:
    script = "shopt -q login_shell 2>/dev/null; echo $0 $PATH"
    plain = airlock("exec", "sh", "-c", script, cwd=sandbox.project).stdout.decode()
    login = airlock("exec", "--login", "sh", "-c", script, cwd=sandbox.project).stdout.decode()
    assert "/usr/local/sbin" in plain
    # /etc/profile gives users other than root a PATH without sbin, and games among it.
    assert "/usr/games" in login
    assert "sbin" not in login


def test_a_user_without_a_shell_has_no_login_shell(airlock: Airlock, sandbox: Running) -> None:
    # The shell of games in /etc/passwd is none, and none is installed.
    done = airlock("x", "--login", cwd=sandbox.project, input=b"exit 4\n")
    assert done.returncode == 127
    assert b"airlock: login shell: exec: No such file" in done.stderr


def test_a_login_shell_alone_is_the_users(airlock: Airlock, base_image: object, project: Path) -> None:
    script = b'shopt -q login_shell && echo "$HOME"; exit 4\n'
    done = airlock("start", "--login", cwd=project, input=script)
    assert (done.returncode, done.stdout) == (4, b"/root\n")


def test_start_takes_a_directory_a_login_shell_and_a_number(
    airlock: Airlock, base_image: object, project: Path
) -> None:
    write_config(project, 'user = "4321"')
    done = airlock("start", "--login", "--sandbox-cwd", "/usr/share", "--", "sh", "-c", WHO, cwd=project)
    assert done.returncode == 0, done.stderr
    assert done.stdout.decode().splitlines() == ["4321", "4321", "/ 4321 /bin/sh", "/usr/share", "via-stdout"]


def test_a_user_that_the_image_lacks_is_named(airlock: Airlock, project: Path) -> None:
    write_config(project, 'user = "nobody-here"')
    done = airlock("start", "--", "true", cwd=project)
    assert done.returncode == 126
    assert b"airlock: true: the sandbox has no user nobody-here\n" in done.stderr
