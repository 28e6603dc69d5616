"""The user's directories: ours are platformdirs', whether that was asked or not."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import platformdirs
import pytest

from airlock_store.places import user_path

KINDS: list[Any] = ["data", "config", "state", "cache"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("home", ["/home/somebody", "/", "relative"])
@pytest.mark.parametrize("chosen", [None, "", "/chosen", "relative", "  "])
def test_they_are_those_of_the_platform(
    monkeypatch: pytest.MonkeyPatch, kind: Any, home: str, chosen: str | None
) -> None:
    monkeypatch.setenv("HOME", home)
    for each in KINDS:
        variable = f"XDG_{each.upper()}_HOME"
        monkeypatch.delenv(variable, raising=False)
        if chosen is not None:
            monkeypatch.setenv(variable, chosen)
    assert user_path(kind) == getattr(platformdirs, f"user_{kind}_path")("airlock", appauthor=False)


@pytest.mark.parametrize("kind", KINDS)
def test_elsewhere_the_platform_is_asked(monkeypatch: pytest.MonkeyPatch, kind: Any) -> None:
    monkeypatch.delenv(f"XDG_{kind.upper()}_HOME", raising=False)
    monkeypatch.setattr(sys, "platform", "darwin")
    monkeypatch.setattr(platformdirs, f"user_{kind}_path", lambda name, appauthor: Path("/asked", name))
    assert user_path(kind) == Path("/asked/airlock")
