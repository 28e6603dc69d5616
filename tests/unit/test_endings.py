"""What the user is told of a machine that died."""

from __future__ import annotations

from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from airlock_runner import endings
from airlock_runner.project import Project

if TYPE_CHECKING:
    from pathlib import Path


def machine(console: str) -> Any:
    return SimpleNamespace(tail=console)


def test_the_console_is_shown_and_kept_where_it_can_be(tmp_path: Path) -> None:
    project = Project(tmp_path)
    project.prepare()
    error = endings.with_console("it died", machine("one\n\x1b[2Jtwo\n"), project)
    log = project.directory / "console.log"
    assert (
        str(error) == f"it died\nThe last lines of its console (all of it: {log}):\n    one\n    \\x1b[2Jtwo"
    )
    assert log.read_text() == "one\n\x1b[2Jtwo\n"
    log.unlink()
    log.mkdir()
    error = endings.with_console("it died", machine("one\n"), project)
    assert str(error) == "it died\nThe last lines of its console:\n    one"
    assert str(endings.with_console("it died", machine(" \n"), project)) == "it died"


def test_what_airlockd_refuses_is_one_line_and_advice_is_about_the_disk() -> None:
    error = endings.refused("disk.img is\n\x1b[31mcut short")
    assert str(error) == "the sandbox could not be set up: disk.img is \\x1b[31mcut short"
    assert "airlock rm" in (error.hint or "")
    error = endings.refused("cache at /x: No space left on device")
    assert "[disk] size" in (error.hint or "")
    assert endings.refused("mount: no").hint is None
