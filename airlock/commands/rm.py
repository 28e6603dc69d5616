"""`airlock rm`: forget the project's sandbox, its disk included."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from airlock.cli import command, face
from airlock.commands.show import no_data
from airlock.output import note, one_line, say
from airlock_store.errors import UsageError
from airlock_store.sizes import format_size


@command("rm", examples=["airlock rm", "airlock rm --force"])
@click.option("-f", "--force", is_flag=True, help="Do not ask.")
def rm(force: bool) -> int:
    """Remove the sandbox of this project with everything on its disk. The project's own files stay."""
    from airlock_runner.project import Project

    project = Project.find(Path.cwd())
    if project is None:
        raise no_data("there is no sandbox here to remove")
    if not force:
        if not sys.stdin.isatty():
            raise UsageError("nobody here to ask whether to remove the sandbox", hint="airlock rm --force")
        status = project.status()
        used = f" ({format_size(status.disk_used)})" if status else ""
        if not click.confirm(
            f"Remove the sandbox of {one_line(str(project.root))} and its disk{used}?", err=True
        ):
            note("Nothing removed")
            return 1
    project.remove()
    if not face().quiet:
        say("Sandbox removed")
    return 0
