"""A sandbox from its machine's start to its end: configuration, daemons, the command, shutdown.

start.py makes one. One process, one loop: it is the only one that talks to airlockd, and it serves `airlock exec` on
cli.sock.
"""

from __future__ import annotations

import os
import re
import signal
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from airlock_runner import daemons, endings, promises
from airlock_runner.config import place_if_said
from airlock_runner.defaults import CommandDefaults, working_directory
from airlock_runner.machine import accel
from airlock_runner.machine.qemu import find_qemu
from airlock_runner.net.settle import POWER
from airlock_runner.patience import hang_seconds
from airlock_runner.project import DISK, IMAGE
from airlock_runner.server import Server
from airlock_runner.shape import machine_spec, too_many_emulated
from airlock_runner.starter import Starter
from airlock_runner.state import State, now
from airlock_runner.stdio import (
    RemoteCommand,
    Signals,
    Terminal,
    TooLongError,
    command_environment,
    complain,
    spawn_error_code,
    tell,
)
from airlock_runner.text import one_line
from airlock_runner.timeline import mark
from airlock_runner.watch import PING_SECONDS, DiskTrouble, Pulse
from airlock_store.errors import AirlockError, MachineError
from airlock_store.sizes import format_size
from airlockd.protocol.loop import Loop

if TYPE_CHECKING:
    from pathlib import Path

    from airlock_runner.changes import Changes
    from airlock_runner.control import Control
    from airlock_runner.files import Files
    from airlock_runner.mounts import Mounts
    from airlock_runner.net.network import Network
    from airlock_runner.start import StartRequest
    from airlockd.protocol.frames import Header

LEVELS = ("debug", "info", "warning", "error")
CONFIGURE_SECONDS = 180.0
SHUTDOWN_SECONDS = 30.0
INSISTENT = 3
"""Ctrl-C (or SIGTERM) so many times stops the sandbox, though the command ignores it."""


class Session:
    """One start. Methods follow a start in order; `_end` is where every way out meets."""

    def __init__(
        self, request: StartRequest, mounts: Mounts, asked: list[dict[str, Any]], network: Network, lock: int
    ) -> None:
        self._request = request
        self._patience = hang_seconds()
        self._project = request.project
        self._loop = Loop()
        self._terminal = Terminal()
        self._signals = Signals(self._loop, self._on_signal)
        self._command: RemoteCommand | None = None
        self._lock = lock
        self._place = self._project.moved(lock)
        self._server: Server | None = None
        self._stopping = self._configuring = self._begun = False
        self._files: Files | None = None
        self._changes: Changes | None = None
        self._result: int | AirlockError | None = None
        self._ending = False
        self._insisted = 0
        self._pulse: Pulse | None = None
        self._trouble: DiskTrouble | None = None
        qemu = find_qemu(request.image.arch)
        disk, self._new_disk = self._project.ensure_disk(
            request.config.disk.size, ephemeral=request.ephemeral
        )
        for warning in (*mounts.warnings, *network.warnings):
            self.note(0, warning)
        self._owner = self._project.owner()
        user = CommandDefaults.of(request.image, request.config).user
        if self._new_disk and not self._owner and user not in ("root", "0"):
            self.note(0, f"the project is root's: {user} can write there only where everybody may")
        self._mounts, self._network = mounts, network
        self._daemons = asked
        self._advice: str | None = None
        self._blamed: tuple[str, ...] = ()
        spec = machine_spec(
            request.image, request.config, root=self._project.root, qemu=qemu, disk=disk, shares=mounts.shares
        )
        plan = accel.candidates(request.accel, spec.arch, qemu)
        if plan.accelerators == ("tcg",) and plan.reason != "asked for" and accel.is_news(qemu, plan.reason):
            self.note(0, f"no hardware acceleration: {plan.reason}; using tcg, which is slower")
        if plan.accelerators == ("tcg",) and (slow := too_many_emulated(spec.cpus)):
            self.note(0, slow)
        self._starter = Starter(
            self._loop, spec, plan, (lock,), self, image=request.image, states=request.states
        )  # fmt: skip

    def run(self) -> int:
        """To the end. Raises the AirlockError that ended it."""
        self._server = Server(self._loop, self._project, on_stop=self._stop, on_net=self._network.command)
        self._starter.start()
        if not self._ending:
            self._loop.run()
        if isinstance(self._result, AirlockError):
            raise self._result
        return self._result or 0

    def close(self) -> None:
        """Leave nothing behind: no machine, no socket, the terminal as it was."""
        if self._command is not None:
            self._command.close()
        self._terminal.restore()
        if self._server is not None:
            self._server.close()
        if self._trouble is not None:
            self._trouble.close()
        self._network.close()
        for each in (self._files, self._changes):
            if each is not None:
                each.close()
        self._starter.stop()
        self._signals.close()
        self._loop.close()

    # ---- the way up

    def on_ready(self, header: Header) -> None:
        """airlockd serves: tell it what this project is."""
        mark("ready")
        self.note(1, f"airlockd is ready on Linux {one_line(str(header.get('kernel')), 80)}")
        broken = promises.broken(self._request.image, header)
        if broken is not None:
            broken = f"the kernel of image {self._request.image.name} is not as promised: {broken}"
            if self._request.config.vm.verify_kernel:
                hint = "build the image anew; [vm] verify_kernel = false starts it all the same"
                self._fail(MachineError(broken, hint=hint))
                return
            self.note(0, broken)
        machine = self._starter.machine
        if machine is not None and machine.monitor is not None:
            self._trouble = DiskTrouble(self._loop, machine.monitor, self._on_disk_trouble)
        self._deadline = self._loop.call_later(CONFIGURE_SECONDS, self._stuck)
        arguments = {
            "time": time.time_ns(),
            "hostname": sandbox_name(self._project.root),
            "machine_id": os.urandom(16).hex(),
            "root_key": self._request.image.rootfs_key,
            "new_disk": self._new_disk,
            "disk_size": self._starter.spec.disk.stat().st_size,
            "user": CommandDefaults.of(self._request.image, self._request.config).user,
            "owner": self._owner,
            "places": self._mounts.places,
        }
        self._configuring = True
        self._control.call(
            "configure", arguments, self._on_configured, self._on_refused, payload=os.urandom(64)
        )

    def _on_configured(self, _header: Header) -> None:
        mark("configured")
        self._deadline.cancel()
        spec = self._starter.spec
        image, size, powerful = self._request.image, self._request.config.disk.size, self._network.powerful
        if self._request.ephemeral:
            # The machine has it open. However this ends, nothing is left of it.
            self._project.forget_new_disk()
            size = self._project.disk_size() or size
        elif self._new_disk:
            self._project.keep_disk()
        last = self._project.read_state()
        if powerful and (last is None or last.sockets != powerful):
            self.note(0, f"{powerful}: {POWER}")
        self._project.write_state(
            State(image.name, str(image.path), spec.cpus, spec.memory, size, now(), powerful)
        )
        defaults = CommandDefaults.of(image, self._request.config)
        assert self._server is not None
        self._server.serve(self._control, defaults)
        self._project.note_up(self._lock)
        self._pulse = Pulse(self._loop, self._control, self._patience, self._stuck, self.note)
        self._pulse.start()
        self._look_for_directory()
        if self._stopping:
            self._stop()
            return
        machine = self._starter.machine
        assert machine is not None
        self._network.begin(self._loop, machine.take_network(), lambda text: self.note(0, text))
        listen = self._network.listen_call()
        if listen is None:
            self._put_files(defaults)
            return
        self._control.call(
            "listen", listen, lambda _header: self._put_files(defaults), self._on_listen_trouble
        )

    def _on_listen_trouble(self, header: Header) -> None:
        what = one_line(str(header.get("message")), 500)
        keys = self._network.keys_of(header)
        hint = "a socket can always be in /run, as in /run/NAME.sock" if "sockets" in keys else None
        at = place_if_said(self._project.root, *keys)
        self._end(MachineError(f"the sandbox cannot listen for [network]: {what}", hint=hint, at=at))

    def _put_files(self, defaults: CommandDefaults) -> None:
        if not self._mounts.files:
            self._start_daemons(defaults)
            return
        from airlock_runner.files import Files

        self._files = Files(self._loop, self._control, self._project, self.note)
        self._files.start(self._mounts.files, lambda: self._start_daemons(defaults), self._end)

    def _start_daemons(self, defaults: CommandDefaults) -> None:
        if not self._daemons:
            self._run_command(defaults)
            return
        # They may take long.
        self._starter.settled()
        self._control.call(
            "daemons",
            {"daemons": self._daemons, "env": defaults.environment},
            lambda _header: self._run_command(defaults),
            self._on_daemon_trouble,
        )

    def _on_daemon_trouble(self, header: Header) -> None:
        at = place_if_said(self._project.root, *self._blamed)
        self._end(MachineError(one_line(str(header.get("message")), 500), hint=self._advice, at=at))

    def _run_command(self, defaults: CommandDefaults) -> None:
        if self._ending:
            return
        self._begun = True
        if self._request.background is not None:
            self._starter.settled()
            self._request.background.up()
            return
        image = self._request.image
        login = self._request.login
        argv = self._request.argv or (() if login else image.vm.command or ("/bin/sh", "-l"))
        call = {
            "argv": argv,
            "cwd": working_directory(self._project.root, self._request.cwd),
            "login": login,
            **defaults.call(command_environment(self._request.env)),
        }

        def refused(header: Header) -> None:
            complain(argv, header, self._project.root)
            self._end(spawn_error_code(header))

        def started(_header: Header) -> None:
            self._starter.settled()

        try:
            self._command = RemoteCommand(
                self._control, self._terminal, call, self._end, refused, started=started
            )  # fmt: skip
        except TooLongError as error:
            self._end(error)

    def _on_refused(self, header: Header) -> None:
        keys = self._mounts.keys_of(header.get("place"))
        self._fail(endings.refused(str(header.get("message")), place_if_said(self._project.root, *keys)))

    # ---- while it runs

    def on_event(self, header: Header) -> None:
        """airlockd reports."""
        name = header.get("name")
        if name == "exit":
            if self._command is not None and header.get("process") == self._command.process:
                self._command.exited(header)
            elif self._server is not None:
                self._server.exited(header)
        elif name == "log":
            self._log(header)
        elif name == "daemon":
            if header.get("state") == "stopping" and self._server is not None:
                self._server.waits(f"waiting for daemon {one_line(str(header.get('daemon')), 64)} to end")
            text = daemons.line(header)
            if text is not None:
                self.note(0, text)
            self._advice = daemons.advice(header, self._request.config.daemons) or self._advice
            self._blamed = daemons.blamed(header) or self._blamed
        elif name == "file":
            if self._files is not None:
                self._files.changed(header)
        elif name == "watch":
            self._watched(header)
        elif name == "oom":
            victim = one_line(str(header.get("text")), 100)
            memory = format_size(self._starter.spec.memory)
            self.note(0, f"the sandbox ran out of memory ({memory}) and its kernel killed process {victim}; "
                         "raise [vm] memory")  # fmt: skip

    def _watched(self, header: Header) -> None:
        if self._changes is None:
            from airlock_runner.changes import Changes

            self._changes = Changes(self._loop, self._control, self._mounts.shares)
        self._changes.watch(header)

    def _on_signal(self, number: int) -> None:
        if number == signal.SIGWINCH or (self._command is not None and not self._ending):
            if self._command is not None:
                self._command.signal(number)
            if number not in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
                return
            self._insisted += 1
            if number == signal.SIGHUP or self._insisted >= INSISTENT:
                self._end(128 + number)
        elif self._ending:
            # What the command wrote is on its way to the disk: that is not cut short lightly.
            self._insisted += 1
            if self._insisted >= INSISTENT:
                self._loop.stop()
        elif self._server is not None and self._server.up:
            # Daemons are starting.
            self._end(128 + number)
        else:
            self._result = 128 + number
            self._loop.stop()

    def _look_for_directory(self) -> None:
        """No `git clean` leaves a machine that nobody can find any more: the lock says when its directory is gone.

        One that was moved is not, and keeps its image from its new place; that of a command in the foreground is for
        whoever sees it to end.
        """
        if os.fstat(self._lock).st_nlink:
            self._keep_moved()
            self._loop.call_later(PING_SECONDS, self._look_for_directory)
            return
        gone = f"{self._project.directory} was removed while the sandbox ran, and its disk with it"
        if self._request.background is not None:
            self._end(MachineError(f"{gone}; the sandbox was stopped"))
        else:
            self.note(
                0, f"{gone}: no other command reaches the sandbox, and what is on the disk is lost at its end"
            )

    def _keep_moved(self) -> None:
        place = self._project.moved(self._lock)
        if place == self._place:
            return
        from airlock_store.gc import keep_project_link
        from airlock_store.store import Store

        self._place = place
        # Into a store that is read-only now, nobody else writes either.
        with suppress(AirlockError):
            keep_project_link(Store.open(), place.directory / IMAGE)

    def _on_disk_trouble(self, node: str, reason: str, full: bool) -> None:
        if node != "disk":
            self.note(0, f"the host cannot read the sandbox's image: {reason}; the sandbox sees I/O errors")
            return
        what = f"the host cannot write the sandbox's disk ({self._project.directory / DISK}): {reason}"
        advice = "; make room on the host and start the sandbox again" if full else ""
        self.note(0, f"{what}; the sandbox sees I/O errors{advice}")

    # ---- the way down

    def _end(self, result: int | AirlockError) -> None:
        """The command ended: have airlockd put everything away, then end the machine."""
        if self._ending:
            return
        mark("command ended")
        self._ending = True
        self._insisted = 0
        if self._pulse is not None:
            self._pulse.close()
        self._result = result
        self._terminal.restore()
        if self._server is not None:
            self._server.refuse()

        def late() -> None:
            self.note(0, "the sandbox did not shut down in time and was stopped hard")
            self._loop.stop()

        patience = daemons.patience(self._request.config.daemons)
        if patience is not None:
            self._loop.call_later(SHUTDOWN_SECONDS + patience, late)
        self._control.call(
            "shutdown", {}, lambda _header: self._loop.stop(), lambda _header: self._loop.stop()
        )

    def _stop(self) -> None:
        """`airlock stop`: the end that a SIGTERM makes which nobody handles."""
        assert self._server is not None
        background = self._request.background is not None
        if self._server.up and not self._stopping and (self._begun or not background):
            self._end(0 if background else 128 + signal.SIGTERM)
            return
        # Before it was up, which whoever started it waits for.
        stopped = MachineError("the sandbox was stopped while it started")
        if self._server.up:
            self._end(stopped)
        elif self._configuring:
            # Its disk is in use: that is ended in order, once it can be.
            self._stopping = True
        else:
            self._fail(stopped)

    def _stuck(self) -> None:
        self._die(f"the sandbox has not answered for {self._patience:.0f} seconds and was stopped")

    def on_close(self, reason: str | None) -> None:
        """The machine ended by itself, or broke the protocol."""
        if self._result is not None and self._ending:
            # Its result is there; what was lost is only the tidy end.
            self._loop.stop()
        elif reason:
            self._die(f"the sandbox was stopped: {one_line(reason, 300)}")
        else:
            assert self._starter.machine is not None
            self._die(endings.how_it_died(self._starter.machine))

    def on_failure(self, error: MachineError) -> None:
        """The machine never came up."""
        self._fail(error)

    def _die(self, what: str) -> None:
        self._fail(endings.with_console(what, self._starter.machine, self._project))

    def _fail(self, error: AirlockError) -> None:
        self._ending = True
        self._result = error
        self._loop.stop()

    # ---- helpers

    @property
    def _control(self) -> Control:
        return self._starter.control

    def note(self, verbosity: int, text: str) -> None:
        """A line on stderr for a user who did not ask for silence."""
        if not self._request.quiet and verbosity <= self._request.verbosity:
            tell(text)
            if self._request.background is not None:
                self._request.background.told()

    def _log(self, header: Header) -> None:
        """airlockd's own messages, from the level on that was asked for."""
        level = header.get("level")
        if level in LEVELS and LEVELS.index(level) >= LEVELS.index(self._request.log_level):
            self.note(0, f"airlockd: {one_line(str(header.get('text')), 300)}")


def sandbox_name(root: Path) -> str:
    """A host name made of the project directory's name: letters, digits and hyphens, at most 63 (RFC 1123)."""
    words = re.findall(r"[a-z0-9]+", root.name.lower())
    return "-".join(words)[:63].rstrip("-") or "airlock"
