"""docs/security.md names a test for each promise: each must be there."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_each_promise_is_held_by_a_test_that_is_there() -> None:
    manual = (ROOT / "docs/security.md").read_text()
    tests = {
        name
        for path in (ROOT / "tests").rglob("test_*.py")
        for name in re.findall(r"^def (test_\w+)", path.read_text(), re.MULTILINE)
    }
    named = set(re.findall(r"`(test_\w+)`", manual))
    assert len(named) > 30
    assert named - tests == set()
    files = re.findall(r"`(tests/[\w/]+\.py)`", manual)
    assert [name for name in files if not (ROOT / name).is_file()] == []
