"""Fragments: Jinja2 templates whose lines are kernel options, rendered so that each line knows where it was written.

Called by `wanted`. Jinja2 is imported here and nowhere else, and not by planning.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from jinja2 import Environment, StrictUndefined, TemplateError, TemplateSyntaxError
from jinja2.ext import Extension
from jinja2.lexer import Token

from airlock_builder.features import FRAGMENT_SUFFIX as SUFFIX
from airlock_builder.kernel.dotconfig import parse_line
from airlock_store.errors import ConfigError, Location

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from jinja2.lexer import TokenStream

_MARK = "\x1f"


@dataclass(frozen=True, slots=True)
class Line:
    """An option that a fragment sets, with the line of the template that says so."""

    option: str
    value: str
    fragment: str
    number: int

    @property
    def place(self) -> str:
        """The place for people: `tun.config.j2:5`."""
        return f"{self.fragment}{SUFFIX}:{self.number}"


class _LineNumbers(Extension):
    """Puts the template's line number behind each line of literal text."""

    def filter_stream(self, stream: TokenStream) -> Iterable[Token]:
        for token in stream:
            if token.type != "data":
                yield token
                continue
            *lines, rest = token.value.split("\n")
            marked = (f"{line}{_MARK}{token.lineno + n}\n" for n, line in enumerate(lines))
            yield Token(token.lineno, "data", "".join(marked) + rest)


def render(name: str, source: str, variables: Mapping[str, object]) -> list[Line]:
    """The options of the fragment `name` with this text.

    Raises ConfigError, with the line, for a template that is wrong, an undefined variable, a line that is no option,
    and an option that is to be a module: airlock's own kernels have none.
    """
    path = Path(f"{name}{SUFFIX}")
    if _MARK in source:
        raise ConfigError("a fragment cannot hold the character 0x1f", at=Location(path))
    environment = Environment(
        undefined=StrictUndefined,
        extensions=[_LineNumbers],
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=False,
    )
    try:
        text = environment.from_string(source.rstrip("\n") + "\n").render(variables)
    except TemplateSyntaxError as error:
        raise ConfigError(f"not a template: {error.message}", at=Location(path, error.lineno, 1)) from error
    except (TemplateError, ArithmeticError, LookupError, TypeError, ValueError) as error:
        at = Location(path, _line_of(error), 1)
        raise ConfigError(f"the template fails: {error}", at=at) from error
    return [line for raw in text.splitlines() if (line := _read(name, path, raw)) is not None]


def _read(name: str, path: Path, raw: str) -> Line | None:
    text, _, number = raw.partition(_MARK)
    # A line that a template's own code printed has the number of the text around it, or none.
    at = Location(path, int(number), 1) if re.fullmatch("[0-9]+", number) else Location(path)
    try:
        found = parse_line(text)
        if found is not None and found[1] == "m":
            raise ValueError("airlock's kernels have no modules: write y, which Debian's modules satisfy")
    except ValueError as error:
        raise ConfigError(str(error), at=at) from error
    return Line(*found, name, at.line) if found is not None else None


def _line_of(error: Exception) -> int:
    """The line of the template that was at work when `error` was raised, which Jinja2 puts into the traceback."""
    line, frame = 0, error.__traceback__
    while frame is not None:
        if frame.tb_frame.f_code.co_filename == "<template>":
            line = frame.tb_lineno
        frame = frame.tb_next
    return line
