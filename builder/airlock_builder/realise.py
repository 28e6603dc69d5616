"""Carrying out a plan: from the image back to what the store lacks, each step built once. Called by build.

A step that the store has is not looked behind: its inputs may be gone.
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING

from airlock_builder.step import Reporter, Step, Work
from airlock_store.errors import BuildError, StoreError

if TYPE_CHECKING:
    from pathlib import Path

    from airlock_store.store import Store, StorePath

MODULES = {
    "fetch": "airlock_builder.rootfs.fetch",
    "toolbox": "airlock_builder.pack.toolbox",
    "rootfs": "airlock_builder.rootfs.mmdebstrap",
    "disk": "airlock_builder.pack.disk",
    "kernel": "airlock_builder.kernel.debian",
    "kernel-config": "airlock_builder.kernel.resolve",
    "compile": "airlock_builder.kernel.compile",
    "initrd": "airlock_builder.pack.initrd",
    "image": "airlock_builder.pack.image",
}
"""The module that carries out each kind of step: its `build(work)`."""


@dataclass(frozen=True, slots=True)
class StepResult:
    """What became of a step; `cached` when the store had it, or another process built it meanwhile."""

    kind: str
    name: str
    key: str
    path: Path
    seconds: float
    cached: bool


class Silent:
    """The reporter for those who want no report."""

    def step_started(self, step: Step) -> None:
        pass

    def step_progress(self, step: Step, fraction: float | None, text: str) -> None:
        pass

    def step_log(self, step: Step, line: str) -> None:
        pass

    def step_finished(self, step: Step, seconds: float, cached: bool) -> None:
        pass


class Realiser:
    """Realises steps into one store, each at most once; `results` says how."""

    def __init__(self, store: Store, reporter: Reporter) -> None:
        self.results: list[StepResult] = []
        self._store = store
        self._reporter = reporter
        self._done: dict[str, StorePath] = {}

    def realise(self, step: Step) -> StorePath:
        """The output of `step`. Raises BuildError, MissingToolError or StoreError."""
        if done := self._done.get(step.key):
            return done
        found = self._store.find(step.key, step.name)
        if not found:
            _check_root(self._store)
        inputs = {} if found else {role: self.realise(needed) for role, needed in step.inputs.items()}
        self._reporter.step_started(step)
        start = time.monotonic()
        built = False

        def build(output: Path) -> None:
            nonlocal built
            built = True
            _carry_out(step, inputs, output, self._store, self._reporter)

        path = found or self._store.realise(
            step.key,
            step.name,
            build,
            kind=step.kind,
            references=tuple(inputs.values()),
            waiting=lambda: self._reporter.step_progress(step, None, "waiting for another build of it"),
        )
        seconds = time.monotonic() - start
        self._reporter.step_finished(step, seconds, not built)
        self.results.append(StepResult(step.kind, step.name, step.key, path.path, seconds, not built))
        self._done[step.key] = path
        return path


def _carry_out(
    step: Step, inputs: dict[str, StorePath], output: Path, store: Store, reporter: Reporter
) -> None:
    scratch = output.parent / "scratch"
    scratch.mkdir()
    work = Work(
        step=step,
        inputs=inputs,
        output=output,
        scratch=scratch,
        store=store,
        log=lambda line: reporter.step_log(step, line),
        progress=lambda fraction, text: reporter.step_progress(step, fraction, text),
    )
    try:
        import_module(MODULES[step.kind]).build(work)
    except BuildError as error:
        raise BuildError(f"{step.name}: {error.message}", hint=error.hint, at=error.at) from error


def _check_root(store: Store) -> None:
    """Raise StoreError for a path with what tools take for something else: the toolbox's loader splits at some of
    these and expands others, apt's configuration ends a text at one."""
    path = os.fspath(store.root.absolute())
    found = next(
        (character for character in path if character in ':;"$\\' or not character.isprintable()), None
    )
    if found is not None:
        raise StoreError(
            f"nothing can be built into a store whose path has {found!r} in it: {path!r}",
            hint=store.advice("another directory"),
        )
