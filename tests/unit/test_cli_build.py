"""`airlock build`: how progress looks on a terminal and elsewhere, and what the result looks like."""

from __future__ import annotations

import io
import json
import signal
import subprocess
import sys
from types import SimpleNamespace
from typing import TYPE_CHECKING

import pytest

import airlock_builder.build
from airlock import progress
from airlock.cli import run
from airlock.commands import start
from airlock.output import space_of
from airlock_builder.build import BuildResult, StepResult
from airlock_builder.step import Step
from airlock_runner.project import Project
from airlock_store import gc
from airlock_store.document import Document
from airlock_store.errors import BuildError
from airlock_store.image import MANIFEST
from airlock_store.paths import StorePath
from airlock_store.store import Store

if TYPE_CHECKING:
    from pathlib import Path

    from airlock_builder.step import Reporter

FETCH, ROOTFS = Step("fetch", "packages", 1, {}), Step("rootfs", "tree [red]", 1, {})
HOSTILE = "\x1b[2Jgot [bold]it\r\n"


def go_through(reporter: Reporter) -> None:
    """A build of two steps, of which the first is there already."""
    reporter.step_started(FETCH)
    reporter.step_finished(FETCH, 0.0, True)
    reporter.step_started(ROOTFS)
    reporter.step_progress(ROOTFS, 0.5, "half\x07")
    reporter.step_log(ROOTFS, HOSTILE)
    reporter.step_finished(ROOTFS, 12.4, False)


def test_without_a_terminal_there_is_a_line_when_a_step_begins_and_when_it_ends(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with progress.reporter(quiet=False) as reporter:
        go_through(reporter)
    assert capsys.readouterr() == ("", "rootfs tree [red] ...\nrootfs tree [red]: done in 12 s\n")


def test_without_a_terminal_a_long_step_tells_its_progress_now_and_then(
    capsys: pytest.CaptureFixture[str],
) -> None:
    now = 0.0
    lines = progress.Lines(verbose=False, clock=lambda: now)
    for done in range(1001):
        lines.step_progress(ROOTFS, done / 1000, f"{done} of 1000: a\x07.o")
        now += 0.15
    assert capsys.readouterr().err.splitlines() == [
        "rootfs tree [red] ...",
        *(f"rootfs tree [red]: {tenth}0 %, {tenth}00 of 1000: a\\x07.o" for tenth in range(1, 11)),
    ]


def test_without_a_terminal_a_short_step_does_not(capsys: pytest.CaptureFixture[str]) -> None:
    now = 0.0
    lines = progress.Lines(verbose=False, clock=lambda: now)
    for fraction in (None, 0.2, 0.4, None, 1.0):
        lines.step_progress(ROOTFS, fraction, "x")
        now += progress.LINE_SECONDS / 6
    assert capsys.readouterr().err == "rootfs tree [red] ...\n"


def test_what_tools_write_is_shown_on_demand_and_made_safe(capsys: pytest.CaptureFixture[str]) -> None:
    with progress.reporter(quiet=False, verbose=True) as reporter:
        go_through(reporter)
    assert "\n  \\x1b[2Jgot [bold]it\n" in capsys.readouterr().err


def test_quiet_shows_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    with progress.reporter(quiet=True, verbose=True) as reporter:
        go_through(reporter)
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("verbose", [False, True])
def test_a_terminal_gets_bars_and_names_are_not_markup(
    verbose: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    terminal = io.StringIO()
    terminal.isatty = lambda: True  # type: ignore[method-assign]
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "150")
    monkeypatch.setattr("sys.stderr", terminal)
    with progress.reporter(quiet=False, verbose=verbose) as reporter:
        go_through(reporter)
    shown = terminal.getvalue()
    assert "rootfs tree [red]" in shown
    assert "✓" in shown
    assert ("\\x1b[2Jgot [bold]it" in shown) is verbose
    assert "\x1b[2J" not in shown
    assert "\x07" not in shown
    last = shown.rpartition("✓")[2]
    assert "fetch packages" not in last


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.04, "0.0 s"), (9.94, "9.9 s"), (9.96, "10 s"), (59.6, "1 min 00 s"), (125.4, "2 min 05 s")],
)
def test_durations_read_well(seconds: float, text: str) -> None:
    assert progress.duration(seconds) == text


@pytest.fixture
def built(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> StorePath:
    """The builder builds this image, whatever it is asked for, and says so in the file `asked`."""
    path = tmp_path / f"{'a' * 32}-base"
    path.mkdir()
    (path / "rootfs").write_bytes(b"x" * 100_000)
    image = StorePath(path, "a" * 32, "base")
    monkeypatch.chdir(tmp_path)

    monkeypatch.setenv("AIRLOCK_STORE", str(tmp_path / "store"))

    def plan(ref: str, *, base: Path) -> SimpleNamespace:
        (tmp_path / "asked").write_text(f"{ref} {base}")
        if ref == "broken":
            raise BuildError("mmdebstrap failed\n  its last words", hint="try again")
        return SimpleNamespace(image_key=image.key, image_name="base")

    def build(_plan: object, _store: object, reporter: Reporter) -> BuildResult:
        go_through(reporter)
        return BuildResult(image, (StepResult("image", "base", image.key, path, 1.25, False),))

    monkeypatch.setattr(airlock_builder.build, "plan", plan)
    monkeypatch.setattr(airlock_builder.build, "build", build)
    return image


def test_build_ends_with_a_table_the_path_and_its_size(
    built: StorePath, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["build", "base"]) == 0
    captured = capsys.readouterr()
    assert captured.err.endswith("done in 12 s\n")
    heads, step, empty, path = captured.out.splitlines()
    assert heads.split() == ["STEP", "NAME", "TIME", "SIZE"]
    assert step.split()[:4] == ["image", "base", "1.2", "s"]
    assert empty == ""
    assert path.startswith(f"{built.path}  (")


def test_build_tells_machines_in_json(built: StorePath, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["-q", "build", "base", "--json"]) == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    step = {
        "kind": "image",
        "name": "base",
        "key": built.key,
        "path": str(built.path),
        "seconds": 1.25,
        "cached": False,
    }
    assert json.loads(captured.out) == {
        "path": str(built.path),
        "key": built.key,
        "name": "base",
        "size": space_of(built.path),
        "steps": [step],
    }


def test_a_quiet_build_prints_the_path_alone(built: StorePath, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["build", "-q"]) == 0
    assert capsys.readouterr() == (f"{built.path}\n", "")


def test_an_image_that_is_there_opens_no_display(
    built: StorePath, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "store" / built.path.name).mkdir(parents=True)
    assert run(["build", "base"]) == 0
    out, err = capsys.readouterr()
    assert (err, "STEP" in out) == ("", True)


@pytest.mark.parametrize(
    ("config", "asked"), [(None, "base"), ("", "base"), ("[vm]\nimage = './mine.toml'\n", "./mine.toml")]
)
def test_without_a_recipe_the_projects_image_is_built(
    built: StorePath, config: str | None, asked: str, tmp_path: Path
) -> None:
    if config is not None:
        (tmp_path / "airlock.toml").write_text(config)
    assert run(["-q", "build"]) == 0
    assert (tmp_path / "asked").read_text() == f"{asked} {tmp_path}"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("background", [False, True])
def test_a_build_that_is_ended_clears_up_and_ends_by_that(number: signal.Signals, background: bool) -> None:
    """In the background of a script Ctrl-C is ignored, and nothing can be cleared; that it ends is what counts."""
    code = (
        "import os, signal; from airlock.images import _ended_in_order\n"
        # Not as pytest has it, which may itself run in the background, or by nohup.
        f"signal.signal(signal.SIGINT, signal.{'SIG_IGN' if background else 'default_int_handler'})\n"
        f"signal.signal({int(number)}, signal.SIG_DFL)\n"
        "with _ended_in_order():\n"
        "    try: os.write(1, b'building\\n'); os.read(0, 1)\n"
        "    finally: os.write(1, b'cleared\\n')\n"
        "print('went on')"
    )
    pipe = subprocess.PIPE
    with subprocess.Popen([sys.executable, "-c", code], stdin=pipe, stdout=pipe, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stdout.readline() == "building\n"
        process.send_signal(number)
        process.stdin.close()
        assert process.stdout.read() == ("" if background else "cleared\n")
    assert process.returncode == -number


def test_an_image_that_is_collected_while_a_start_waits_for_the_store_is_built_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store.open({"AIRLOCK_STORE": str(tmp_path / "store")})
    built = []

    def realise(*_: object, **__: object) -> SimpleNamespace:
        def build(output: Path) -> None:
            (output / MANIFEST).touch()

        built.append(store.realise("a" * 32, "base", build))
        return SimpleNamespace(image=built[-1])

    def add_project_root(store: Store, link: Path, image: Path) -> None:
        if len(built) == 1:
            assert [path.path for path in store.gc().removed] == [image]
        add(store, link, image)

    add = gc.add_project_root
    monkeypatch.setenv("AIRLOCK_STORE", str(store.root))
    monkeypatch.setattr(
        "airlock_builder.build.plan", lambda *_, **__: SimpleNamespace(image_key="a" * 32, image_name="base")
    )
    monkeypatch.setattr("airlock.images.brought_by_plan", lambda _: Document({}, tmp_path))
    monkeypatch.setattr("airlock.images.realise", realise)
    monkeypatch.setattr("airlock_store.image.load_image", lambda path: SimpleNamespace(path=path))
    monkeypatch.setattr("airlock_store.gc.add_project_root", add_project_root)
    monkeypatch.setattr("airlock.commands.start.face", lambda: SimpleNamespace(quiet=True))
    project = Project(tmp_path)
    project.prepare()
    image = start._image("base", None, project, 0)
    assert len(built) == 2
    assert image.path == built[0].path
    assert image.path.is_dir()


def test_a_store_in_the_home_of_nobody(built: StorePath, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["build", "base", "--store", "~nosuchuser/store"]) == 2
    assert capsys.readouterr().err == "Config error: '~nosuchuser/store': there is no such user\n"


def test_a_failed_build_says_what_the_tool_said(built: StorePath, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["build", "broken"]) == 1
    assert capsys.readouterr().err == "Error: mmdebstrap failed\n  its last words\n  hint: try again\n"


def test_advice_about_a_store_is_about_what_names_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("AIRLOCK_STORE", str(tmp_path / "file"))
    assert run(["build", "base"]) == 1
    assert "hint: set AIRLOCK_STORE to a directory that you may write" in capsys.readouterr().err
    monkeypatch.delenv("AIRLOCK_STORE")
    assert run(["build", "base", "--store", str(tmp_path / "file")]) == 1
    assert "hint: give --store a directory that you may write" in capsys.readouterr().err
