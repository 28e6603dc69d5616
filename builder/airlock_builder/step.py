"""A step of a plan: what it is made of and the key that follows from it; and what a step's code gets to work with.

The plan makes steps, the realiser runs them, each kind's module implements `build(work)`.
"""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Protocol

from airlock_store.paths import KEY_LENGTH

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from airlock_store.store import Store, StorePath

_NOTHING: Mapping[str, Any] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class Step:
    """One derivation: `kind` of work on `parameters` (JSON values) and the outputs of `inputs`.

    `version` is that of the kind's code. `payload` helps to carry the work out (paths of sources whose digests are
    among the parameters, places for error messages) and has no part in the key.
    """

    kind: str
    name: str
    version: int
    parameters: Mapping[str, Any]
    inputs: Mapping[str, Step] = field(default_factory=lambda: _NOTHING)
    payload: Mapping[str, Any] = field(default_factory=lambda: _NOTHING, compare=False, repr=False)
    key: str = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "key", self._derive())

    def _derive(self) -> str:
        return digest_of(
            {
                "kind": self.kind,
                "name": self.name,
                "version": self.version,
                "parameters": self.parameters,
                "inputs": {role: step.key for role, step in self.inputs.items()},
            }
        )[:KEY_LENGTH]


def canonical(value: object) -> bytes:
    """The one JSON text of `value`: keys sorted, no spaces, ASCII. Raises TypeError for what JSON cannot hold.

    Keys of objects must be strings and floats finite, so that different values never share a text: a float's is the
    shortest that gives it back, which has a dot or an exponent, as no integer has.
    """
    return json.dumps(_plain(value), sort_keys=True, separators=(",", ":")).encode()


def digest_of(value: object) -> str:
    """sha256 over the canonical JSON of `value`, in hex."""
    return hashlib.sha256(canonical(value)).hexdigest()


class Reporter(Protocol):
    """Who hears how a build goes. Called from any thread of the build."""

    def step_started(self, step: Step) -> None: ...

    def step_progress(self, step: Step, fraction: float | None, text: str) -> None:
        """`fraction` goes from 0 to 1, None when nobody knows."""

    def step_log(self, step: Step, line: str) -> None:
        """A line that a tool wrote. It may hold any character."""

    def step_finished(self, step: Step, seconds: float, cached: bool) -> None: ...


@dataclass(frozen=True, slots=True)
class Work:
    """What a step's code gets: an empty directory `output` to fill, `scratch` to make a mess in, and its inputs."""

    step: Step
    inputs: Mapping[str, StorePath]
    output: Path
    scratch: Path
    store: Store
    log: Callable[[str], None]
    progress: Callable[[float | None, str], None]

    @property
    def parameters(self) -> Mapping[str, Any]:
        """The parameters of the step."""
        return self.step.parameters


def _plain(value: object) -> object:
    if isinstance(value, (str, bool, int)) or value is None:
        return value
    if isinstance(value, float) and math.isfinite(value):
        return value
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if hasattr(value, "items"):
        pairs = {key: _plain(item) for key, item in value.items()}
        if all(isinstance(key, str) for key in pairs):
            return pairs
    raise TypeError(f"{type(value).__name__} has no place in a key")
