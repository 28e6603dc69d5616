"""Daemons of a sandbox: started in order, waited for until they are ready, restarted, stopped. Called by supervisor.

What is decided here is free of the kernel: a `World` starts and signals processes, so that tests can be one.
"""

from __future__ import annotations

import os
import signal
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from airlockd.protocol.loop import Timer

POLL = 0.1
"""Seconds between two probes of one daemon that is not ready yet."""
BACKOFF, MAX_BACKOFF = 1.0, 30.0
"""Seconds before the first restart, and by which each further one waits longer, up to a bound."""


class Spec(NamedTuple):
    """A daemon as the host asks for it. `ready`: what to probe, (kind, value), or nothing. Times in seconds."""

    name: str
    argv: Sequence[str]
    cwd: str
    user: str
    env: Mapping[str, str]
    harden: bool
    signal: int
    timeout: float
    always: bool
    max_restarts: int
    ready: tuple[str, Any] | None
    ready_timeout: float
    after: Sequence[str]


class World(Protocol):
    """What daemons need of the kernel. Process ends are reported to the callback that came with the start."""

    def start(self, spec: Spec, failed: Callable[[str | None], None], ended: Callable[[int], None]) -> int:
        """Start it; gives the pid. `failed` hears why it was not executed, or None, and always before `ended`.

        Raises OSError where there is no process to be had at this time.
        """

    def probe(self, spec: Spec, answer: Callable[[bool], None]) -> None:
        """Ask once whether it is ready."""

    def kill(self, pid: int, number: int) -> None:
        """Signal the process, or with SIGKILL its whole group."""

    def call_later(self, seconds: float, callback: Callable[[], None]) -> Timer:
        """A timer."""

    def tell(self, name: str, state: str, **details: Any) -> None:
        """Let the host know."""


class Daemon:
    """One daemon. States: waiting, starting, up, backoff, ended, failed, stopping, stopped."""

    def __init__(self, spec: Spec, world: World, changed: Callable[[], None]) -> None:
        self.spec, self.state = spec, "waiting"
        self.pid = self.restarts = 0
        self._world, self._changed = world, changed
        self._timer: Timer | None = None
        self._run = 0
        self._problem: str | None = None

    def start(self) -> None:
        """Run it, for the first time or again."""
        self.state, self._timer = "starting", None
        self._run += 1
        self._problem = None
        run = self._run
        try:
            self.pid = self._world.start(
                self.spec,
                lambda problem: self._executed(run, problem),
                lambda status: self._ended(run, status),
            )
        except OSError as error:
            # The sandbox may have used up what there is: there may be more later.
            self._again_or_never(f"not started: {error.strerror or error}")
            return
        self._changed()

    def stop(self) -> None:
        """Ask it to end, and insist when its time is over. Its state is then `stopped`, maybe at once."""
        if self.state in ("starting", "up"):
            self._set("stopping")
            self._world.tell(self.spec.name, "stopping")
            self._world.kill(self.pid, self.spec.signal)
            if self.spec.timeout:
                self._timer = self._world.call_later(self.spec.timeout, self._insist)
        elif self.state != "stopping":
            self._set("stopped")

    def _executed(self, run: int, problem: str | None) -> None:
        if run != self._run or self.state != "starting":
            return
        self._problem = problem
        if problem is None:
            if self.spec.ready is None:
                self._up()
            else:
                self._probe(run)

    def _probe(self, run: int) -> None:
        def answer(ready: bool) -> None:
            if run != self._run or self.state != "starting":
                return
            if ready:
                self._up()
            else:
                self._timer = self._world.call_later(POLL, lambda: self._probe(run))

        if run == self._run and self.state == "starting":
            self._world.probe(self.spec, answer)

    def _up(self) -> None:
        self._world.tell(self.spec.name, "up", restarts=self.restarts)
        self._set("up")

    def _ended(self, run: int, status: int) -> None:
        if run != self._run:
            return
        pid, self.pid = self.pid, 0
        if self.state == "stopping":
            # What it left behind ends with it.
            self._world.kill(pid, signal.SIGKILL)
            self._world.tell(self.spec.name, "stopped")
            self._set("stopped")
            return
        how = self._problem or describe(status)
        if status == 0 and not self.spec.always:
            self._world.tell(self.spec.name, "ended", how=how)
            self._set("ended")
            return
        # What it left behind could keep from the next what that needs: a port, a lock.
        self._world.kill(pid, signal.SIGKILL)
        if self._problem is not None:
            self._give_up(how)
        else:
            self._again_or_never(how)

    def _give_up(self, how: str) -> None:
        self._world.tell(self.spec.name, "failed", how=how, restarts=self.restarts)
        self._set("failed")

    def _again_or_never(self, how: str) -> None:
        if 0 < self.spec.max_restarts <= self.restarts:
            self._give_up(how)
        else:
            self.restarts += 1
            delay = min(BACKOFF * self.restarts, MAX_BACKOFF)
            self._set("backoff")
            self._timer = self._world.call_later(delay, self.start)
            self._world.tell(self.spec.name, "backoff", how=how, restarts=self.restarts, delay=delay)

    def _insist(self) -> None:
        self._world.tell(self.spec.name, "killed", timeout=self.spec.timeout)
        self._world.kill(self.pid, signal.SIGKILL)

    def _set(self, state: str) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self.state = state
        self._changed()


class Daemons:
    """All of them. `start` once, `stop` once."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._all: dict[str, Daemon] = {}
        self._started: Callable[[str | None], None] | None = None
        self._stopped: Callable[[], None] | None = None
        self._timers: list[Timer] = []

    def start(self, specs: Sequence[Spec], then: Callable[[str | None], None]) -> None:
        """Start each once those that it comes after are ready. `then` hears None when all are, or what is wrong."""
        self._started = then
        for spec in specs:
            self._all[spec.name] = Daemon(spec, self._world, self._advance)
        self._advance()

    def stop(self, then: Callable[[], None]) -> None:
        """Stop each once those that come after it have; then call back."""
        self._started, self._stopped = None, then
        for timer in self._timers:
            timer.cancel()
        self._advance()

    def list(self) -> list[dict[str, Any]]:
        """What `airlock ps` shows."""
        return [
            {"name": name, "state": each.state, "pid": each.pid, "restarts": each.restarts}
            for name, each in self._all.items()
        ]

    def _advance(self) -> None:
        if self._stopped is not None:
            self._stop_next()
        elif self._started is not None:
            self._start_next()

    def _start_next(self) -> None:
        for name, daemon in self._all.items():
            if daemon.state == "failed" or (daemon.state == "ended" and daemon.spec.ready is not None):
                self._finish(f"daemon {name} ended before it was ready")
                return
            before = [self._all[other].state for other in daemon.spec.after]
            if daemon.state == "waiting" and all(state in ("up", "ended") for state in before):
                if daemon.spec.ready is not None:
                    self._timers.append(self._world.call_later(daemon.spec.ready_timeout, self._late(daemon)))
                # It calls back to here.
                daemon.start()
                return
        if all(daemon.state in ("up", "ended") for daemon in self._all.values()):
            self._finish(None)

    def _late(self, daemon: Daemon) -> Callable[[], None]:
        def late() -> None:
            if self._started is not None and daemon.state not in ("up", "ended"):
                self._world.tell(daemon.spec.name, "late")
                self._finish(
                    f"daemon {daemon.spec.name} was not ready after {daemon.spec.ready_timeout:g} seconds"
                )

        return late

    def _finish(self, problem: str | None) -> None:
        if self._started is not None:
            then, self._started = self._started, None
            then(problem)

    def _stop_next(self) -> None:
        for name, daemon in reversed(self._all.items()):
            followers = [each for each in self._all.values() if name in each.spec.after]
            if daemon.state not in ("stopping", "stopped") and all(
                each.state == "stopped" for each in followers
            ):
                daemon.stop()
                return
        if self._stopped is not None and all(daemon.state == "stopped" for daemon in self._all.values()):
            then, self._stopped = self._stopped, None
            then()


def describe(status: int) -> str:
    """A wait status in words."""
    code = os.waitstatus_to_exitcode(status)
    return f"exit code {code}" if code >= 0 else f"signal {-code}"


def parse(asked: Mapping[str, Any], base: Mapping[str, str]) -> Spec:
    """What the host asks for; `base` is the environment of all commands. Raises KeyError, TypeError, ValueError."""
    ready = asked["ready"]
    return Spec(
        name=str(asked["name"]),
        argv=[str(word) for word in asked["command"]],
        cwd=str(asked["cwd"]),
        user=str(asked["user"]),
        env={**base, **{str(key): str(value) for key, value in asked["env"].items()}},
        harden=bool(asked["harden"]),
        signal=int(signal.Signals(asked["signal"])),
        timeout=float(asked["timeout"]),
        always=bool(asked["always"]),
        max_restarts=int(asked["max_restarts"]),
        ready=(str(ready[0]), ready[1]) if ready else None,
        ready_timeout=float(asked["ready_timeout"]),
        after=[str(name) for name in asked["after"]],
    )
