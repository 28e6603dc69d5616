"""The command line in this process: help, dispatch, and what is said when something goes wrong."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import NoReturn

import click
import pytest

import airlock.main
import airlock_runner.attach
import airlock_runner.machine.qemu
import airlock_runner.probe
from airlock import __version__
from airlock.cli import root, run
from airlock.commands import ALIASES, COMMANDS
from airlock.commands import start as start_module
from airlock_store.errors import AirlockError, ConfigError, Location

COMMAND = Path(sys.executable).with_name("airlock")


pytestmark = pytest.mark.usefixtures("elsewhere")


def _interrupt(*_: object) -> NoReturn:
    raise KeyboardInterrupt


class Interrupting(ModuleType):
    """A module that whoever imports it has no time for."""

    __getattr__ = _interrupt


def every_command(group: click.Group = root, prefix: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    """The words of every command and subcommand."""
    found: list[tuple[str, ...]] = []
    context = click.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        found.append((*prefix, name))
        if isinstance(command, click.Group):
            found += every_command(command, (*prefix, name))
    return found


@pytest.mark.parametrize("words", every_command(), ids=" ".join)
def test_every_command_explains_itself_with_an_example(
    words: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run([*words, "--help"]) == 0
    out = capsys.readouterr().out
    assert f"Usage: airlock {' '.join(words)}" in out
    assert "\nExample" in out
    example = out.partition("\nExample")[2]
    assert f"airlock {words[0]}" in example or "airlock x" in example or f"airlock -q {words[0]}" in example


def test_the_table_names_real_commands() -> None:
    for name, (target, _) in COMMANDS.items():
        module, _, attribute = target.partition(":")
        assert getattr(importlib.import_module(module), attribute).name == name
    assert set(ALIASES.values()) <= set(COMMANDS)


def test_the_command_itself_imports_nothing_before_airlock(tmp_path: Path) -> None:
    """And a Ctrl-C at the first thing that it does import is no traceback."""
    done = subprocess.run([COMMAND, "--help"], env={**os.environ, "PYTHONPROFILEIMPORTTIME": "1"}, capture_output=True,
                          text=True, check=True)  # fmt: skip
    names = [line.rpartition("|")[2].strip() for line in done.stderr.splitlines()]
    assert names[names.index("site") + 1 :][0] == "airlock"
    assert "re" not in names
    (tmp_path / "airlock").mkdir()
    (tmp_path / "airlock/__init__.py").write_text("raise KeyboardInterrupt")
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    done = subprocess.run([COMMAND, "show"], env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "")


@pytest.mark.parametrize("arguments", [["--help"], ["show"]])
def test_a_ctrl_c_before_a_command_runs_is_no_traceback(
    monkeypatch: pytest.MonkeyPatch, arguments: list[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["airlock", *arguments])
    monkeypatch.setattr("airlock.main._help", _interrupt)
    monkeypatch.setitem(sys.modules, "airlock.cli", Interrupting("airlock.cli"))
    assert airlock.main.main() == 130


def test_help_and_version_import_next_to_nothing() -> None:
    code = """
import sys
before = set(sys.modules)
from airlock.main import main
for sys.argv in (["airlock"], ["airlock", "--help"], ["airlock", "-h"], ["airlock", "-V"]):
    assert main() == 0
print(sorted({name.partition(".")[0] for name in set(sys.modules) - before}))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    *text, modules = done.stdout.splitlines()
    assert text.count("Usage: airlock [OPTIONS] COMMAND [ARGS]...") == 3
    assert text[-1] == f"airlock {__version__}"
    assert modules == "['__future__', 'airlock']"


@pytest.mark.parametrize("arguments", [["--help"], ["-q", "-h"], ["-q", "--version"], ["-V"]])
def test_click_says_the_same_as_the_short_cut(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(arguments) == 0
    out = capsys.readouterr().out
    if arguments[-1] in ("-V", "--version"):
        assert out == f"airlock {__version__}\n"
    else:
        assert all(summary in out for _, summary in COMMANDS.values())


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["strat"], 2, "There is no command 'strat'. Did you mean 'start'?"),
        (["start", "--acel", "tcg"], 2, "--acel"),
        (["start", "--accel", "warp"], 2, "'warp' is not one of"),
        (["start", "--", "true"], 2, "No airlock.toml found"),
        (["-q", "start"], 2, "No airlock.toml found"),
        (["show"], 1, "No project data"),
        (["show", "--json"], 1, "No project data"),
        (["rm"], 1, "No project data"),
        (["remove", "-f"], 1, "No project data"),
        (["exec", "--", "true"], 1, "no running VM"),
        (["x", "true"], 1, "no running VM"),
        (["stop"], 1, "no running VM"),
        (["ps"], 1, "no running VM"),
        (["logs", "web"], 1, "no running VM"),
        (["start", "-d", "--", "true"], 2, "--detach runs no command"),
        (["start", "-d", "-e", "A=1"], 2, "--detach runs no command"),
        (["exec"], 2, "Missing argument 'CMD...'"),
        (["exec", "-e", "novalue", "true"], 2, "-e novalue: there is no such variable here"),
        (["exec", "-e", "=v", "true"], 2, "cannot be the name"),
        (["build", "./none.toml"], 2, "Config error"),
        (["image", "inspect", "./none.toml"], 2, "Config error"),
        # A variable of a script that is empty is not one that was left out.
        (["build", ""], 2, "no recipe is named ''"),
        (["kernel", "check", ""], 2, "no recipe is named ''"),
        (["store", "verify", "/etc"], 1, "/etc is not a store path"),
    ],
)
def test_a_mistake_is_answered_on_stderr_with_its_exit_code(
    arguments: list[str], code: int, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(arguments) == code
    captured = capsys.readouterr()
    assert captured.out == ""
    assert said in captured.err
    assert "Traceback" not in captured.err


def test_an_empty_name_starts_no_other_image(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "airlock.toml").write_text("[vm]\n")
    assert run(["start", "--image", "", "--", "true"]) == 2
    assert "Config error: no recipe is named ''" in capsys.readouterr().err


@pytest.mark.parametrize("words", ["start", "show", "exec true", "build", "config show", "rm", "stop"])
def test_a_directory_that_is_gone(
    words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    assert run(words.split()) == 1
    assert capsys.readouterr().err == (
        "Error: the directory that airlock was started in is gone\n  hint: change to one that is there\n"
    )


def test_start_in_a_directory_that_a_sandbox_needs_itself(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir("/proc")
    assert run(["start", "--", "true"]) == 2
    assert capsys.readouterr().err == (
        "Error: /proc cannot be a project: a sandbox has a directory of its own there\n"
        "  hint: start airlock in a directory of the project's own, such as one below your home\n"
    )


def test_a_config_error_is_told_with_file_line_and_column(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "airlock.toml"
    config.write_text("[vm]\nmemmory = '1 GB'\n")
    assert run(["start", "--", "true"]) == 2
    err = capsys.readouterr().err
    assert err == (
        f"Config error: {config}:2:1: unknown key 'memmory' in [vm]\n  hint: did you mean 'memory'?\n"
    )
    config.write_text("[vm]\nimage = 'nothing-has-this-name'\n")
    assert run(["start", "--", "true"]) == 2
    assert f"Config error: {config}:2:1: " in capsys.readouterr().err


@pytest.fixture
def failing(monkeypatch: pytest.MonkeyPatch) -> list[BaseException]:
    """`airlock exec` raises what is put into this list."""
    errors: list[BaseException] = []

    def attach(*_: object, **__: object) -> int:
        raise errors.pop()

    monkeypatch.setattr(airlock_runner.attach, "attach", attach)
    return errors


def several() -> ConfigError:
    places = [Location(Path("a.toml"), line, 1) for line in (1, 2)]
    return ConfigError.of([ConfigError("wrong", hint=f"hint {at.line}", at=at) for at in places])


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (AirlockError("it broke", hint="mend it"), 1, "Error: it broke\n  hint: mend it\n"),
        (AirlockError("\x1b[2Jgone\x9b", hint="\x07"), 1, "Error: \\x1b[2Jgone\\x9b\n  hint: \\x07\n"),
        (
            several(),
            2,
            "Config error:\n  a.toml:1:1: wrong\n    hint: hint 1\n  a.toml:2:1: wrong\n    hint: hint 2\n",
        ),
        (PermissionError(13, "Permission denied", "/x"), 1, "Error: /x: Permission denied\n"),
        (KeyboardInterrupt(), 130, ""),
        (ValueError("surprise"), 70, "Internal error: ValueError: surprise\n"),
    ],
)
def test_an_error_becomes_a_message_a_hint_and_an_exit_code(
    failing: list[BaseException],
    error: BaseException,
    code: int,
    said: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    failing.append(error)
    assert run(["exec", "true"]) == code
    err = capsys.readouterr().err
    assert err.startswith(said)
    assert err == said or "AIRLOCK_TRACEBACK=1" in err


def test_a_traceback_is_there_for_who_asks(
    failing: list[BaseException], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("AIRLOCK_TRACEBACK", "1")
    failing.append(ValueError("surprise"))
    assert run(["exec", "true"]) == 70
    assert "Traceback (most recent call last)" in capsys.readouterr().err


def test_exec_passes_directory_variables_and_the_commands_own_options(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    calls: list[tuple[object, ...]] = []

    def attach(*arguments: object, login: bool) -> int:
        calls.append((*arguments, login))
        return 42

    monkeypatch.setattr(airlock_runner.attach, "attach", attach)
    assert run(["x", "-w", "/tmp", "-e", "A=1", "-e", "B=x=y", "ls", "-q", "--help"]) == 42
    assert calls == [(None, ("ls", "-q", "--help"), "/tmp", {"A": "1", "B": "x=y"}, False)]
    assert run(["exec", "--login"]) == 42
    assert calls[1:] == [(None, (), None, {}, True)]


@pytest.mark.parametrize("quiet_at", [0, 1])
def test_quiet_works_before_and_after_the_command(
    quiet_at: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / ".airlock" / "sandbox").mkdir(parents=True, mode=0o700)
    words = ["rm", "-f"]
    words.insert(quiet_at, "-q")
    assert run(words) == 0
    assert capsys.readouterr() == ("", "")
    assert not (tmp_path / ".airlock" / "sandbox").exists()


def test_rm_asks_a_terminal_only(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sandbox = tmp_path / ".airlock" / "sandbox"
    sandbox.mkdir(parents=True, mode=0o700)
    (sandbox / "disk.img").write_bytes(b"data")
    assert run(["rm"]) == 2
    assert "airlock rm --force" in capsys.readouterr().err
    assert sandbox.exists()
    assert run(["rm", "--force"]) == 0
    assert capsys.readouterr().out == "Sandbox removed\n"
    assert not sandbox.exists()


@pytest.mark.parametrize("agreed", [True, False])
def test_start_offers_a_config_on_a_terminal(
    agreed: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for stream in (sys.stdin, sys.stderr):
        monkeypatch.setattr(stream, "isatty", lambda: True)
    monkeypatch.setattr(click, "confirm", lambda *_, **__: agreed)
    reached: list[str | None] = []

    def image(_chosen: str | None, configured: str | None, *_: object) -> None:
        reached.append(configured)
        raise AirlockError("far enough")

    monkeypatch.setattr(start_module, "_image", image)
    assert run(["start"]) == (1 if agreed else 2)
    assert (tmp_path / "airlock.toml").exists() is agreed
    assert reached == (["base"] if agreed else [])
    assert "No airlock.toml found" in capsys.readouterr().err


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_scripts_ask_airlock(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["completion", shell]) == 0
    assert f"_AIRLOCK_COMPLETE={shell}_complete" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "answers"),
    [
        ("airlock st", ["plain,start", "plain,stop", "plain,store"]),
        ("airlock build bas", ["plain,base"]),
        ("airlock build ./airl", ["file,./airl"]),
        ("airlock start --image pod", ["plain,podman"]),
        ("airlock start -- ls air", ["file,air"]),
        ("airlock start --sandbox-cwd ~/p", ["dir,~/p"]),
        ("airlock x cat ./air", ["file,./air"]),
        ("airlock exec -w su", ["dir,su"]),
        ("airlock image inspect doc", ["plain,docker", "plain,docker-cli"]),
        ("airlock kernel check dock", ["plain,docker", "plain,docker-cli"]),
    ],
)
def test_the_shell_learns_what_can_stand_there(words: str, answers: list[str]) -> None:
    environment = {
        **os.environ,
        "_AIRLOCK_COMPLETE": "bash_complete",
        "COMP_WORDS": words,
        "COMP_CWORD": str(words.count(" ")),
    }
    done = subprocess.run(
        [sys.executable, "-m", "airlock.main"], env=environment, capture_output=True, text=True, check=False
    )
    assert done.stdout.split() == answers


@pytest.mark.parametrize("name", ["net", "config", "recipe"])
def test_a_group_alone_prints_its_help(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run([name]) == 2
    assert capsys.readouterr().err.startswith(f"Usage: airlock {name} ")


def test_a_reader_that_leaves_is_no_error() -> None:
    for arguments in ("--help", "recipe list --json", "store path"):
        line = f"'{sys.executable}' -m airlock.main {arguments} | true; echo ${{PIPESTATUS[0]}}"
        done = subprocess.run(["bash", "-c", line], capture_output=True, text=True, check=True)
        assert done.stderr == ""
        assert int(done.stdout) in (0, 141)


@pytest.mark.parametrize("arguments", ["--version", "recipe list --json", "store path"])
def test_output_that_cannot_be_written_is_told(arguments: str) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    with open("/dev/full", "wb") as full:
        done = subprocess.run(
            [sys.executable, "-m", "airlock.main", *arguments.split()],
            env=environment, stdout=full, stderr=subprocess.PIPE, text=True, check=False,
        )  # fmt: skip
    assert (done.returncode, done.stderr) == (
        1,
        "Error: standard output: No space left on device\n  hint: AIRLOCK_TRACEBACK=1 shows what airlock was doing\n",
    )


@pytest.mark.parametrize("words", ["--version", "config schema", "show", "start", "rm", "list"])
@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_what_the_caller_closed_is_no_bug(tmp_path: Path, words: str, closed: str) -> None:
    environment = {**os.environ, "AIRLOCK_STORE": os.fspath(tmp_path / "store")}
    script = f"'{sys.executable}' -m airlock.main {words} {closed}"
    done = subprocess.run(
        ["sh", "-c", script], cwd=tmp_path, capture_output=True, env=environment, check=False
    )
    assert done.returncode in (0, 1, 2), done.stderr
    assert b"Traceback" not in done.stderr
    assert b"Internal" not in done.stderr
