"""Carrying out a plan: each step once, nothing behind what is there, and what an output was made of stays with it."""

from __future__ import annotations

import os
import sys
from types import ModuleType, SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from airlock_builder import realise
from airlock_builder.build import build
from airlock_builder.realise import Realiser, Silent
from airlock_builder.step import Step, Work
from airlock_store import contents
from airlock_store.errors import BuildError, StoreError
from airlock_store.store import Store

if TYPE_CHECKING:
    from pathlib import Path

BASE = Step("fetch", "base", 1, {"fails": False})
LEFT, RIGHT = (Step("disk", name, 1, {"fails": False}, {"base": BASE}) for name in ("left", "right"))
TOP = Step("image", "top", 1, {"fails": False}, {"left": LEFT, "right": RIGHT})


@pytest.fixture
def built(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the steps that are carried out, by a stand-in for the code of each kind."""
    names: list[str] = []

    def build(work: Work) -> None:
        names.append(work.step.name)
        if work.parameters["fails"]:
            raise BuildError("no such thing", hint="look for it")
        made_of = [(path / "name").read_text() for path in work.inputs.values()]
        (work.output / "name").write_text(f"{work.step.name}({' '.join(made_of)})")

    module = ModuleType("stand_in")
    module.build = build  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "stand_in", module)
    monkeypatch.setattr(realise, "MODULES", dict.fromkeys(realise.MODULES, "stand_in"))
    return names


def test_each_step_is_carried_out_once_and_keeps_what_it_was_made_of(
    built: list[str], tmp_path: Path
) -> None:
    store = Store(tmp_path)
    realiser = Realiser(store, Silent())
    top = realiser.realise(TOP)
    assert built == ["base", "left", "right", "top"]
    assert (top / "name").read_text() == "top(left(base()) right(base()))"
    assert [(each.name, each.cached) for each in realiser.results] == [(name, False) for name in built]
    names = {path.name: path.path.name for path in store.paths()}
    # What a root keeps, garbage collection follows by these.
    assert set(contents.read(top.path).references) == {names["left"], names["right"]}


def test_nothing_is_looked_at_behind_what_is_there(built: list[str], tmp_path: Path) -> None:
    store = Store(tmp_path)
    Realiser(store, Silent()).realise(LEFT)
    base = store.find(BASE.key, "base")
    assert base is not None
    base.path.rename(tmp_path / "gone")
    again = Realiser(store, Silent())
    again.realise(LEFT)
    assert built == ["base", "left"]
    assert [(each.name, each.cached) for each in again.results] == [("left", True)]


def test_a_step_that_fails_is_named_and_what_was_done_is_kept(built: list[str], tmp_path: Path) -> None:
    store = Store(tmp_path)
    failing = Step("image", "broken", 1, {"fails": True}, {"left": LEFT})
    with pytest.raises(BuildError) as caught:
        Realiser(store, Silent()).realise(failing)
    assert (caught.value.message, caught.value.hint) == ("broken: no such thing", "look for it")
    assert store.find(failing.key, "broken") is None
    assert store.find(LEFT.key, "left") is not None


@pytest.mark.parametrize("name", ["a:b", "a;b", 'a"b', "$LIB", "a\\b", "a\nb", os.fsdecode(b"\xff")])
def test_nothing_is_built_into_a_store_whose_path_tools_take_for_something_else(
    name: str, built: list[str], tmp_path: Path
) -> None:
    plan: Any = SimpleNamespace(image=TOP, image_key=TOP.key, image_name=TOP.name, steps=(TOP,))
    with pytest.raises(StoreError, match="nothing can be built into a store") as caught:
        build(plan, Store(tmp_path / name))
    assert caught.value.message.isprintable()
    assert caught.value.hint == "set AIRLOCK_STORE to another directory"
    assert built == []
    assert build(plan, Store(tmp_path / "a b\u00fc'%")).image.name == "top"
