"""`airlock image`: the images in the store."""

from __future__ import annotations

from pathlib import Path

import click

from airlock.cli import group, recipes
from airlock.output import say_json, say_table, space_of
from airlock_store.errors import ConfigError, StoreError
from airlock_store.sizes import format_size


@group("image", examples=["airlock image list", "airlock image inspect base"])
def image() -> None:
    """List and inspect the images in the store."""


@image.command("list", examples=["airlock image list", "airlock image list --json"])
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def list_images(as_json: bool) -> int:
    """List the images in the store. Exit code 1 if one cannot be read; the others are listed all the same."""
    from airlock.failure import explain
    from airlock_store.image import load_image
    from airlock_store.store import Store

    images, code = [], 0
    for path in Store.open().images():
        try:
            images.append((load_image(path.path), space_of(path.path)))
        except StoreError as error:
            code = explain(error)
    if as_json:
        say_json(
            [{"name": each.name, "key": each.key, "path": each.path, "size": size} for each, size in images]
        )
    else:
        say_table(
            ((each.name, each.summary, format_size(size), str(each.path)) for each, size in images),
            heads=("NAME", "SUMMARY", "SIZE", "PATH"),
        )
    return code


@image.command("inspect", examples=["airlock image inspect base", "airlock image inspect base --json"])
@click.argument("ref", metavar="IMAGE", shell_complete=recipes)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def inspect(ref: str, as_json: bool) -> None:
    """Show what IMAGE is made of: a recipe's name or file, or a store path. Nothing is built."""
    import shlex

    from airlock.images import brought_by, find
    from airlock_runner.config.layers import without_disabled
    from airlock_runner.config.load import whole
    from airlock_store.store import Store

    found = find(ref, Store.open(), Path.cwd())
    brought, problems = whole(without_disabled(brought_by(found)))
    if problems:
        raise ConfigError.of(problems)
    size = space_of(found.path)
    facts: dict[str, object] = {
        "name": found.name,
        "summary": found.summary,
        "path": found.path,
        "key": found.key,
        "size": size,
        "arch": found.arch,
        "kernel": found.kernel_release,
        "rootfs": f"{found.rootfs_format}, {format_size(found.rootfs.stat().st_size)}",
        "features": list(found.features),
        "memory": found.vm.memory,
        "cpus": found.vm.cpus,
        "harden": found.vm.harden,
        "user": found.vm.user,
        "command": list(found.vm.command),
        "env": dict(found.env),
        "daemons": found.brings.get("daemons") or {},
        "binds": (found.brings.get("disk") or {}).get("bind") or {},
    }
    if as_json:
        say_json({**facts, "rootfs": found.rootfs, "rootfs_format": found.rootfs_format})
        return
    facts["size"] = format_size(size)
    facts["memory"] = format_size(found.vm.memory) if found.vm.memory else None
    facts["features"] = " ".join(found.features)
    facts["command"] = " ".join(found.vm.command)
    facts["env"] = " ".join(f"{name}={value}" for name, value in found.env.items())
    facts["daemons"] = ", ".join(
        f"{name} ({shlex.join(each.command)})" for name, each in brought.daemons.items()
    )
    facts["binds"] = ", ".join(f"{name} at {each.path}" for name, each in brought.disk.bind.items())
    say_table((name, str(value)) for name, value in facts.items() if value not in (None, ""))
