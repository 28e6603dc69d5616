"""airlockd: PID 1 in the VM. Boots what is generic, says READY, then serves the host's calls on the control port.

`/init` in the initrd calls `main`. The order of a start reads from `main` and `_configure` like a table of contents.
"""

from __future__ import annotations

import os
import signal
import sys
import time
import traceback
from typing import TYPE_CHECKING, Any, NoReturn

from airlockd import boot, daemons, disk, entropy, harden, identity, kernelcheck, linux, memory, switches
from airlockd.asks import Asks
from airlockd.layout import PlaceError, expand
from airlockd.net.process import NetworkProcess
from airlockd.net.process import start as start_network
from airlockd.process import MAX_DESCRIPTORS, Command, Inside, Process, SpawnError, kill_group
from airlockd.protocol.link import Link
from airlockd.protocol.loop import Loop
from airlockd.root import SANDBOX, TRASH, Root
from airlockd.watches import Watches

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from airlockd import files
    from airlockd.protocol.mux import Message

VERSION = 11
"""Of the calls below; the host refuses an image whose airlockd speaks another."""
_CHILDREN = "/proc/1/task/1/children"
DESCRIPTORS = 65536
"""That airlockd may have open. A command takes up to four."""
GRACE = 2.0
"""Seconds that processes left over at shutdown have between SIGTERM and SIGKILL."""

_TO_EVERYBODY = signal.valid_signals() - {
    signal.SIGKILL, signal.SIGSTOP, signal.SIGCONT, signal.SIGCHLD, signal.SIGPIPE, signal.SIGXFSZ,
}  # fmt: skip
"""What root in the sandbox may send to all that there is, and may end or stop a process.

Left out is what nobody can ignore, what does no harm, and what Python ignores by itself.
"""


def main() -> NoReturn:
    """PID 1. Any error here is fatal to the VM, and the host shows what it prints."""
    try:
        boot.mount_kernel_filesystems()
        boot.let_it_rest()
        linux.set_hostname("airlock")
        linux.set_name("airlockd")
        _protect()
        boot.load_modules()
        switches.switch_over()
        boot.open_devices()
        linux.loopback_up()
        boot.mount_image(_parameter("airlock.rootfs") or "ext4")
        boot.read_ahead()
        control = boot.open_port("airlock.control")
        # Held open from the beginning: a port has one opener, and that is never somebody else.
        port, packets = boot.open_port("airlock.network"), boot.open_port("airlock.packets")
        # It serves the sandbox's processes to their end, and they end by a SIGTERM to everybody.
        for number in _TO_EVERYBODY:
            signal.signal(number, signal.SIG_IGN)
        network = start_network(port, packets, control)
        # The kernel spares PID 1 what it does not handle; Python would handle a SIGINT.
        for number in _TO_EVERYBODY:
            signal.signal(number, signal.SIG_DFL)
        Supervisor(control, network, boot.find_disk("airlock-disk")).run()
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
    os.sync()
    linux.reboot(linux.RB_POWER_OFF)
    raise SystemExit(1)


class Supervisor:
    """Serves one host. Everything runs in one thread: forks are safe, and nothing needs a lock."""

    def __init__(self, port: int, network: NetworkProcess | None, disk_device: str | None) -> None:
        self._loop = Loop()
        self._link = Link(self._loop, port, self._on_message, self._on_close)
        self._root = Root()
        self._disk_device = disk_device
        self._processes: dict[int, Process] = {}
        self._by_pid: dict[int, Callable[[int], None]] = {}
        self._network = network
        self._daemons: daemons.Daemons | None = None
        self._world: _World | None = None
        self._files: files.Files | None = None
        self._watches: Watches | None = None
        self._asks = Asks(self._loop)
        self._inside = Inside(-1, -1, harden.seccomp_program(linux.MACHINE), self._asks.ask)
        self._when_alone: Callable[[], None] | None = None

    def run(self) -> None:
        """Say READY and serve until the host closes the port or asks for shutdown."""
        self._watch_children()
        memory.watch(self._loop, lambda text: self._event("oom", text=text))
        if self._network is not None:
            self._network.watch(self._loop)
            self._by_pid[self._network.pid] = self._network_ended
        promises = kernelcheck.report()
        self._event("ready", version=VERSION, kernel=os.uname().release, promises=promises)
        self._loop.run()

    # ---- calls

    def _on_message(self, message: Message) -> None:
        header = message.header
        if header["t"] != "call":
            return
        number, name = header.get("id"), header.get("op")
        handler = getattr(self, f"_call_{name}", None)
        try:
            if handler is None:
                raise ValueError(f"unknown call {name!r}")
            answer = handler(header, message.payload)
        except (OSError, ValueError, KeyError, TypeError, disk.DiskError) as error:
            text = f"missing argument {error}" if isinstance(error, KeyError) else str(error)
            # The host may have sent on them already: know them, so that this is no breach of protocol.
            self._link.refuse(header.get("streams", ()))
            place = {"place": error.place.number} if isinstance(error, PlaceError) else {}
            self._link.mux.send({"t": "error", "id": number, "message": text, **place})
            return
        if answer is not None:
            self._link.mux.send({"t": "reply", "id": number, **answer})

    def _call_ping(self, _header: dict[str, Any], _payload: bytes) -> dict[str, Any]:
        return {"time": time.time_ns()}

    def _call_clock(self, header: dict[str, Any], _payload: bytes) -> dict[str, Any]:
        """The host found that the clock is off: after the host slept, or because somebody here has set it."""
        time.clock_settime_ns(time.CLOCK_REALTIME, time.time_ns() + int(header["step"]))
        return {}

    def _call_configure(self, header: dict[str, Any], payload: bytes) -> dict[str, Any]:
        entropy.reseed(payload)
        time.clock_settime_ns(time.CLOCK_REALTIME, header["time"])
        linux.set_hostname(header["hostname"])
        identity.scatter_pids()
        if self._disk_device is None:
            raise disk.DiskError("the machine has no block device airlock-disk")
        self._root.build(
            self._disk_device,
            int(header["disk_size"]),
            new=bool(header["new_disk"]),
            root_key=header["root_key"],
            hostname=header["hostname"],
            machine_id=header["machine_id"],
            places=header["places"],
            user=str(header["user"]),
            owner=int(header["owner"]),
        )
        for warning in self._root.warnings:
            self._log("warning", warning)
        self._inside = self._inside._replace(namespace=self._root.namespace, hardened=self._root.hardened)
        if self._root.files:
            # Costs a moment that starts without files need not wait for.
            from airlockd.files import Files

            self._files = Files(self._link, self._root.files, lambda number: self._event("file", file=number))
        in_shares = [place for place in self._root.files if place.bound and not place.read_only]
        if in_shares:
            from airlockd.renames import Renames

            self._asks.about(Renames(self._loop, in_shares, self._by_pid).handlers)
        self._watches = Watches(self._loop, self._root.shares, self._tell_watch)
        self._asks.about(self._watches.handlers)
        helper = disk.empty(TRASH)
        if helper is not None:
            self._log("info", "emptying what an earlier image left on the disk")
            self._by_pid[helper] = _ignore
        return {}

    def _call_spawn(self, header: dict[str, Any], _payload: bytes) -> None:
        number, process = header["id"], header["process"]
        size, streams = header["size"], header["streams"]
        command = Command(
            argv=[str(word) for word in header["argv"]],
            cwd=str(header["cwd"]),
            env={str(key): str(value) for key, value in header["env"].items()},
            size=(int(size[0]), int(size[1])) if size else None,
            harden=bool(header["harden"]),
            user=str(header["user"]),
            login=bool(header["login"]),
            streams=(int(streams[0]), int(streams[1]), int(streams[2])),
        )

        name = command.argv[0] if command.argv else "login shell"

        def started(error: SpawnError | None) -> None:
            self._log("debug", f"process {child.pid}: {name}: {error or 'started'}")
            if error is None:
                self._link.mux.send({"t": "reply", "id": number, "pid": child.pid})
            else:
                answer = {"t": "error", "id": number, "errno": error.number, "stage": error.stage}
                self._link.mux.send({**answer, "message": str(error)})

        def exited(status: int) -> None:
            del self._processes[process]
            code = os.waitstatus_to_exitcode(status)
            self._log("debug", f"process {child.pid}: ended with {code}")
            outcome = {"code": code} if code >= 0 else {"signal": -code}
            self._event("exit", process=process, **outcome)

        if process in self._processes:
            raise ValueError(f"process {process} exists")
        child = Process(self._link, command, self._inside, on_started=started, on_exit=exited)
        self._processes[process] = child
        self._by_pid[child.pid] = child.exited

    def _call_signal(self, header: dict[str, Any], _payload: bytes) -> dict[str, Any]:
        process = self._processes.get(header["process"])
        if process is not None:
            process.signal(signal.Signals(header["signal"]))
        return {}

    def _call_resize(self, header: dict[str, Any], _payload: bytes) -> dict[str, Any]:
        process = self._processes.get(header["process"])
        if process is not None:
            process.resize(int(header["rows"]), int(header["columns"]))
        return {}

    def _call_daemons(self, header: dict[str, Any], _payload: bytes) -> None:
        """Answers once all of them are ready."""
        base = {str(key): str(value) for key, value in header["env"].items()}
        specs = [daemons.parse(asked, base) for asked in header["daemons"]]
        if self._daemons is not None:
            raise ValueError("the daemons were started already")

        def started(problem: str | None) -> None:
            kind = {"t": "reply"} if problem is None else {"t": "error", "message": problem}
            self._link.mux.send({**kind, "id": header["id"]})

        self._world = _World(self)
        self._daemons = daemons.Daemons(self._world)
        self._daemons.start(specs, started)

    def _call_listen(self, header: dict[str, Any], _payload: bytes) -> None:
        """Make the host's ports and sockets appear."""
        if self._network is None:
            raise ValueError("the kernel of this image has no TUN, which the network needs")
        sockets = [
            {**asked, "path": expand(str(asked["path"]), self._root.home)} for asked in header["sockets"]
        ]
        order = {"ports": header["ports"], "sockets": sockets}

        def answered(trouble: Mapping[str, Any]) -> None:
            self._link.mux.send({**trouble, "t": "error" if trouble else "reply", "id": header["id"]})

        self._network.listen(order, self._root.namespace, answered)

    def _network_ended(self, status: int) -> None:
        if self._when_alone is None:
            code = os.waitstatus_to_exitcode(status)
            how = f"with exit code {code}" if code >= 0 else f"by signal {-code}"
            self._log("warning", f"the network is gone: its process ended {how}")

    def _call_put_file(self, header: dict[str, Any], _payload: bytes) -> None:
        """Answers once the file is in place."""
        assert self._files is not None
        self._files.put(header, lambda answer: self._link.mux.send({**answer, "id": header["id"]}))

    def _call_get_file(self, header: dict[str, Any], _payload: bytes) -> None:
        """Answers before the file's content comes on the stream."""
        assert self._files is not None
        self._files.get(header, lambda answer: self._link.mux.send({**answer, "id": header["id"]}))

    def _tell_watch(self, tag: str, path: bytes, on: bool) -> None:
        self._event("watch", share=tag, path=os.fsdecode(path), on=on)

    def _call_unwatched(self, header: dict[str, Any], _payload: bytes) -> dict[str, Any]:
        """The host was told of a directory that it cannot watch."""
        assert self._watches is not None
        self._watches.unwatched(header["share"], os.fsencode(header["path"]))
        return {}

    def _call_changed(self, header: dict[str, Any], _payload: bytes) -> dict[str, Any]:
        """The host changed something in a directory that it was told of."""
        assert self._watches is not None
        names = [os.fsencode(name) for name in header["names"]]
        self._watches.changed(header["share"], os.fsencode(header["path"]), names)
        return {}

    def _call_list(self, _header: dict[str, Any], _payload: bytes) -> dict[str, Any]:
        return {"daemons": self._daemons.list() if self._daemons is not None else []}

    def _call_shutdown(self, header: dict[str, Any], _payload: bytes) -> None:
        """Answers once every process is gone and the disk is unmounted; the host then ends the machine."""
        if self._daemons is not None:
            self._daemons.stop(lambda: self._shut_down(header["id"]))
        else:
            self._shut_down(header["id"])

    def _shut_down(self, number: int) -> None:
        def settled() -> None:
            if self._world is not None:
                self._world.close_logs()
            self._root.take_down()
            self._link.mux.send({"t": "reply", "id": number})

        def alone() -> None:
            timer.cancel()
            if self._files is not None:
                self._files.settle(settled)
            else:
                settled()

        if not os.path.exists(_CHILDREN) and self._network is not None:
            # Without it, all that can be seen is that nobody is left.
            os.kill(self._network.pid, signal.SIGKILL)
        self._when_alone = alone
        self._signal_everyone(signal.SIGTERM)
        # A stopped process would hold its SIGTERM back.
        self._signal_everyone(signal.SIGCONT)

        def insist() -> None:
            self._log("info", f"processes are left {GRACE:.0f} s after SIGTERM and get SIGKILL")
            self._signal_everyone(signal.SIGKILL)

        timer = self._loop.call_later(GRACE, insist)
        self._reap()

    # ---- children

    def _watch_children(self) -> None:
        read, write = os.pipe()
        os.set_blocking(read, False)
        os.set_blocking(write, False)
        signal.signal(signal.SIGCHLD, lambda _number, _frame: None)
        signal.set_wakeup_fd(write, warn_on_full_buffer=False)

        def woken() -> None:
            os.read(read, 4096)
            self._reap()

        self._loop.on_readable(read, woken)

    def _reap(self) -> None:
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                break
            if not pid:
                if self._when_alone is None or not self._only_network_left():
                    return
                break
            self._by_pid.pop(pid, _ignore)(status)
        if self._when_alone is not None:
            alone, self._when_alone = self._when_alone, None
            alone()

    def _only_network_left(self) -> bool:
        """Its process ends with the machine: to take the TUN device apart first would cost a tenth of a start."""
        try:
            left = linux.read_file(_CHILDREN)
        except FileNotFoundError:
            return False
        network = self._network
        # Its number may be another's once it has ended.
        return network is not None and network.pid in self._by_pid and left.split() == [b"%d" % network.pid]

    def _signal_everyone(self, number: signal.Signals) -> None:
        try:
            os.kill(-1, number)
        except ProcessLookupError:
            pass

    def _log(self, level: str, text: str) -> None:
        """For the user who asked for messages of this level: debug, info, warning or error."""
        self._event("log", level=level, text=text)

    def _event(self, name: str, **values: Any) -> None:
        self._link.mux.send({"t": "event", "name": name, **values})

    def _on_close(self, reason: str | None) -> None:
        if reason:
            print(f"airlockd: the control port was closed: {reason}", file=sys.stderr, flush=True)
        self._loop.stop()


class _World:
    """What daemons need of the kernel, by way of the supervisor."""

    def __init__(self, supervisor: Supervisor) -> None:
        # Costs a moment that starts without daemons need not wait for.
        from airlockd import child

        self._child, self._supervisor = child, supervisor
        self._logs: dict[str, child.Logs] = {}
        self.call_later = supervisor._loop.call_later

    def start(
        self, spec: daemons.Spec, failed: Callable[[str | None], None], ended: Callable[[int], None]
    ) -> int:
        """Fork; the end is reported after the word whether it was executed."""
        told = False
        early: int | None = None

        def on_started(error: SpawnError | None) -> None:
            nonlocal told
            told = True
            failed(str(error) if error is not None else None)
            if early is not None:
                ended(early)

        def on_exit(status: int) -> None:
            nonlocal early
            if told:
                ended(status)
            else:
                early = status

        if spec.name not in self._logs:
            self._logs[spec.name] = self._child.Logs(SANDBOX, spec.name)
        stdout, stderr = self._logs[spec.name].fds
        pid = self._fork(spec, spec.argv, spec.cwd, (stdout, stderr), on_started)
        self._child.group(spec.name, pid)
        self._supervisor._by_pid[pid] = on_exit
        return pid

    def probe(self, spec: daemons.Spec, answer: Callable[[bool], None]) -> None:
        """By a child, or by a look into the log."""
        kind, value = spec.ready or ("log", "")
        if kind == "log":
            answer(self._logs[spec.name].say(str(value).encode()))
            return
        try:
            pid = self._probe(spec, kind, value)
        except OSError:
            answer(False)
            return
        self._supervisor._by_pid[pid] = lambda status: answer(status == 0)

    def _probe(self, spec: daemons.Spec, kind: str, value: Any) -> int:
        if kind != "command":
            return self._child.probe(kind, str(value), self._supervisor._root.namespace)
        outputs = self._child.null_outputs()
        try:
            return self._fork(spec, [str(word) for word in value], spec.cwd, outputs, _ignore)
        finally:
            for fd in outputs:
                os.close(fd)

    def kill(self, pid: int, number: int) -> None:
        """One process to end by itself, its whole group to be gone."""
        if number == signal.SIGKILL:
            kill_group(pid, number)
            return
        try:
            os.kill(pid, number)
        except ProcessLookupError:
            pass

    def close_logs(self) -> None:
        """At the end, when none is left who writes to them."""
        for logs in self._logs.values():
            logs.close()
        self._logs.clear()

    def tell(self, name: str, state: str, **details: Any) -> None:
        """As an event, with the daemon's own last word where that may explain it."""
        if state in ("failed", "late") and name in self._logs:
            details["said"] = self._logs[name].last_line()
        self._supervisor._event("daemon", daemon=name, state=state, **details)

    def _fork(
        self,
        spec: daemons.Spec,
        argv: Sequence[str],
        cwd: str,
        outputs: tuple[int, int],
        on_started: Callable[[SpawnError | None], None],
    ) -> int:
        supervisor = self._supervisor
        command = Command(argv, cwd, spec.env, None, spec.harden, spec.user, False, (0, 0, 0))
        return self._child.start(
            supervisor._loop,
            command,
            outputs,
            supervisor._inside,
            on_started=on_started,
        )


def _ignore(_value: object) -> None:
    pass


def _protect() -> None:
    linux.limit_descriptors(DESCRIPTORS, MAX_DESCRIPTORS)
    # Nobody without a capability traces it, or a child that has descriptors of airlockd until it is executed.
    linux.prctl(linux.PR_SET_DUMPABLE, 0)
    with open("/proc/self/oom_score_adj", "w", encoding="ascii") as file:
        file.write("-1000")


def _parameter(name: str) -> str | None:
    with open("/proc/cmdline", encoding="utf-8") as file:
        for word in file.read().split():
            key, _, value = word.partition("=")
            if key == name:
                return value
    return None
