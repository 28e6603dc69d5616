"""The one small hierarchy of errors that every part of airlock raises; only the CLI turns them into exit codes.

A message says what is wrong, a hint says what to do, a location says where. Nothing here exits or prints.
"""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path


@dataclass(frozen=True, slots=True)
class Location:
    """A place in a file that a person wrote. Lines and columns count from 1; 0 means that they are unknown."""

    path: Path
    line: int = 0
    column: int = 0

    def __str__(self) -> str:
        if not self.line:
            return str(self.path)
        return f"{self.path}:{self.line}:{self.column}"


class AirlockError(Exception):
    """Something went wrong that a user can be told about in a sentence."""

    exit_code = 1
    title = "Error"

    def __init__(self, message: str, *, hint: str | None = None, at: Location | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.at = at

    def __str__(self) -> str:
        return f"{self.at}: {self.message}" if self.at else self.message


class ConfigError(AirlockError):
    """A recipe, a config file or an argument is wrong. Carries every problem of a file, not only the first."""

    exit_code = 2
    title = "Config error"
    _several: tuple[ConfigError, ...] = ()

    @classmethod
    def of(cls, problems: Sequence[ConfigError]) -> ConfigError:
        """One error for several problems (at least one), in the order given."""
        if len(problems) == 1:
            return problems[0]
        error = cls("\n".join(str(problem) for problem in problems))
        error._several = tuple(each for problem in problems for each in problem.problems)
        return error

    @property
    def problems(self) -> tuple[ConfigError, ...]:
        """What it is made of: each with its own place and hint."""
        return self._several or (self,)


@contextmanager
def noting(problems: list[ConfigError]) -> Iterator[None]:
    """Go on after the block whatever ConfigError it raises, with its problems added to these."""
    try:
        yield
    except ConfigError as error:
        problems.extend(error.problems)


class UsageError(AirlockError):
    """The command line or the place where it was run is wrong."""

    exit_code = 2


class StoreError(AirlockError):
    """The store, or something in it, cannot be used."""


class BuildError(AirlockError):
    """A step of a build failed."""


class MissingToolError(AirlockError):
    """A program that a step or the runner needs is not installed. The hint names the package that has it."""


class MachineError(AirlockError):
    """The virtual machine could not be started, or died."""
