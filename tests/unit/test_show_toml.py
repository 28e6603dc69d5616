"""What `recipe show` and `config show` print is TOML, and that of the same values."""

from __future__ import annotations

import io
import json
import os
import tomllib
from contextlib import redirect_stdout
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airlock.cli import run
from airlock.commands.recipe import as_toml
from airlock.output import say_toml

if TYPE_CHECKING:
    from pathlib import Path

TEXT = st.text(st.characters(exclude_categories=["Cs"]))
VALUES = st.recursive(
    TEXT | st.integers(-(1 << 63), (1 << 63) - 1) | st.booleans() | st.floats(allow_nan=False),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=4),
    max_leaves=10,
)
# ESC, NEL, a line separator, a zero-width space, one of a private plane, a delete, a line break and a tab.
ODD = "\x1b\x85\u2028\u200b\U000f0000\x7f\n\t"


@given(st.dictionaries(TEXT, VALUES, max_size=5))
def test_what_is_shown_reads_back(data: dict[str, Any]) -> None:
    with redirect_stdout(io.StringIO()) as out:
        say_toml(as_toml(data))
    assert tomllib.loads(out.getvalue()) == data
    assert all(each.isprintable() or each == "\n" for each in out.getvalue())


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory with a name as odd."""
    path = tmp_path / f"a{ODD}]="
    path.mkdir()
    monkeypatch.chdir(path)
    monkeypatch.setenv("HOME", os.fspath(tmp_path / "home"))
    return path


def test_a_recipe_with_control_characters_is_shown_as_toml(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = {f"/{ODD}": {"content": ODD}}
    (place / "r.toml").write_text(
        f"[recipe]\nname = 'r'\n[rootfs]\nrun = [{json.dumps(f'# {ODD}')}]\n"
        f"[rootfs.files]\n{json.dumps(f'/{ODD}')} = {{ content = {json.dumps(ODD)} }}\n"
        # JSON writes what lies beyond in two halves, which are none in TOML.
        .replace("\\udb80\\udc00", "\\U000f0000").replace("\x7f", "\\u007f")
    )
    assert run(["recipe", "show", "./r.toml"]) == 0
    out = capsys.readouterr().out
    assert tomllib.loads(out)["rootfs"] == {"run": [f"# {ODD}"], "files": files}


def test_all_of_a_large_recipe_is_shown(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run_line = "\u200b" * 40_000
    lines = ",".join([f'"#{run_line}"'] * 8)
    (place / "r.toml").write_text(f"[recipe]\nname = 'r'\n[rootfs]\nrun = [{lines}]\n")
    assert run(["recipe", "show", "./r.toml"]) == 0
    assert tomllib.loads(capsys.readouterr().out)["rootfs"]["run"] == [f"#{run_line}"] * 8


def test_a_config_with_control_characters_is_shown_as_toml(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (place / "airlock.json").write_text(
        json.dumps({"env": {f"A{ODD}": ODD}, "mask": {"m": {"paths": [f"a{ODD}"]}}})
    )
    assert run(["config", "show"]) == 0
    shown = tomllib.loads(capsys.readouterr().out)
    assert (shown["env"], shown["mask"]) == ({f"A{ODD}": ODD}, {"m": {"paths": [f"a{ODD}"]}})
