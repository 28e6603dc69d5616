"""Who commands of a sandbox run as, by which shell, and where."""

from __future__ import annotations

import os
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
    assert sandbox.sh("touch /airlock/disk/his; stat -c '%U %a' /airlock/disk/his /airlock/disk").split() == [
        "games", "644", "root", "1777",
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
    said = f"airlock: {project}/airlock.toml:5:1: true: the sandbox has no user nobody-here\n"
    done = airlock("start", "--", "true", cwd=project)
    assert done.returncode == 126
    assert done.stderr.decode().endswith(said)
    assert airlock("start", "--detach", cwd=project).returncode == 0
    try:
        done = airlock("exec", "true", cwd=project)
        assert (done.returncode, done.stderr.decode()) == (126, said)
        # It is where it was when it was written, or nowhere.
        (project / "airlock.toml").write_text("[vm")
        done = airlock("exec", "true", cwd=project)
        assert (done.returncode, done.stderr) == (
            126,
            b"airlock: true: the sandbox has no user nobody-here\n",
        )
    finally:
        airlock("stop", cwd=project)


OWNER = os.geteuid() or 4321
HIS = 59000 if OWNER != 59000 else 59001
CACHE = '[disk.cache.tools]\npaths = ["/home/agent/tools"]'


@pytest.fixture
def with_agent(airlock: Airlock, base_image: object, project: Path) -> Path:
    """A project of an ordinary user of the host, whose sandbox has a user as a recipe would make him."""
    project.chmod(0o755)
    write_config(project, CACHE)
    script = (
        f"echo agent:x:{HIS}:100:A:/home/agent:/bin/sh >>/etc/passwd && cd /home/agent && mkdir dir &&"
        f"touch tools/his dir/his && ln -s /etc/debian_version link && chown -hR {HIS}:100 . &&"
        "touch roots && cp -a dir /airlock/disk"
    )
    done = airlock("start", "--", "sh", "-c", script, cwd=project)
    assert done.returncode == 0, done.stderr
    if os.geteuid() == 0:
        os.chown(project, OWNER, -1)
    write_config(project, f'user = "agent"\n{CACHE}')
    return project


def test_an_ordinary_user_has_the_number_of_the_projects_files(airlock: Airlock, with_agent: Path) -> None:
    where = "~ tools tools/his dir dir/his link roots /etc/debian_version /airlock/disk/dir/his"
    script = f"touch here && cd && id -un; stat -c '%n %u:%g' {where}"
    done = airlock("start", "--", "sh", "-c", script, cwd=with_agent)
    assert done.stderr == b"", done.stderr
    assert done.stdout.decode().splitlines() == [
        "agent", f"/home/agent {OWNER}:100", f"tools {OWNER}:100", f"tools/his {OWNER}:100", f"dir {OWNER}:100",
        f"dir/his {OWNER}:100", f"link {OWNER}:100", "roots 0:0", "/etc/debian_version 0:0",
        f"/airlock/disk/dir/his {HIS}:100",
    ]  # fmt: skip
    assert (with_agent / "here").stat().st_uid == OWNER
    # Who owns the files needs no exception from git.
    assert airlock("start", "--", "test", "!", "-e", "/etc/gitconfig", cwd=with_agent).returncode == 0
    # It stays so, and the file of users has nothing else changed.
    script = (
        "id -u; ls -A /etc | grep passwd; wc -l </etc/passwd; stat -c '%a %U' /etc/passwd; touch ~/more here"
    )
    done = airlock("start", "--", "sh", "-c", script, cwd=with_agent)
    number, *files, lines, mode = done.stdout.decode().splitlines()
    assert (number, files, mode) == (str(OWNER), ["passwd"], "644 root")
    assert int(lines) > 15


def test_a_number_that_another_user_has_is_not_given_away(airlock: Airlock, with_agent: Path) -> None:
    write_config(with_agent, CACHE)
    taken = f"echo other:x:{OWNER}:{OWNER}::/:/bin/sh >>/etc/passwd"
    assert airlock("start", "--", "sh", "-c", taken, cwd=with_agent).returncode == 0
    write_config(with_agent, f'user = "agent"\n{CACHE}')
    done = airlock("start", "--", "id", "-u", cwd=with_agent)
    assert done.stdout.decode() == f"{HIS}\n"
    assert (
        b"agent cannot have the number %d of the project's files: another user of the sandbox has it" % OWNER
        in (done.stderr)
    )


def test_who_asks_for_a_number_has_it(airlock: Airlock, with_agent: Path) -> None:
    write_config(with_agent, f'user = "{HIS}"\n{CACHE}')
    assert airlock("start", "--", "id", "-un", cwd=with_agent).stdout == b"agent\n"


def test_roots_project_is_said_to_be_roots(airlock: Airlock, base_image: object, project: Path) -> None:
    write_config(project, 'user = "games"')
    said = b"the project is root's: games can write there only where everybody may"
    assert (said in airlock("start", "--", "true", cwd=project).stderr) is (os.geteuid() == 0)
    assert said not in airlock("start", "--", "true", cwd=project).stderr


def test_git_may_work_in_what_is_shared_and_not_ours(
    airlock: Airlock, base_image: object, project: Path
) -> None:
    """By a file that belongs to airlock, and follows the shares, for as long as nobody else has written it."""
    other = project / 'a "b" \\c'
    other.mkdir()
    project.chmod(0o755)
    user = "games" if os.geteuid() == 0 else "root"
    start = ("start", "-q", "--", "cat", "/etc/gitconfig")
    write_config(project, f'user = "{user}"')
    lines = airlock(*start, cwd=project).stdout.decode().splitlines()
    assert lines[1:] == ["[safe]", f'\tdirectory = "{project}"', f'\tdirectory = "{project}/*"']
    write_config(
        project, f"user = \"{user}\"\n[mounts.other]\nsource = '{other}'\ntarget = '/mnt/{other.name}'"
    )
    lines = airlock(*start, cwd=project).stdout.decode().splitlines()
    assert len(lines) == 6
    assert {r'	directory = "/mnt/a \"b\" \\c"', r'	directory = "/mnt/a \"b\" \\c/*"'} < set(lines)
    write_config(project, "")
    change = ("start", "--", "sh", "-c", "echo '[user]' >/etc/gitconfig")
    assert airlock(*change, cwd=project).returncode == 0
    write_config(project, f'user = "{user}"')
    assert airlock(*start, cwd=project).stdout == b"[user]\n"
