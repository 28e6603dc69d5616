"""`airlock list`: the sandboxes of this user, wherever their projects are."""

from __future__ import annotations

import click

from airlock.cli import command
from airlock.output import say_json, say_table
from airlock_store.sizes import format_size


@command("list", examples=["airlock list", "airlock list --json"])
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def list_(as_json: bool) -> None:
    """List all sandboxes of this user, wherever their projects are."""
    from dataclasses import asdict

    from airlock_runner.project import Project
    from airlock_store.gc import project_links
    from airlock_store.store import Store

    roots = (link.parents[2] for link in project_links(Store.open()))
    found = [status for root in sorted(roots) if (status := Project(root).status()) is not None]
    if as_json:
        say_json([{**asdict(each), "status": each.state} for each in found])
        return
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
