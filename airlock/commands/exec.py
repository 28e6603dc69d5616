"""`airlock exec`: one more command in the sandbox that runs for this project."""

from __future__ import annotations

from pathlib import Path

import click

from airlock.cli import command, directories, paths, variables


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
@variables
@click.option("--login", is_flag=True, help="Run CMD by the user's login shell; without CMD, that shell.")
@click.argument("argv", metavar="CMD...", nargs=-1, shell_complete=paths)
def exec_(workdir: str | None, env: dict[str, str], login: bool, argv: tuple[str, ...]) -> int:
    """Run CMD in the running sandbox of this project, and exit as CMD does.

    The sandbox is found from this directory upwards.
    """
    from airlock_runner.attach import attach
    from airlock_runner.project import Project

    if not argv and not login:
        raise click.UsageError("Missing argument 'CMD...'.", click.get_current_context())
    return attach(Project.find(Path.cwd()), argv, workdir, env, login=login)
