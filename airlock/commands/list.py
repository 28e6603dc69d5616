"""`airlock list`: the sandboxes of this user, wherever their projects are."""

from __future__ import annotations

import click

from airlock.cli import command
from airlock.output import note, one_line, say_json, say_table
from airlock_store.sizes import format_size


@command("list", examples=["airlock list", "airlock list --json"])
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def list_(as_json: bool) -> int:
    """List all sandboxes of this user, wherever their projects are.

    Exits with 1 where something is wrong with one.
    """
    from dataclasses import asdict

    from airlock_runner.project import Project
    from airlock_store.gc import project_links
    from airlock_store.store import Store

    roots = (link.parents[2] for link in project_links(Store.open()))
    found = [status for root in sorted(roots) if (status := Project(root).status()) is not None]
    troubles = [each.trouble for each in found if each.trouble]
    for trouble in troubles:
        note(f"airlock: {one_line(trouble)}")
    if as_json:
        say_json([{**asdict(each), "status": each.state} for each in found])
        return int(bool(troubles))
    rows = [
        (
            str(each.path),
            each.state,
            each.image_name,
            format_size(each.disk_used),
            each.last_run,
        )
        for each in found
    ]
    say_table(rows, heads=("PATH", "STATUS", "IMAGE", "DISK", "LAST RUN"))
    return int(bool(troubles))
