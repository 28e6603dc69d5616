"""`airlock stop`: end the running sandbox of this project in an orderly manner, from another terminal."""

from __future__ import annotations

from pathlib import Path

from airlock.cli import command, face


@command("stop", examples=["airlock stop"])
def stop() -> None:
    """Stop the running sandbox of this project: its commands, its daemons, its machine. Returns when all is gone.

    One that is still starting is stopped as well.
    """
    from airlock_runner.project import Project
    from airlock_runner.remote import stop as stop_session
    from airlock_runner.stdio import tell

    def note(text: str) -> None:
        if not face().quiet:
            tell(text)

    stop_session(Project.find(Path.cwd()), note)
