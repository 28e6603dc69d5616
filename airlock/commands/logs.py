"""`airlock logs`: what the daemons of the running sandbox have written."""

from __future__ import annotations

from pathlib import Path

import click

from airlock.cli import command
from airlock_store.errors import AirlockError


@command("logs", examples=["airlock logs", "airlock logs dockerd -f"])
@click.option("-f", "--follow", is_flag=True, help="Go on with what they write from now on, until Ctrl-C.")
@click.argument("name", required=False)
def logs(name: str | None, follow: bool) -> int:
    """Print the logs of the daemon NAME, or of all, since the sandbox was started.

    The sandbox's own `tail` prints them.
    """
    from airlock_runner.attach import attach
    from airlock_runner.project import Project
    from airlock_runner.remote import running

    project = Project.find(Path.cwd())
    names = [str(each.get("name")) for each in running(project)["daemons"]]
    if name is not None and name not in names:
        raise AirlockError(
            f"there is no daemon {name!r} in this sandbox", hint=", ".join(names) or "it has none"
        )
    files = [
        f"/airlock/daemons/{each}/{stream}.log"
        for each in ([name] if name is not None else names)
        for stream in ("stdout", "stderr")
    ]
    if not files:
        return 0
    return attach(project, ["tail", "-n", "+1", *(["-F"] if follow else []), "--", *files], "/", {})
