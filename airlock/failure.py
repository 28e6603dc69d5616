"""The one place where an exception becomes a message on stderr and an exit code. Called by `airlock.cli`."""

from __future__ import annotations

import os
import sys

import click

from airlock.main import INTERRUPTED
from airlock_runner.text import printable
from airlock_store.errors import AirlockError, ConfigError

FAILED, USAGE, INTERNAL, PIPE_CLOSED = 1, 2, 70, 141
LIMIT = 20_000  # characters of a message: more than a screen or two helps nobody


def explain(error: BaseException) -> int:
    """Say on stderr what went wrong and what to do; gives the exit code. Never a traceback unless asked for."""
    if os.environ.get("AIRLOCK_TRACEBACK"):
        import traceback

        traceback.print_exception(error)
    written = _output_is_written()
    match error:
        case AirlockError():
            if isinstance(error, ConfigError) and len(error.problems) > 1:
                _say_several(error)
            else:
                _say(error.title, str(error), error.hint)
            return error.exit_code
        case click.UsageError():
            path = error.ctx.command_path if error.ctx else "airlock"
            _say("Usage error", error.format_message(), f"{path} --help")
            return USAGE
        case click.Abort() | KeyboardInterrupt():
            return INTERRUPTED
        case BrokenPipeError():
            return PIPE_CLOSED
        case click.ClickException():
            _say("Error", error.format_message(), None)
        case FileNotFoundError() if not _here():
            _say("Error", "the directory that airlock was started in is gone", "change to one that is there")
        case OSError() if error.strerror:
            where = f"{error.filename}: " if error.filename else "" if written else "standard output: "
            _say("Error", f"{where}{error.strerror}", "AIRLOCK_TRACEBACK=1 shows what airlock was doing")
        case _:
            hint = (
                "this is a bug in airlock: please report it with the traceback that AIRLOCK_TRACEBACK=1 shows"
            )
            _say("Internal error", f"{type(error).__name__}: {error}", hint)
            return INTERNAL
    return FAILED


def _output_is_written() -> bool:
    """Whether nothing is left for standard output. If it cannot be written, what is left goes nowhere: the interpreter
    would complain of it at exit."""
    try:
        sys.stdout.flush()
    except OSError:
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, sys.stdout.fileno())
        os.close(null)
        return False
    return True


def _here() -> bool:
    try:
        os.getcwd()
    except FileNotFoundError:
        return False
    return True


def _say(title: str, message: str, hint: str | None) -> None:
    click.echo(f"{_title(title)} {printable(message, LIMIT)}{_hint(hint)}", err=True)


def _say_several(error: ConfigError) -> None:
    """A line for each problem, and below it what to do about that one."""
    text = _title(error.title)
    for problem in error.problems:
        if len(text) > LIMIT:
            text += "\n  and more"
            break
        text += f"\n  {printable(str(problem), LIMIT)}{_hint(problem.hint, '    ')}"
    click.echo(text, err=True)


def _title(title: str) -> str:
    return _paint(f"{title}:", "1;31")


def _hint(hint: str | None, indent: str = "  ") -> str:
    lines = printable(hint or "", LIMIT).splitlines()
    return "".join(f"\n{indent}{_paint('hint:', '1')} {line}" for line in lines)


def _paint(text: str, style: str) -> str:
    plain = not sys.stderr.isatty() or os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb"
    return text if plain else f"\x1b[{style}m{text}\x1b[0m"
