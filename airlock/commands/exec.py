"""`airlock exec`: one more command in the sandbox that runs for this project."""

from __future__ import annotations

from pathlib import Path

import click

from airlock.cli import command, directories, paths
from airlock_store.errors import UsageError


@command(
    "exec",
    examples=["airlock exec -- ps aux", "airlock x -w /tmp -e LANG=C sh"],
    context_settings={"allow_interspersed_args": False},
)
@click.option(
    "-w",
    "--workdir",
    metavar="DIR",
    shell_complete=directories,
    help="Directory in the sandbox, also relative to this one (default: this one, if shared).",
)
@click.option("-e", "--env", "pairs", metavar="K=V", multiple=True, help="Set a variable; may be repeated.")
@click.option("--login", is_flag=True, help="Run CMD by the user's login shell; without CMD, that shell.")
@click.argument("argv", metavar="CMD...", nargs=-1, shell_complete=paths)
def exec_(workdir: str | None, pairs: tuple[str, ...], login: bool, argv: tuple[str, ...]) -> int:
    """Run CMD in the running sandbox of this project, and exit as CMD does.

    The sandbox is found from this directory upwards.
    """
    from airlock_runner.attach import attach
    from airlock_runner.project import Project

    if not argv and not login:
        raise click.UsageError("Missing argument 'CMD...'.", click.get_current_context())
    return attach(Project.find(Path.cwd()), argv, workdir, dict(map(_variable, pairs)), login=login)


def _variable(pair: str) -> tuple[str, str]:
    from airlock_store.settings import check_env

    name, separator, value = pair.partition("=")
    if not separator:
        raise UsageError(f"-e {pair}: expected NAME=VALUE")
    try:
        check_env(name, value)
    except ValueError as error:
        raise UsageError(f"-e: {error}") from error
    return name, value
