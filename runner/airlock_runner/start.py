"""`airlock start`: what is asked for, what has to be settled before a machine runs, and what is looked at after it.

The command calls `start`, in the background by way of detach.py. What happens while the machine runs is session.py's.
"""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Protocol

from airlock_runner import approval, daemons, timeline
from airlock_runner.borders import writable_by_sandbox
from airlock_runner.config import fingerprint, place_of
from airlock_runner.machine.virtiofs import choose_daemon
from airlock_runner.mounts import over_virtiofs, settle
from airlock_runner.net.network import Network
from airlock_runner.session import Session
from airlock_runner.shape import boot_files
from airlock_runner.timeline import mark
from airlock_store.errors import AirlockError, ConfigError, noting
from airlock_store.sizes import format_size

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from airlock_runner.config import ProjectConfig
    from airlock_runner.machine.states import States
    from airlock_runner.mounts import Mounts
    from airlock_runner.project import Project
    from airlock_store.image import Image


class Background(Protocol):
    """Whoever starts a sandbox that nobody waits for."""

    def up(self) -> None:
        """Commands can be attached."""

    def told(self) -> None:
        """Something was said on stderr."""


@dataclass(frozen=True, slots=True)
class StartRequest:
    """What `airlock start` wants. An empty `argv` means the image's command, or a shell.

    In the `background` there is no command: the sandbox runs until it is stopped. `login`: by the user's login shell.
    `cwd`: the command's directory in the sandbox, None for ours if it is shared. `env` are variables of it alone.
    `ephemeral`: on a disk that is gone afterwards. `states` is where saved machine states are kept, or None for a cold
    boot. `agreed` is what the config said when `config` was made of it, by `approval.require`.
    """

    project: Project
    image: Image
    config: ProjectConfig
    argv: tuple[str, ...]
    login: bool = False
    cwd: str | None = None
    env: Mapping[str, str] = field(default_factory=dict)
    ephemeral: bool = False
    accel: str = "auto"
    quiet: bool = False
    verbosity: int = 0
    log_level: str = "warning"
    states: States | None = None
    background: Background | None = None
    agreed: approval.Settings | None = None


def start(request: StartRequest) -> int:
    """Run the command in the project's sandbox; gives its exit code (128+n for a signal).

    Raises AirlockError for everything else that ends a start.
    """
    mark("request")
    project = request.project
    project.prepare()
    with project.lock() as lock:
        if not request.ephemeral:
            settle_disk_size(request)
        mounts, network = _settle(request)
        daemon = choose_daemon(request.config.vm.share, cold=request.states is None)
        if daemon is not None:
            # A machine whose memory another process serves cannot be saved or restored.
            mounts, request = over_virtiofs(mounts, daemon), replace(request, states=None)
        asked = daemons.asked(request.config.daemons)
        session = Session(request, mounts, asked, network, lock)
        before = fingerprint(project.root)
        approval.begin(project.root, _agreed(request))
        try:
            return session.run()
        finally:
            session.close()
            _look_at_config(session, project.root, before)
            mark("end")
            timeline.write()


def _settle(request: StartRequest) -> tuple[Mounts, Network]:
    """What the config asks for of this host, all that is wrong in it told together. The network holds ports."""
    config, project = request.config, request.project
    problems: list[ConfigError] = []
    mounts = network = None
    with noting(problems):
        mounts = settle(config, project.root)
    with noting(problems):
        boot_files(config, project.root, request.image.arch)
    with noting(problems):
        network = Network(config.network, project, writable_by_sandbox(config, project.root))
    if mounts is None or network is None or problems:
        if network is not None:
            network.close()
        raise ConfigError.of(problems)
    return mounts, network


def _agreed(request: StartRequest) -> approval.Settings:
    """What the user agreed to, unless it is another by now."""
    now = approval.snapshot(request.project.root)
    if request.agreed is not None and request.agreed != now:
        raise ConfigError(
            f"the config of {request.project.root} was changed while the sandbox was to start",
            hint="start again",
        )
    return now


def _look_at_config(session: Session, root: Path, before: dict[str, tuple[int, ...]]) -> None:
    """It decides what of the host the next sandbox gets to see, and this one could write to it."""
    after = fingerprint(root)
    touched = sorted({name for name, _ in before.items() ^ after.items()})
    # What the config boots may have changed too, though no config file did.
    if not approval.end(root):
        return
    for name in touched or ["what the config names"]:
        session.note(0, f"{name} was changed while the sandbox ran: the next start asks whether to use it")


def settle_disk_size(request: StartRequest) -> None:
    """A smaller `[disk] size` means a new disk: say so, and go on only if the user agrees."""
    project, size = request.project, request.config.disk.size
    present = request.project.disk_size()
    if present is None or size >= present:
        return
    loss = f"the disk would shrink from {format_size(present)} to {format_size(size)}: all data on it will be lost"
    if not os.isatty(0) or not os.isatty(2):
        hint = f"keep [disk] size at {format_size(present)}, or give up the data with `airlock rm`"
        raise ConfigError(loss, hint=hint, at=place_of(project.root, "disk", "size"))
    sys.stderr.write(f"airlock: {loss}. Go on? [y/N] ")
    sys.stderr.flush()
    if sys.stdin.readline().strip().lower() not in ("y", "yes"):
        raise AirlockError("not started; the disk is as it was")
    project.drop_disk()
