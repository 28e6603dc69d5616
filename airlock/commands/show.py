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
def show(as_json: bool) -> None:
    """Show the sandbox of this project: image, machine, disk, whether it runs."""
    from dataclasses import asdict

    from airlock_runner.project import Project

    project = Project.find(Path.cwd())
    status = project.status() if project else None
    if status is None:
        raise AirlockError(NO_DATA, hint="`airlock start` makes a sandbox here")
    if as_json:
        say_json({**asdict(status), "status": status.state})
        return
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
            ("cpus", str(status.cpus)),
            ("memory", format_size(status.memory)),
            ("disk", f"{format_size(status.disk_used)} of {format_size(status.disk_size)}"),
            ("last run", status.last_run or "never"),
            *warnings,
        ]
    )
