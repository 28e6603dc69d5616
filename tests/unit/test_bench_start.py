"""The guard of `make bench`: ratios against their goals and what was reached before, never seconds."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from types import ModuleType

BASELINE: dict[str, Any] = {"warm start": 0.4, "cold start": 1.5, "exec": 0.1}


@pytest.fixture(scope="module")
def bench() -> ModuleType:
    spec = importlib.util.spec_from_file_location(
        "bench_start", Path(__file__).parents[2] / "bench" / "bench_start.py"
    )
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("ratios", "said"),
    [
        ({"warm start": 0.51, "cold start": 1.9, "exec": 0.12}, ""),
        ({"warm start": 0.53}, "worse: warm start is 0.53, at most 0.52 was allowed\n"),
        ({"cold start": 2.0}, "worse: cold start is 2.0, at most 1.95 was allowed\n"),
        ({"another": 9.0}, ""),
    ],
)
def test_what_is_worse_than_before_fails(
    bench: ModuleType, capsys: pytest.CaptureFixture[str], ratios: dict[str, float], said: str
) -> None:
    assert bench.judge(ratios, BASELINE) == bool(said)
    assert capsys.readouterr().out == said


def test_a_goal_holds_whatever_the_baseline_is(bench: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    assert bench.judge({"warm start": 0.61}, {"warm start": 0.59}) == 1
    assert "at most 0.60" in capsys.readouterr().out


def test_the_baseline_in_the_repository_has_all_ratios(bench: ModuleType) -> None:
    assert json.loads(bench.BASELINE.read_text()).keys() == {"warm start", "cold start", "exec", bench.TEN}


def test_what_ten_take_at_least(bench: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "PROCESSORS", 2)
    medians = {"warm start": bench.Cost(0.5, 0.4), bench.CROWD: bench.Cost(0.6, 1.0)}
    assert "one alone makes it 4.0, and that of one of 2 at once 5.0" in bench.bounds(medians)
