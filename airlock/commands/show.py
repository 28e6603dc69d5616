"""`airlock show`: what the project's sandbox is and how large it has become."""

from __future__ import annotations

from pathlib import Path

import click

from airlock.cli import command
from airlock.output import say_json, say_table
from airlock_store.errors import AirlockError
from airlock_store.sizes import format_size

NO_DATA = "No project data"


@command("show", examples=["airlock show", "airlock show --json"])
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def show(as_json: bool) -> int:
    """Show the sandbox of this project: image, machine, disk, whether it runs.

    Exits with 1 where something is wrong with it.
    """
    from dataclasses import asdict

    from airlock_runner.project import Project

    project = Project.find(Path.cwd())
    status = project.status() if project else None
    if status is None:
        raise no_data("`airlock start` makes a sandbox here")
    if as_json:
        say_json({**asdict(status), "status": status.state})
        return int(bool(status.trouble))
    running = status.state if status.running_pid is None else f"{status.state} (pid {status.running_pid})"
    warnings = []
    if status.sockets:
        from airlock_runner.net.settle import POWER

        warnings = [("warning", f"{status.sockets}: {POWER}")]
    say_table(
        [
            ("path", str(status.path)),
            ("status", running),
            ("image", f"{status.image_name} ({status.image_path})" if status.image_name else "-"),
            ("cpus", str(status.cpus or "-")),
            ("memory", format_size(status.memory) if status.memory else "-"),
            ("disk", f"{format_size(status.disk_used)} of {format_size(status.disk_size)}"),
            ("last run", status.last_run or "never"),
            *warnings,
            *([("trouble", status.trouble)] if status.trouble else ()),
        ]
    )
    return int(bool(status.trouble))


def no_data(hint: str) -> AirlockError:
    """Why no sandbox can be seen from here: there is none, or the place of a project's own is no directory."""
    from airlock_runner.config import find_config
    from airlock_runner.project import Project, ProjectError

    here = Path.cwd()
    for directory in (here, *here.parents):
        if directory == here or find_config(directory):
            try:
                Project(directory).check_directory()
            except ProjectError as error:
                return error
    return AirlockError(NO_DATA, hint=hint)
