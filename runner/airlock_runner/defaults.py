"""What every command of a sandbox starts from. The session uses it for its command, the server for attached ones."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from airlock_runner.shape import first

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from airlock_runner.config import ProjectConfig
    from airlock_store.image import Image

PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
USER = "root"


@dataclass(frozen=True, slots=True)
class CommandDefaults:
    """The user that commands run as, whether without privileges, and their variables.

    airlockd adds what only the sandbox knows of the user: HOME, SHELL and so on, where `environment` lacks them.
    """

    environment: Mapping[str, str]
    user: str
    harden: bool

    @classmethod
    def of(cls, image: Image, config: ProjectConfig) -> CommandDefaults:
        """The project's word over the image's over airlock's."""
        return cls(
            environment={"PATH": PATH, "LANG": "C.UTF-8", **image.env, **config.env},
            user=first(config.vm.user, image.vm.user, USER),
            harden=first(config.vm.harden, image.vm.harden, True),
        )

    def call(self, env: Mapping[str, str]) -> dict[str, Any]:
        """The part of a `spawn` call that is decided here; `env` comes on top of the variables."""
        return {"env": {**self.environment, **env}, "user": self.user, "harden": self.harden}


def working_directory(project: Path, chosen: str | None) -> str:
    """Where a command starts: in our own directory where the sandbox shares it, or else in the project.

    What is `chosen` may be absolute, or relative to that.
    """
    here = os.getcwd()
    if here != os.fspath(project) and not here.startswith(f"{project}{os.sep}"):
        here = os.fspath(project)
    return os.path.join(here, chosen) if chosen is not None else here
