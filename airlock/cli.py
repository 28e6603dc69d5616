"""The command line proper: a click group that imports a command only when it is called, and what all commands share.

`airlock.main` calls `run`; the modules in `airlock.commands` use `command`, `group` and `face`.
"""

from __future__ import annotations

import importlib
import os
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import click

from airlock import __version__
from airlock.commands import ALIASES, COMMANDS, root_help
from airlock.failure import USAGE, explain
from airlock_store.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from click.shell_completion import CompletionItem

COMPLETE = "_AIRLOCK_COMPLETE"


@dataclass(slots=True)
class Face:
    """How this call of airlock behaves towards its user."""

    quiet: bool = False


def face() -> Face:
    """The behaviour asked for, wherever on the command line `-q` was."""
    found = click.get_current_context().find_root().ensure_object(Face)
    assert isinstance(found, Face)
    return found


def run(arguments: Sequence[str]) -> int:
    """Run airlock with these arguments; gives the exit code. Everything that can go wrong is said on stderr."""
    for stream in (sys.stdout, sys.stderr):
        # Names of files and output of guests may hold what the terminal's encoding does not.
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    try:
        # Not `root.main`, which exits by itself and takes a closed pipe for an ordinary failure.
        if instruction := os.environ.get(COMPLETE):
            return _complete(instruction)
        with root.make_context("airlock", list(arguments)) as context:
            code = root.invoke(context)
        sys.stdout.flush()
    except click.exceptions.NoArgsIsHelpError as alone:
        click.echo(alone.format_message(), err=True)
        return USAGE
    except click.exceptions.Exit as end:
        code = end.exit_code
    except SystemExit:
        raise
    except BaseException as error:
        return explain(error)
    return code if isinstance(code, int) else 0


def _complete(instruction: str) -> int:
    from click.shell_completion import shell_complete

    return shell_complete(root, {}, "airlock", COMPLETE, instruction)


def _be_quiet(_context: click.Context, _parameter: click.Parameter, value: bool) -> None:
    if value:
        face().quiet = True


def _quiet_option() -> click.Option:
    return click.Option(
        ["-q", "--quiet"],
        is_flag=True,
        expose_value=False,
        callback=_be_quiet,
        help="Print nothing but results.",
    )


class Command(click.Command):
    """A command with `-q` and an example at the end of its help."""

    def __init__(self, *args: Any, examples: Sequence[str] = (), **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.examples = examples
        self.params.append(_quiet_option())

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        _write_examples(self.examples, formatter)


class Group(click.Group):
    """A group of commands with an example at the end of its help."""

    command_class = Command

    def __init__(self, *args: Any, examples: Sequence[str] = (), **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.examples = examples

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        _write_examples(self.examples, formatter)


class _Root(click.Group):
    """`airlock` itself: the table in `airlock.commands`, one import per call."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        entry = COMMANDS.get(ALIASES.get(cmd_name, cmd_name))
        if entry is None:
            return None
        module, _, attribute = entry[0].partition(":")
        found = getattr(importlib.import_module(module), attribute)
        assert isinstance(found, click.Command)
        return found

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        name = args[0]
        if not ctx.resilient_parsing and ALIASES.get(name, name) not in COMMANDS and not name.startswith("-"):
            import difflib

            close = difflib.get_close_matches(name, [*COMMANDS, *ALIASES], n=1)
            meant = f" Did you mean {close[0]!r}?" if close else ""
            ctx.fail(f"There is no command {name!r}.{meant}")
        return super().resolve_command(ctx, args)

    def get_help(self, ctx: click.Context) -> str:
        return root_help().rstrip("\n")


def paths(_context: object, _parameter: object, incomplete: str) -> list[CompletionItem]:
    """Completes an argument with files and directories, by the shell itself."""
    from click.shell_completion import CompletionItem

    return [CompletionItem(incomplete, type="file")]


def directories(_context: object, _parameter: object, incomplete: str) -> list[CompletionItem]:
    """The same with directories alone."""
    from click.shell_completion import CompletionItem

    return [CompletionItem(incomplete, type="dir")]


def recipes(context: object, parameter: object, incomplete: str) -> list[CompletionItem]:
    """Completes an argument with the names of recipes, or what has a slash with the files that there are."""
    from click.shell_completion import CompletionItem

    from airlock_builder.recipe import find_recipes

    if "/" in incomplete or incomplete.startswith(("~", ".")):
        return paths(context, parameter, incomplete)
    return [CompletionItem(each.name) for each in find_recipes() if each.name.startswith(incomplete)]


def _variables(_context: object, _parameter: object, given: tuple[str, ...]) -> dict[str, str]:
    from airlock_store.settings import check_env

    found = {}
    for pair in given:
        name, separator, value = pair.partition("=")
        if not separator and name not in os.environ:
            raise UsageError(
                f"-e {pair}: there is no such variable here",
                hint="to set one in the sandbox alone: -e NAME=VALUE",
            )
        found[name] = value if separator else os.environ[name]
        try:
            check_env(name, found[name])
        except ValueError as error:
            raise UsageError(f"-e: {error}") from error
    return found


def _names(_context: object, _parameter: object, incomplete: str) -> list[CompletionItem]:
    from click.shell_completion import CompletionItem

    return [CompletionItem(name) for name in os.environ if name.startswith(incomplete)]


variables = click.option(
    "-e", "--env", metavar="K[=V]", multiple=True, callback=_variables, shell_complete=_names,
    help="Set a variable for CMD, or pass on the one that is set here; may be repeated.",
)  # fmt: skip
"""The option of commands that run one in the sandbox: they get a dictionary, `env`."""


def command(
    name: str, *, examples: Sequence[str], **settings: Any
) -> Callable[[Callable[..., Any]], Command]:
    """Make a function an airlock command. Its docstring is the help; what it returns is the exit code (None: 0)."""
    return click.command(name, cls=Command, examples=examples, **settings)


def group(name: str, *, examples: Sequence[str]) -> Callable[[Callable[..., Any]], Group]:
    """Make a function a group of airlock commands."""
    return click.group(name, cls=Group, examples=examples)


def _write_examples(examples: Sequence[str], formatter: click.HelpFormatter) -> None:
    with formatter.section("Examples" if len(examples) > 1 else "Example"):
        for example in examples:
            formatter.write(f"{'':{formatter.current_indent}}{example}\n")


@click.command(
    "airlock",
    cls=_Root,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    params=[_quiet_option()],
)
@click.version_option(__version__, "-V", "--version", message="airlock %(version)s")
def root() -> None:
    """The whole command line; its help is `root_help`."""
