"""Where a command starts, by where we are and what was asked for."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from airlock_runner.defaults import working_directory

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize(
    ("ours", "chosen", "there"),
    [
        ("project", None, "project"), ("project/a", None, "project/a"), ("other", None, "project"),
        ("projector", None, "project"), ("project/a", "b", "project/a/b"), ("project/a", "..", "project/a/.."),
        ("other", "b", "project/b"), ("project/a", "/usr", "/usr"),
    ],
)  # fmt: skip
def test_a_command_starts_here_where_that_is_shared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ours: str, chosen: str | None, there: str
) -> None:
    (tmp_path / "project").mkdir()
    (tmp_path / ours).mkdir(exist_ok=True)
    monkeypatch.chdir(tmp_path / ours)
    assert working_directory(tmp_path / "project", chosen) == os.fspath(tmp_path / there)
