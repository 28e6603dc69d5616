"""Why a sandbox ended that should not have, in words for the user. The session calls it.

What the guest said is hostile text, and is made safe on the way.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from airlock_runner.project import ProjectError
from airlock_runner.text import last_lines, one_line, panic_reason
from airlock_store.errors import MachineError

if TYPE_CHECKING:
    from airlock_runner.machine.process import Machine
    from airlock_runner.project import Project
    from airlock_store.errors import Location


def how_it_died(machine: Machine) -> str:
    """What a machine died of that has closed its sockets."""
    machine.drain_console()
    status, said = machine.wait()
    reason = panic_reason(machine.tail)
    if reason is not None:
        return f"the sandbox's kernel panicked: {reason}"
    return f"the sandbox's machine ended (status {status})" + (f": {one_line(said, 300)}" if said else "")


def with_console(what: str, machine: Machine | None, project: Project) -> MachineError:
    """`what` as an error, with the end of the console, all of which is kept in a file of the project's."""
    console = machine.tail if machine is not None else ""
    if not console.strip():
        return MachineError(what)
    try:
        kept = f" (all of it: {project.write_console(console)})"
    except (OSError, ProjectError):
        # A full disk, for one, which may be what it died of.
        kept = ""
    return MachineError(f"{what}\nThe last lines of its console{kept}:\n{last_lines(console)}")


def refused(message: str, at: Location | None = None) -> MachineError:
    """airlockd could not set the sandbox up; `message` is its word, `at` where the config asks for what it is about."""
    hint = None
    if "No space left on device" in message:
        hint = "if the sandbox's disk is full, a larger [disk] size makes room"
    elif any(word in message for word in ("disk.img", "airlock-disk", "e2fsck")):
        hint = "keep a copy of .airlock/sandbox/disk.img if it matters, then start afresh with `airlock rm`"
    text = f"the sandbox could not be set up: {one_line(message, 500)}"
    return MachineError(text, hint=hint, at=at)
