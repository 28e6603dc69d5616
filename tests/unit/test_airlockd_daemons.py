"""Daemons against a world that is a list: order, readiness, restarts, stopping, and every way in which they fail."""

from __future__ import annotations

import errno
import signal
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airlockd.daemons import BACKOFF, MAX_BACKOFF, Daemons, Spec, parse
from airlockd.protocol.loop import Timer

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

EXIT_1 = 1 << 8


class FakeWorld:
    """Keeps what daemons ask for; the test answers when it likes."""

    def __init__(self) -> None:
        self.running: dict[int, tuple[str, Callable[[int], None]]] = {}
        self.executed: dict[str, Callable[[str | None], None]] = {}
        self.probes: dict[str, Callable[[bool], None]] = {}
        self.timers: list[tuple[float, Timer]] = []
        self.killed: list[tuple[str, int]] = []
        self.told: list[tuple[str, str]] = []
        self.log: list[str] = []
        self.full = False
        self._pid = 100

    def start(self, spec: Spec, failed: Callable[[str | None], None], ended: Callable[[int], None]) -> int:
        if self.full:
            raise BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable")
        self._pid += 1
        self.running[self._pid] = (spec.name, ended)
        self.executed[spec.name] = failed
        self.log.append(f"+{spec.name}")
        return self._pid

    def probe(self, spec: Spec, answer: Callable[[bool], None]) -> None:
        self.probes[spec.name] = answer

    def kill(self, pid: int, number: int) -> None:
        name = self.running[pid][0] if pid in self.running else "gone"
        self.killed.append((name, number))

    def call_later(self, seconds: float, callback: Callable[[], None]) -> Timer:
        timer = Timer(seconds, callback)
        self.timers.append((seconds, timer))
        return timer

    def tell(self, name: str, state: str, **_details: Any) -> None:
        self.told.append((name, state))

    # ---- for tests

    def run(self, name: str) -> None:
        """The program of `name` is executed."""
        self.executed.pop(name)(None)

    def end(self, name: str, status: int = 0) -> None:
        """Its process ends."""
        pid = max(pid for pid, (each, _) in self.running.items() if each == name)
        self.log.append(f"-{name}")
        self.running.pop(pid)[1](status)

    def fire(self) -> list[float]:
        """Every timer that is set goes off; gives their seconds."""
        due, self.timers = self.timers, []
        live = [(seconds, timer) for seconds, timer in due if timer.callback is not None]
        for _, timer in live:
            if timer.callback is not None:
                timer.callback()
        return [seconds for seconds, _ in live]


def spec(name: str, **changes: Any) -> Spec:
    return Spec(
        name, ["/bin/x"], "/", "root", {}, True, int(signal.SIGTERM), 10.0, True, 3, None, 30.0, ()
    )._replace(**changes)


class Outcome:
    """What `start` and `stop` call back with."""

    def __init__(self, world: FakeWorld, *specs: Spec) -> None:
        self.started: list[str | None] = []
        self.stopped = 0
        self.daemons = Daemons(world)
        self.daemons.start(specs, self.started.append)

    def stop(self) -> None:
        self.daemons.stop(self._stopped)

    def state(self, name: str) -> str:
        return next(str(each["state"]) for each in self.daemons.list() if each["name"] == name)

    def _stopped(self) -> None:
        self.stopped += 1


@pytest.fixture
def world() -> FakeWorld:
    return FakeWorld()


def test_without_daemons_all_is_done_at_once(world: FakeWorld) -> None:
    outcome = Outcome(world)
    outcome.stop()
    assert (outcome.started, outcome.stopped) == ([None], 1)


def test_each_waits_for_those_that_it_comes_after(world: FakeWorld) -> None:
    outcome = Outcome(world, spec("a", ready=("tcp", 1)), spec("b", after=["a"]), spec("c"))
    assert world.log == ["+a", "+c"]
    world.run("a")
    world.run("c")
    world.probes.pop("a")(False)
    assert world.log == ["+a", "+c"]
    (poll,) = [timer for seconds, timer in world.timers if seconds < 1]
    assert poll.callback is not None
    poll.callback()
    world.probes.pop("a")(True)
    assert world.log == ["+a", "+c", "+b"]
    assert outcome.started == []
    world.run("b")
    assert outcome.started == [None]
    assert {each["state"] for each in outcome.daemons.list()} == {"up"}


def test_they_stop_in_reverse_and_one_by_one(world: FakeWorld) -> None:
    outcome = Outcome(world, spec("a"), spec("b", after=["a"]), spec("other"))
    for name in ("a", "b", "other"):
        world.run(name)
    outcome.stop()
    assert {name for name, _ in world.killed} == {"b", "other"}
    world.end("b", 15)
    assert ("a", signal.SIGTERM) in world.killed
    world.end("a", 15)
    assert outcome.stopped == 0
    world.end("other", 15)
    assert outcome.stopped == 1
    assert [each for each in world.told if each[1] == "stopped"] == [
        ("b", "stopped"), ("a", "stopped"), ("other", "stopped"),
    ]  # fmt: skip


def test_one_that_does_not_end_is_killed_after_its_time(world: FakeWorld) -> None:
    outcome = Outcome(world, spec("a", signal=int(signal.SIGINT), timeout=7.0))
    world.run("a")
    outcome.stop()
    assert world.killed == [("a", signal.SIGINT)]
    assert world.fire() == [7.0]
    assert world.killed[1:] == [("a", signal.SIGKILL)]
    world.end("a", 9)
    assert outcome.stopped == 1
    assert world.told[-2:] == [("a", "killed"), ("a", "stopped")]


def test_one_with_all_the_time_in_the_world_is_waited_for(world: FakeWorld) -> None:
    outcome = Outcome(world, spec("a", timeout=0.0))
    world.run("a")
    outcome.stop()
    assert world.fire() == []
    assert outcome.stopped == 0
    world.end("a")
    assert outcome.stopped == 1


def test_a_crash_loop_waits_longer_each_time_and_is_given_up(world: FakeWorld) -> None:
    outcome = Outcome(world, spec("a", max_restarts=3))
    delays = []
    for _ in range(3):
        world.run("a")
        world.end("a", EXIT_1)
        assert outcome.state("a") == "backoff"
        delays += world.fire()
    world.run("a")
    world.end("a", EXIT_1)
    assert outcome.state("a") == "failed"
    assert delays == [BACKOFF, 2 * BACKOFF, 3 * BACKOFF]
    assert world.fire() == []
    outcome.stop()
    assert outcome.stopped == 1


def test_without_a_limit_it_is_restarted_for_ever_at_a_bounded_pace(world: FakeWorld) -> None:
    outcome = Outcome(world, spec("a", max_restarts=0))
    delays = []
    for _ in range(100):
        world.run("a")
        world.end("a", EXIT_1)
        delays += world.fire()
    assert outcome.state("a") == "starting"
    assert delays[-1] == max(delays) == MAX_BACKOFF


@pytest.mark.parametrize(
    ("always", "status", "state"),
    [(True, 0, "backoff"), (False, 0, "ended"), (False, EXIT_1, "backoff"), (False, 9, "backoff")],
)
def test_what_is_restarted(world: FakeWorld, always: bool, status: int, state: str) -> None:
    outcome = Outcome(world, spec("a", always=always))
    world.run("a")
    world.end("a", status)
    assert outcome.state("a") == state


@pytest.mark.parametrize(("status", "killed"), [(0, []), (EXIT_1, [("gone", signal.SIGKILL)])])
def test_what_a_daemon_that_failed_left_behind_ends(
    world: FakeWorld, status: int, killed: list[tuple[str, int]]
) -> None:
    """One that ended well, and is not started again, may have left its work to others."""
    Outcome(world, spec("a", always=False))
    world.run("a")
    world.end("a", status)
    assert world.killed == killed


def test_a_program_that_is_not_there_is_not_tried_again(world: FakeWorld) -> None:
    outcome = Outcome(world, spec("a"), spec("b", after=["a"]))
    world.executed.pop("a")("exec: No such file or directory")
    world.end("a", 127 << 8)
    assert outcome.started == ["daemon a ended before it was ready"]
    assert world.log == ["+a", "-a"]


def test_one_for_which_there_is_no_process_is_tried_again(world: FakeWorld) -> None:
    outcome = Outcome(world, spec("a", max_restarts=2))
    world.run("a")
    world.full = True
    world.end("a", EXIT_1)
    assert world.fire() == [BACKOFF]
    assert outcome.state("a") == "backoff"
    world.full = False
    assert world.fire() == [2 * BACKOFF]
    world.run("a")
    assert outcome.state("a") == "up"
    world.full = True
    world.end("a", EXIT_1)
    assert outcome.state("a") == "failed"
    assert world.told[-1] == ("a", "failed")


def test_one_that_is_late_fails_the_start(world: FakeWorld) -> None:
    outcome = Outcome(world, spec("a", ready=("log", "x"), ready_timeout=5.0), spec("b", after=["a"]))
    world.run("a")
    assert world.fire() == [5.0]
    assert outcome.started == ["daemon a was not ready after 5 seconds"]
    world.probes.pop("a")(True)
    assert "+b" not in world.log
    outcome.stop()
    world.end("a")
    assert outcome.stopped == 1


def test_a_crash_before_readiness_is_survived_by_a_restart(world: FakeWorld) -> None:
    outcome = Outcome(world, spec("a", ready=("log", "x")))
    world.run("a")
    stale = world.probes.pop("a")
    world.end("a", EXIT_1)
    world.timers = world.timers[1:]  # not the one of ready_timeout
    world.fire()
    stale(True)
    assert outcome.started == []
    world.run("a")
    world.probes.pop("a")(True)
    assert outcome.started == [None]


def test_a_shutdown_in_the_middle_of_a_start_or_a_backoff(world: FakeWorld) -> None:
    outcome = Outcome(world, spec("a"), spec("b"), spec("c", after=["b"]))
    world.run("a")
    world.end("a", EXIT_1)
    outcome.stop()
    world.executed.pop("b")(None)
    world.end("b", 15)
    assert outcome.stopped == 1
    assert outcome.started == []
    assert world.fire() == []
    assert "+c" not in world.log


@given(st.data())
def test_whatever_happens_a_stop_ends_and_nothing_is_left(data: st.DataObject) -> None:
    world = FakeWorld()
    count = data.draw(st.integers(1, 4))
    specs = [
        spec(
            str(number),
            after=data.draw(st.lists(st.sampled_from("0123"[:number] or "x"), unique=True, max_size=number)),
            always=data.draw(st.booleans()),
            ready=data.draw(st.sampled_from([None, ("tcp", 1)])),
            max_restarts=data.draw(st.integers(0, 2)),
        )
        for number in range(count)
    ]  # fmt: skip
    outcome = Outcome(world, *specs)
    for _ in range(data.draw(st.integers(0, 12))):
        names = sorted({name for name, _ in world.running.values()})
        action = data.draw(st.sampled_from(["run", "end", "probe", "fire"]))
        if action == "fire":
            world.fire()
        elif action == "run" and world.executed:
            world.executed.pop(data.draw(st.sampled_from(sorted(world.executed))))(
                data.draw(st.sampled_from([None, "x"]))
            )
        elif action == "probe" and world.probes:
            world.probes.pop(data.draw(st.sampled_from(sorted(world.probes))))(data.draw(st.booleans()))
        elif action == "end" and names:
            name = data.draw(st.sampled_from(names))
            if name not in world.executed:
                world.end(name, data.draw(st.sampled_from([0, EXIT_1, 9])))
    outcome.stop()
    while world.running:
        name = sorted(name for name, _ in world.running.values())[0]
        # Nothing runs that was not told to end, or waits for another to do so.
        told = {each for each, _ in world.killed}
        name = next(each for each, _ in world.running.values() if each in told)
        world.end(name, 15)
    assert outcome.stopped == 1
    assert {each["state"] for each in outcome.daemons.list()} == {"stopped"}
    assert len(outcome.started) <= 1


ASKED: Mapping[str, Any] = {
    "name": "web", "command": ["x", "-y"], "cwd": "/srv", "user": "www", "env": {"A": "1"}, "harden": False,
    "signal": 2, "timeout": 3, "always": False, "max_restarts": 4,
    "ready": ["tcp", 80], "ready_timeout": 5, "after": ["db"],
}  # fmt: skip


def test_what_the_host_asks_for() -> None:
    assert parse(ASKED, {"PATH": "/bin", "A": "0"}) == Spec(
        "web",
        ["x", "-y"],
        "/srv",
        "www",
        {"PATH": "/bin", "A": "1"},
        False,
        2,
        3.0,
        False,
        4,
        ("tcp", 80),
        5.0,
        ["db"],
    )
    for broken in ({"signal": 4000}, {"timeout": "x"}, {"ready": 3}):
        with pytest.raises((ValueError, TypeError)):
            parse({**ASKED, **broken}, {})
