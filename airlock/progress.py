"""How a build is shown while it goes on: bars on a terminal, lines elsewhere, nothing when quiet. All on stderr.

The builder calls a reporter's four methods, from any thread; `reporter` picks one for the commands.
"""

from __future__ import annotations

import sys
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from airlock.output import note, one_line
from airlock_builder.realise import Silent

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from airlock_builder.step import Reporter, Step

LINE_SECONDS = 10.0
"""Without a terminal, a step's progress is not told more often."""


@contextmanager
def reporter(*, quiet: bool, verbose: bool = False) -> Iterator[Reporter]:
    """The reporter that fits stderr. With `verbose`, what the tools write is shown too."""
    if quiet:
        yield Silent()
    elif sys.stderr.isatty():
        with Bars(verbose) as bars:
            yield bars
    else:
        yield Lines(verbose)


def duration(seconds: float) -> str:
    """Seconds for people: "0.4 s", "12 s", "2 min 05 s"."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02} s" if minutes else f"{rest} s"


class Lines(Silent):
    """A line when a step begins and one when it ends, and some on the way if it takes long: for logs and pipes."""

    def __init__(self, verbose: bool, clock: Callable[[], float] = time.monotonic) -> None:
        self._verbose = verbose
        self._clock = clock
        self._told: dict[str, tuple[int, float]] = {}
        """Of each step: the tenth that was told last, and when."""

    def step_progress(self, step: Step, fraction: float | None, text: str) -> None:
        """Say that it began, since only what is done shows progress; then each tenth, if these are slow."""
        if step.key not in self._told:
            self._told[step.key] = 0, self._clock()
            note(f"{_title(step)} ...")
        tenth, last = self._told[step.key]
        reached = int((fraction or 0.0) * 10)
        if reached > tenth and (now := self._clock()) - last >= LINE_SECONDS:
            self._told[step.key] = reached, now
            note(f"{_title(step)}: {reached}0 %, {one_line(text)}")

    def step_log(self, step: Step, line: str) -> None:
        """Pass the line on if the user wants it."""
        self.step_progress(step, None, "")
        if self._verbose:
            note(f"  {one_line(line)}")

    def step_finished(self, step: Step, seconds: float, cached: bool) -> None:
        """Say how long it took. What was there already is not worth a line."""
        if not cached:
            note(f"{_title(step)}: done in {duration(seconds)}")


class Bars(Silent):
    """One bar per step that runs, with its time and the latest that its tool wrote."""

    def __init__(self, verbose: bool) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
        from rich.table import Column

        self._verbose = verbose
        self._tasks: dict[str, Any] = {}
        self._progress = Progress(
            SpinnerColumn(finished_text="[green]✓"),
            # markup=False: a package or a file may well be called [x].
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=24),
            TimeElapsedColumn(),
            TextColumn(
                "{task.fields[text]}", style="dim", markup=False, table_column=Column(no_wrap=True, ratio=1)
            ),
            console=Console(stderr=True),
            expand=True,
        )

    def __enter__(self) -> Bars:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def step_started(self, step: Step) -> None:
        """Add its bar."""
        self._tasks[step.key] = self._progress.add_task(_title(step), total=None, text="")

    def step_progress(self, step: Step, fraction: float | None, text: str) -> None:
        """Move its bar."""
        task = self._tasks.get(step.key)
        if task is not None:
            total, completed = (None, 0.0) if fraction is None else (1.0, fraction)
            self._progress.update(task, total=total, completed=completed, text=one_line(text))

    def step_log(self, step: Step, line: str) -> None:
        """Show it beside the bar, or above all bars if the user wants every line."""
        if self._verbose:
            self._progress.console.print(one_line(line), markup=False, highlight=False)
        elif step.key in self._tasks:
            self._progress.update(self._tasks[step.key], text=one_line(line))

    def step_finished(self, step: Step, seconds: float, cached: bool) -> None:
        """Fill its bar, or leave no trace of a step that had nothing to do."""
        task = self._tasks.pop(step.key, None)
        if task is None:
            return
        if cached:
            self._progress.remove_task(task)
        else:
            self._progress.update(task, total=1.0, completed=1.0, text="")


def _title(step: Step) -> str:
    return f"{step.kind} {one_line(step.name)}"
