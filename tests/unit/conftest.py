"""What unit tests share."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A directory and a store of its own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("AIRLOCK_STORE", str(tmp_path / "store"))
    monkeypatch.delenv("AIRLOCK_TRACEBACK", raising=False)
