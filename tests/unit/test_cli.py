"""The command line in this process: help, dispatch, and what is said when something goes wrong."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
import tomllib
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import NoReturn

import click
import pytest

import airlock.main
import airlock_builder.rootfs.ids
import airlock_builder.tools
import airlock_runner.attach
import airlock_runner.machine.qemu
import airlock_runner.probe
from airlock import __version__
from airlock.cli import root, run
from airlock.commands import ALIASES, COMMANDS
from airlock.commands import doctor as doctor_module
from airlock.commands import start as start_module
from airlock_runner.machine import accel
from airlock_runner.machine.accel import Candidates, Verdict
from airlock_runner.project import Project
from airlock_runner.state import State
from airlock_store.errors import AirlockError, BuildError, ConfigError, Location, MachineError
from airlock_store.gc import add_project_root
from airlock_store.image import Image, encode_image
from airlock_store.store import Store

COMMAND = Path(sys.executable).with_name("airlock")


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each test has a directory and a store of its own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("AIRLOCK_STORE", str(tmp_path / "store"))
    monkeypatch.delenv("AIRLOCK_TRACEBACK", raising=False)


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


def test_doctor_names_what_is_missing_and_its_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert run(["doctor", "--json"]) == 1
    findings = {finding["name"]: finding for finding in json.loads(capsys.readouterr().out)}
    assert findings["qemu"]["status"] == "missing"
    assert "qemu-system-" in findings["qemu"]["hint"]
    assert findings["disk"]["detail"].endswith(f"({tmp_path / 'store'})")
    assert run(["doctor"]) == 1
    assert "missing  qemu" in capsys.readouterr().out


def findings(capsys: pytest.CaptureFixture[str]) -> dict[str, dict[str, str]]:
    run(["doctor", "--json"])
    return {finding["name"]: finding for finding in json.loads(capsys.readouterr().out)}


def test_doctor_tells_builds_from_compilations(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    found = findings(capsys)
    assert (found["builder"]["status"], found["compiler"]["status"]) == ("ok", "ok")
    monkeypatch.setattr(airlock_builder.tools, "SEARCH_PATH", str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path))
    found = findings(capsys)
    assert found["mmdebstrap"]["detail"] == (
        "not installed (package mmdebstrap); images cannot be built without it"
    )
    assert found["builder"]["status"] == "warning"
    assert found["builder"]["hint"].startswith("apt-get install apt coreutils dpkg mmdebstrap mount")
    assert "gcc" not in found
    assert found["compiler"]["status"] == "ok"
    assert found["compiler"]["hint"] == "apt-get install bc binutils bison flex gcc make xz-utils"


def test_doctor_asks_for_ids_where_the_user_is_none_that_needs_none(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def none() -> None:
        raise BuildError("me has no range of ids", hint="get one")

    monkeypatch.setattr(airlock_builder.rootfs.ids, "require_range", none)
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert "ids" not in findings(capsys)
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert findings(capsys)["ids"] == {
        "name": "ids",
        "status": "warning",
        "detail": "images cannot be built: me has no range of ids",
        "hint": "get one",
    }


@pytest.mark.parametrize("proof", [None, Verdict("kvm", "a guest booted with it")])
def test_doctor_proves_the_accelerator_with_an_image_that_is_good(
    proof: Verdict | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = tmp_path / "store" / f"{'0' * 32}-broken"
    broken.mkdir(parents=True)
    (broken / "manifest.json").write_text("{")
    monkeypatch.setattr(accel, "candidates", lambda *_: Candidates(("kvm", "tcg"), True, "not proven yet"))
    monkeypatch.setattr(airlock_runner.machine.qemu, "find_qemu", lambda _arch: tmp_path / "qemu")
    monkeypatch.setattr(airlock_runner.machine.qemu, "qemu_version", lambda _qemu: "10.0")
    assert "to be proven by the first start" in findings(capsys)["accelerator"]["detail"]

    def prove(_image: object) -> Verdict:
        if proof is None:
            raise MachineError("the machine ended", hint="look at it")
        return proof

    monkeypatch.setattr(doctor_module, "_any_image", lambda _arch: object())
    monkeypatch.setattr(airlock_runner.probe, "prove", prove)
    found = findings(capsys)["accelerator"]
    if proof is None:
        assert (found["status"], found["detail"]) == ("missing", "no guest runs here: the machine ended")
    else:
        assert (found["status"], found["detail"]) == ("ok", "kvm: a guest booted with it")


@pytest.mark.parametrize("store", ["file/store", "~nosuchuser/store"])
def test_doctor_tells_of_a_store_that_cannot_be_looked_into(
    store: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("AIRLOCK_STORE", store if store.startswith("~") else str(tmp_path / store))
    monkeypatch.setattr(accel, "candidates", lambda *_: Candidates(("kvm", "tcg"), True, "not proven yet"))
    assert run(["doctor", "--json"]) == 1
    found = {finding["name"]: finding for finding in json.loads(capsys.readouterr().out)}
    assert found["disk"]["status"] == "missing"
    assert ("there is no such user" in found["disk"]["detail"]) is store.startswith("~")
    assert {"memory", "builder"} <= set(found)


def test_recipe_show_prints_what_is_merged_as_toml_that_reads_back(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    packages = [f"package-{number}" for number in range(12)]
    (tmp_path / "parent.toml").write_text(f"[recipe]\nname = 'parent'\n[rootfs]\npackages = {packages}\n")
    (tmp_path / "child.toml").write_text(
        "[recipe]\nname = 'child'\nextends = './parent.toml'\n[rootfs]\npackages = ['\u0062ash']\n"
        '[env]\nA = "\\u001b[2J"\n'
    )
    assert run(["recipe", "show", "./child.toml"]) == 0
    out = capsys.readouterr().out
    assert out.startswith(f"# {tmp_path / 'parent.toml'}\n# {tmp_path / 'child.toml'}\n")
    assert "\x1b" not in out
    shown = tomllib.loads(out)
    assert shown["rootfs"]["packages"] == [*packages, "bash"]
    assert shown["env"] == {"A": "\x1b[2J"}
    assert '\n    "package-0",\n' in out
    assert run(["recipe", "show", "./child.toml", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["recipe"] == shown


def test_recipe_list_finds_mine_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "base.toml").write_text("[recipe]\nname = 'base'\nsummary = \"Mine\\u001b[2J\"\n")
    monkeypatch.setenv("AIRLOCK_RECIPES", str(tmp_path))
    assert run(["recipe", "list"]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert lines[0] == ["NAME", "SUMMARY", "PATH"]
    assert ["base", "Mine\\x1b[2J", str(tmp_path / "base.toml")] in lines


def test_a_broken_path_hides_no_other(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = Store(tmp_path / "store")
    for number in range(3):
        path = store.realise(f"{number}" * 32, f"image-{number}", partial(write_image, f"image-{number}"))
        if number == 1:
            (path / "manifest.json").chmod(0o644)
            (path / "manifest.json").write_text("{")
            (path / "store.json").unlink()
    assert run(["image", "list", "--json"]) == 1
    out, err = capsys.readouterr()
    assert [image["name"] for image in json.loads(out)] == ["image-0", "image-2"]
    assert f"{'1' * 32}-image-1 is not an image" in err
    assert run(["store", "verify"]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert [line.endswith("good") for line in lines] == [True, False, True]
    assert "image-1: not a store path" in lines[1]
    assert run(["store", "verify", "--json"]) == 1
    verified = json.loads(capsys.readouterr().out)
    assert [each["path"].rpartition("-")[2] for each in verified] == ["0", "1", "2"]
    assert [len(each["problems"]) for each in verified] == [0, 1, 0]
    assert run(["store", "verify", "--json", verified[0]["path"]]) == 0
    assert json.loads(capsys.readouterr().out) == verified[:1]


def write_image(name: str, output: Path) -> None:
    for file in ("kernel", "initrd", "rootfs"):
        (output / file).touch()
    texts = {"summary": "", "kernel_release": "6", "rootfs_format": "ext4", "rootfs_key": "0" * 32}
    files = {"kernel": output / "kernel", "initrd": output / "initrd", "rootfs": output / "rootfs"}
    image = Image(path=output, key="0" * 32, name=name, arch="x86_64", **texts, **files)
    (output / "manifest.json").write_bytes(encode_image(image))


def test_an_empty_store_lists_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["store", "path"]) == 0
    assert capsys.readouterr().out == f"{tmp_path / 'store'}\n"
    assert run(["image", "list", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == []
    assert run(["list", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == []
    assert run(["store", "gc"]) == 0
    assert capsys.readouterr().out == "0 paths removed, 0 B freed\n"
    assert run(["store", "verify"]) == 0


def test_a_sandbox_of_which_little_is_known_is_not_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("a", "b"):
        project = Project(tmp_path / name)
        project.root.mkdir()
        project.prepare()
        project.write_state(State("base"))
        add_project_root(Store.open(), project.directory / "image", tmp_path)
    state = tmp_path / "a/.airlock/sandbox/state.json"
    state.write_text("{")
    told = f"{state} is broken: the next start writes it anew, and keeps the disk"
    assert run(["list"]) == 1
    out, err = capsys.readouterr()
    assert [line.split()[:2] for line in out.splitlines()[1:]] == [
        [str(tmp_path / "a"), "broken"], [str(tmp_path / "b"), "stopped"],
    ]  # fmt: skip
    assert err == f"airlock: {told}\n"
    assert run(["list", "--json"]) == 1
    assert [each["trouble"] for each in json.loads(capsys.readouterr().out)] == [told, ""]
    monkeypatch.chdir(tmp_path / "a")
    assert run(["show"]) == 1
    assert f"trouble   {told}\n" in capsys.readouterr().out
    assert run(["show", "--json"]) == 1
    assert json.loads(capsys.readouterr().out)["status"] == "broken"


@pytest.mark.parametrize("words", ["show", "rm", "rm --force"])
def test_a_file_where_the_sandbox_would_be_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], words: str
) -> None:
    (tmp_path / "below").mkdir()
    (tmp_path / "airlock.toml").touch()
    (tmp_path / ".airlock").touch()
    for directory in (tmp_path, tmp_path / "below"):
        monkeypatch.chdir(directory)
        assert run(words.split()) == 1
        assert f"Error: {tmp_path}/.airlock is not a directory\n  hint: remove it" in capsys.readouterr().err
    # What lies above and is no project's is nobody's business.
    (tmp_path / "airlock.toml").unlink()
    assert run(words.split()) == 1
    assert "No project data" in capsys.readouterr().err


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
