"""What commands print as results, on stdout: lines, tables, JSON. Text of files and guests is made safe on the way."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import click

from airlock_runner.text import printable

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

LIMIT = 1 << 20


def say(text: str) -> None:
    """Print `text`, control characters escaped."""
    click.echo(printable(text, LIMIT))


def note(text: str) -> None:
    """Print a remark for people on stderr, control characters escaped."""
    click.echo(printable(text, LIMIT), err=True)


def say_json(value: Any) -> None:
    """Print `value` as JSON, one document, indented."""
    import json

    click.echo(json.dumps(value, indent=2, default=os.fspath))


def say_toml(text: str) -> None:
    """Print TOML, all of it, control characters in its strings escaped as TOML has it."""
    click.echo(
        "".join(
            each if each.isprintable() or each == "\n"
            else f"\\u{ord(each):04x}" if ord(each) <= 0xFFFF
            else f"\\U{ord(each):08x}"
            for each in text
        )
    )  # fmt: skip


def in_comment(path: Path) -> str:
    """`path` as it can stand in a comment of TOML, which ends with its line."""
    return str(path).replace("\n", "\\n")


def say_table(rows: Iterable[Sequence[str]], heads: Sequence[str] = ()) -> None:
    """Print rows in columns, two blanks between them; numbers and sizes look best in the last columns."""
    cells = [[one_line(cell) for cell in row] for row in ([heads, *rows] if heads else rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    for row in cells:
        padded = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        click.echo("  ".join(padded).rstrip())


def one_line(text: str) -> str:
    """`text` as it can stand in a table or a progress display: one line, control characters escaped."""
    return printable(" ".join(text.split()), 500)


def space_of(path: Path) -> int:
    """Bytes that a tree takes on the disk."""
    total = 0
    for directory, names, files in os.walk(path):
        for name in (*names, *files):
            total += os.lstat(os.path.join(directory, name)).st_blocks * 512
    return total
