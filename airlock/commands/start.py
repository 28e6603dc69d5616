"""`airlock start`: the main thing. A command runs in the project's sandbox, which is made and booted as needed."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from airlock.cli import command, directories, face, paths, recipes, variables
from airlock.output import note
from airlock_store.errors import ConfigError, UsageError

if TYPE_CHECKING:
    from airlock_runner.machine.states import States
    from airlock_runner.project import Project
    from airlock_store.image import Image

NO_CONFIG = "No airlock.toml found"

NEW_CONFIG = """\
# What `airlock start` boots in this directory. All keys: docs/configuration.md
[vm]
image = "base"
"""


@command(
    "start",
    examples=[
        "airlock start",
        "airlock start -- uname -a",
        "echo data | airlock -q start -- sha256sum",
        "airlock start --ephemeral -e CI=1 -- make test",
        "airlock start --image ./my-image.toml -- uname -r",
    ],
    context_settings={"allow_interspersed_args": False},
)
@click.option(
    "--image", "ref", metavar="IMAGE", shell_complete=recipes,
    help="Recipe name, recipe file or store path to boot instead.",
)  # fmt: skip
@click.option(
    "--accel", type=click.Choice(["auto", "kvm", "hvf", "tcg"]), default="auto", show_default=True,
    help="What runs the machine; auto tries, and falls back to tcg.",
)  # fmt: skip
@click.option(
    "--log-level", type=click.Choice(["debug", "info", "warning", "error"]), default="warning", show_default=True,
    help="What airlockd logs.",
)  # fmt: skip
@click.option("--login", is_flag=True, help="Run CMD by the user's login shell; without CMD, that shell.")
@click.option(
    "--sandbox-cwd", "cwd", metavar="DIR", shell_complete=directories,
    help="Directory in the sandbox to start in (default: this one).",
)  # fmt: skip
@variables
@click.option("-d", "--detach", is_flag=True, help="Leave the sandbox running, for exec, until airlock stop.")
@click.option(
    "--ephemeral", is_flag=True, help="Use a disk that is gone afterwards; the project's own stays as it is."
)
@click.option("--cold", is_flag=True, help="Boot the kernel, do not restore or save machine state.")
@click.option("-v", "--verbose", count=True, help="Say more about the start.")
@click.argument("argv", metavar="[--] [CMD]...", nargs=-1, shell_complete=paths)
def start(
    *,
    ref: str | None,
    accel: str,
    log_level: str,
    login: bool,
    cwd: str | None,
    env: dict[str, str],
    detach: bool,
    ephemeral: bool,
    cold: bool,
    verbose: int,
    argv: tuple[str, ...],
) -> int:
    """Run CMD in the sandbox of this directory, and exit as CMD does (128+n if signal n ended it).

    airlock.toml says what the sandbox is. Its image is built first if the store lacks it. Without CMD, the image's
    own command runs, usually a shell.
    """
    from airlock import images
    from airlock_runner import approval
    from airlock_runner.config import configured_image, load_config
    from airlock_runner.project import Project
    from airlock_runner.start import StartRequest
    from airlock_runner.start import start as start_session

    if detach and (argv or login or cwd or env):
        raise UsageError(
            "--detach runs no command", hint="run commands with `airlock exec` once it has started"
        )
    root = Path.cwd()
    project = Project(root)
    project.check_place()
    _require_config(root)
    agreed = approval.require(root)
    configured = configured_image(root)
    project.prepare()
    image = _image(ref, configured, project, verbose)
    config = load_config(root, under=images.brought_by(image))
    request = StartRequest(
        project=project,
        image=image,
        config=config,
        argv=argv,
        login=login,
        cwd=cwd,
        env=env,
        ephemeral=ephemeral,
        accel=accel,
        quiet=face().quiet,
        verbosity=verbose,
        log_level=log_level,
        states=None if cold else _states(image),
        agreed=agreed,
    )
    if detach:
        from airlock.failure import explain
        from airlock_runner.detach import start_detached

        return start_detached(request, explain)
    return start_session(request)


def _states(image: Image) -> States | None:
    """Where states of this image are kept; none for an image outside the store, whose key nobody vouches for."""
    from airlock import images
    from airlock_runner.machine.states import States
    from airlock_store.store import Store

    store = Store.open()
    return States.of_store(store.root) if images.in_store(image, store) else None


def _require_config(root: Path) -> None:
    from airlock_runner.config import CONFIG_NAME, find_config

    if find_config(root):
        return
    if sys.stdin.isatty() and sys.stderr.isatty() and not face().quiet:
        note(f"{NO_CONFIG} in {root}.")
        if click.confirm("Create one with the image 'base'?", default=True, err=True):
            (root / CONFIG_NAME).write_text(NEW_CONFIG)
            return
    raise UsageError(
        f"{NO_CONFIG} in {root}",
        hint="start airlock where the project is, or make one: "
        """printf '[vm]\\nimage = "base"\\n' > airlock.toml""",
    )


def _image(chosen: str | None, configured: str | None, project: Project, verbose: int) -> Image:
    """The image to boot, built if it has to be, and kept from now on for as long as the project has a sandbox."""
    from airlock import images
    from airlock_runner.config import load_config, place_of
    from airlock_runner.project import IMAGE
    from airlock_store.gc import add_project_root
    from airlock_store.image import MANIFEST, load_image
    from airlock_store.store import Store

    ref = (configured or images.DEFAULT_RECIPE) if chosen is None else chosen
    store = Store.open()
    while True:
        image = images.stored(ref, store, project.root)
        if image is None:
            from airlock_builder.build import plan

            try:
                planned = plan(ref, base=project.root)
                if store.find(planned.image_key, planned.image_name) is None:
                    # What is wrong in the config is better told before a long build than after it.
                    load_config(project.root, under=images.brought_by_plan(planned))
                result = images.realise(planned, store, quiet=face().quiet, verbose=verbose > 0)
            except ConfigError as error:
                if error.at is None and chosen is None:
                    error.at = place_of(project.root, "vm", "image")
                raise
            image = load_image(result.image.path)
        add_project_root(store, project.directory / IMAGE, image.path)
        # Nobody collects it from now on; somebody may have before, while we waited.
        if (image.path / MANIFEST).is_file():
            return image
