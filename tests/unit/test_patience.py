"""What the environment says of waiting: a mistake there is the user's to mend, not a bug of airlock."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from airlock_runner.boot import Booter
from airlock_runner.patience import hang_seconds, life_seconds
from airlock_runner.session import Session
from airlock_store.errors import ConfigError, StoreError
from airlock_store.store import Store


def test_there_are_defaults() -> None:
    assert hang_seconds({}) == hang_seconds({"AIRLOCK_HANG_SECONDS": ""}) == 60
    assert life_seconds({}) == 30
    assert hang_seconds({"AIRLOCK_HANG_SECONDS": "2.5"}) == 2.5


@pytest.mark.parametrize("text", ["soon", "0", "-1", "nan", "inf", "1e9", "1 min"])
def test_what_is_no_time_is_said_with_its_name(text: str) -> None:
    with pytest.raises(ConfigError, match="AIRLOCK_HANG_SECONDS: ") as caught:
        hang_seconds({"AIRLOCK_HANG_SECONDS": text})
    assert caught.value.exit_code == 2
    assert caught.value.hint == "unset AIRLOCK_HANG_SECONDS for the default of 60"


def test_a_start_says_it_before_it_does_anything(monkeypatch: pytest.MonkeyPatch) -> None:
    nothing: Any = SimpleNamespace(project=None)
    monkeypatch.setenv("AIRLOCK_HANG_SECONDS", "x")
    with pytest.raises(ConfigError):
        Session(nothing, nothing, [], nothing, 0)
    monkeypatch.setenv("AIRLOCK_LIFE_SECONDS", "x")
    with pytest.raises(ConfigError):
        Booter(nothing, nothing, nothing, (), nothing)


def test_a_store_in_the_home_of_nobody() -> None:
    assert Store.open({"AIRLOCK_STORE": "~/store"}).root == Path.home() / "store"
    with pytest.raises(StoreError, match="AIRLOCK_STORE: '~no-such-user/x'"):
        Store.open({"AIRLOCK_STORE": "~no-such-user/x"})
