"""The event loop: what a callback does to other descriptors of the same round takes effect at once."""

from __future__ import annotations

import os
import sys

import pytest

from airlockd.protocol.loop import Loop


@pytest.fixture(params=["poll", "epoll", "select"])
def loop(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Loop:
    """A loop over each of the system's calls that it can use."""
    if request.param == "select":
        monkeypatch.setattr(sys, "platform", "darwin")
    made = Loop(many=request.param == "epoll")
    assert type(made._poller).__name__.lower().removeprefix("_") == request.param
    return made


def pipes(count: int) -> list[tuple[int, int]]:
    made = [os.pipe() for _ in range(count)]
    for _, write in made:
        os.write(write, b"x")
    return made


def test_a_descriptor_that_was_forgotten_in_a_round_is_not_called(loop: Loop) -> None:
    (first, _), (second, _) = pipes(2)
    called = []

    def callback(me: int, other: int) -> None:
        called.append(me)
        loop.forget(other)
        loop.stop()

    loop.on_readable(first, lambda: callback(first, second))
    loop.on_readable(second, lambda: callback(second, first))
    loop.run()
    assert len(called) == 1


def test_a_number_that_is_used_again_in_a_round_is_another_descriptor(loop: Loop) -> None:
    (first, _), (second, spare) = pipes(2)
    called = []

    def callback(other: int) -> None:
        loop.forget(other)
        os.close(other)
        os.dup2(spare, other)
        loop.on_writable(other, lambda: called.append("new"))
        loop.stop()

    loop.on_readable(first, lambda: callback(second))
    loop.on_readable(second, lambda: callback(first))
    loop.run()
    assert called == []


def test_it_is_another_one_also_where_the_callback_is_the_same(loop: Loop) -> None:
    """As with the console of a machine that died and that of the next, whose only sign of life it was taken for."""
    (first, _), (second, _) = pipes(2)
    (quiet, _write) = os.pipe()
    called = []

    def callback(me: int, other: int) -> None:
        called.append(me)
        loop.forget(other)
        os.close(other)
        # Not the lowest that is free: something that is collected meanwhile may have freed another.
        os.dup2(quiet, other)
        loop.on_readable(other, callbacks[other])
        loop.stop()

    callbacks = {first: lambda: callback(first, second), second: lambda: callback(second, first)}
    for number, each in callbacks.items():
        loop.on_readable(number, each)
    loop.run()
    assert len(called) == 1


def test_timers_are_called_in_order_unless_cancelled(loop: Loop) -> None:
    called: list[str] = []
    loop.call_later(0.02, lambda: (called.append("second"), loop.stop()))  # type: ignore[func-returns-value]
    loop.call_later(0.0, lambda: called.append("first"))
    loop.call_later(0.01, lambda: called.append("never")).cancel()
    loop.run()
    assert called == ["first", "second"]


def test_output_of_a_round_is_written_at_its_end(loop: Loop) -> None:
    ((read, _),) = pipes(1)
    rounds: list[str] = []
    loop.after(lambda: rounds.append("after"))
    loop.on_readable(read, lambda: (rounds.append("read"), os.read(read, 1), loop.stop()))  # type: ignore[func-returns-value]
    loop.run()
    assert rounds == ["after", "read", "after"]


def test_timers_that_were_cancelled_do_not_pile_up(loop: Loop) -> None:
    called: list[int] = []
    for number in range(1000):
        timer = loop.call_later(1000.0, lambda: None)
        if number % 100:
            timer.cancel()
    loop.call_later(0.0, lambda: called.append(1))
    loop.call_later(0.0, loop.stop)
    assert len(loop._timers) < 400
    loop.run()
    assert called == [1]
