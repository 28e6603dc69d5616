"""`airlock ps`: what airlock runs in the sandbox of this project: daemons and attached commands."""

from __future__ import annotations

from pathlib import Path

import click

from airlock.cli import command
from airlock.output import say_json, say_table


@command("ps", examples=["airlock ps", "airlock ps --json"])
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def ps(as_json: bool) -> None:
    """List the daemons of the running sandbox, and the commands that `airlock exec` runs in it.

    Pids are those in the sandbox.
    """
    from airlock_runner.project import Project
    from airlock_runner.remote import running

    found = running(Project.find(Path.cwd()))
    if as_json:
        say_json(found)
        return
    rows = [
        (
            "daemon",
            str(each.get("name")),
            str(each.get("state")),
            _number(each.get("pid")),
            str(each.get("restarts")),
        )
        for each in found["daemons"]
    ]
    rows += [
        ("exec", " ".join(each["argv"]) or "login shell", "up", _number(each.get("pid")), "")
        for each in found["commands"]
    ]
    say_table(rows, heads=("KIND", "NAME", "STATE", "PID", "RESTARTS"))


def _number(pid: object) -> str:
    return str(pid) if pid else "-"
