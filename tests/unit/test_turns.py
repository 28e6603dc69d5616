"""Turns of machines that come up: as many at once as there are places, and nobody waits for somebody who is stopped."""

from __future__ import annotations

import fcntl
import subprocess
import threading
from typing import TYPE_CHECKING

import pytest

from airlock_runner import turns
from airlock_runner.turns import Turn
from airlockd.protocol.loop import Loop

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture
def loop() -> Iterator[Loop]:
    made = Loop()
    yield made
    made.close()


@pytest.fixture
def places(tmp_path: Path) -> list[Path]:
    return [tmp_path / "new" / name for name in ("0", "1")]


def held(place: Path) -> bool:
    """Whether somebody has the lock."""
    with place.open() as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        return False


@pytest.mark.parametrize("first", [0, 1])
def test_a_turn_comes_when_any_other_ends(
    loop: Loop, places: list[Path], monkeypatch: pytest.MonkeyPatch, first: int
) -> None:
    # It is the end of another that it comes by, and not the time.
    monkeypatch.setattr(turns, "MAX_SECONDS", 600)
    loop.call_later(30, loop.stop)
    begun: list[int] = []

    def begin(number: int) -> None:
        begun.append(number)
        if number == 3:
            loop.stop()

    made = [Turn(loop, places, lambda number=number: begin(number)) for number in range(4)]  # type: ignore[misc]
    for each in made:
        each.take()
    assert begun == [0, 1]
    assert [held(place) for place in places] == [True, True]
    loop.call_later(0, made[first].end)
    # It never gets a turn, and takes nobody's.
    made[2].end()
    loop.run()
    assert begun == [0, 1, 3]
    for each in made:
        each.end()
    wait_until_free(places)


def take_all(loop: Loop, places: list[Path]) -> list[Turn]:
    """A turn for each of the places."""
    made = [Turn(loop, places, lambda: None) for _ in places]
    for each in made:
        each.take()
    return made


def wait_until_free(places: list[Path]) -> None:
    """Until nobody has any of them. Whoever waited for one may still get it, to let it go at once."""
    for place in places:
        subprocess.run(["flock", "--timeout", "30", place, "true"], check=True)


def test_nobody_waits_for_ever(loop: Loop, places: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(turns, "MAX_SECONDS", 0.01)
    first = take_all(loop, places)
    late = Turn(loop, places, loop.stop)
    late.take()
    loop.run()
    # What it stopped waiting for is not kept from others when it comes after all.
    for each in first:
        each.end()
    wait_until_free(places)


def test_of_many_places_not_each_takes_a_thread(
    loop: Loop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(turns, "MAX_WAITED_FOR", 3)
    places = [tmp_path / str(number) for number in range(10)]
    first = take_all(loop, places)
    late = Turn(loop, places, loop.stop)
    before = threading.active_count()
    late.take()
    assert threading.active_count() - before <= 3
    for each in first:
        each.end()
    loop.run()
    late.end()
    wait_until_free(places)


def test_without_threads_it_is_the_time_that_is_waited_for(
    loop: Loop, places: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def start(_thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(turns, "MAX_SECONDS", 0.01)
    monkeypatch.setattr(threading.Thread, "start", start)
    made = take_all(loop, places)
    late = Turn(loop, places, loop.stop)
    late.take()
    loop.run()
    for each in made:
        each.end()


def test_without_a_place_to_lock_there_are_no_turns(loop: Loop, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    begun: list[bool] = []
    turn = Turn(loop, [tmp_path / "file" / "0"], lambda: begun.append(True))
    turn.take()
    turn.end()
    assert begun == [True]
