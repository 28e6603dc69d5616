"""Processes of the sandbox: started on request, connected to streams, signalled, reaped. Called by supervisor."""

from __future__ import annotations

import errno
import fcntl
import os
import signal
import struct
import termios
from typing import TYPE_CHECKING, NamedTuple

from airlockd import harden, linux, user
from airlockd.protocol.pumps import Sink, Source

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from airlockd.protocol.link import Link

POSIX_SHELLS = {"sh", "ash", "bash", "dash", "ksh", "mksh", "zsh"}
_IUTF8 = 0x4000
"""That the kernel erases characters and not bytes (asm-generic/termbits.h), which Python does not name."""
PIPE_SIZE = 256 * 1024
DESCRIPTORS, MAX_DESCRIPTORS = 1024, 524288
"""That a process may have open, and that it may allow itself, as with systemd. More at once breaks what uses select,
and slows down what closes all that there may be."""
REPORT = 1024
"""Bytes of what a child says of its failure, at most."""


class SpawnError(Exception):
    """The command could not be started. `number` is the errno, `stage` what failed: chdir, exec, …

    Where no call of the kernel failed, the number is 0 and the stage a sentence.
    """

    def __init__(self, number: int, stage: str) -> None:
        super().__init__(f"{stage}: {os.strerror(number)}" if number else stage)
        self.number, self.stage = number, stage


class Command(NamedTuple):
    """What to run and how: `size` is (rows, columns) of a terminal, or None for three pipes.

    `login`: by the user's login shell; an empty `argv` then means that shell itself.
    """

    argv: Sequence[str]
    cwd: str
    env: Mapping[str, str]
    size: tuple[int, int] | None
    harden: bool
    user: str
    login: bool
    streams: tuple[int, int, int]


class Inside(NamedTuple):
    """What all processes of a sandbox have in common.

    `namespace` is that of its mounts; `hardened` is the one for those that are hardened, and `filter_program` is, too.
    `ask` has a child ask before some of its system calls (asks.py).
    """

    namespace: int
    hardened: int
    filter_program: bytes
    ask: Callable[[], None]


class Process:
    """A started command. Reports `on_exit(wait status)` after all its output was sent."""

    def __init__(
        self,
        link: Link,
        command: Command,
        inside: Inside,
        *,
        on_started: Callable[[SpawnError | None], None],
        on_exit: Callable[[int], None],
    ) -> None:
        self._link, self._on_started, self._on_exit = link, on_started, on_exit
        self._status: int | None = None
        self._started = False
        self.terminal = -1
        ((self._failure, failure),) = pipes(1)
        theirs: tuple[int, ...] = ()
        try:
            theirs, self._sources = (
                self._pipes(command.streams) if command.size is None else self._open_terminal(command)
            )
            self.pid = fork()
            if not self.pid:
                become(command, theirs, failure, inside)
        except OSError:
            # Too many processes, or descriptors. Our ends of the streams are closed when those are refused.
            os.close(self._failure)
            if self.terminal >= 0:
                os.close(self.terminal)
            raise
        finally:
            for fd in {*theirs, failure}:
                os.close(fd)
        os.set_blocking(self._failure, False)
        link.loop.on_readable(self._failure, self._started_or_not)

    def signal(self, number: int) -> None:
        """Signal the command's process group; for a terminal, the group in its foreground."""
        if self._status is not None:
            return
        group = self.pid
        if self.terminal >= 0:
            try:
                group = os.tcgetpgrp(self.terminal) or group
            except OSError:
                pass
        kill_group(group, number)

    def resize(self, rows: int, columns: int) -> None:
        """Tell the terminal its new size; the kernel then sends SIGWINCH."""
        if self.terminal >= 0:
            fcntl.ioctl(self.terminal, termios.TIOCSWINSZ, _window(rows, columns))

    def exited(self, status: int) -> None:
        """The supervisor reaped it, with this wait status. What it wrote is still to be sent."""
        self._status = status
        if self._started:
            self._drain()

    def _drain(self) -> None:
        for source in self._sources:
            source.drain()
        self._report()

    def _report(self) -> None:
        if self._status is not None and self._started and all(source.done for source in self._sources):
            status, self._status = self._status, None
            if self.terminal >= 0:
                os.close(self.terminal)
                self.terminal = -1
            self._on_exit(status)

    def _started_or_not(self) -> None:
        try:
            report = os.read(self._failure, REPORT)
        except BlockingIOError:
            return
        self._link.loop.forget(self._failure)
        os.close(self._failure)
        if report:
            number, stage = report.decode(errors="replace").split(" ", 1)
            self._on_started(SpawnError(int(number), stage))
        else:
            self._on_started(None)
        self._started = True
        if self._status is not None:
            self._drain()

    def _pipes(self, streams: tuple[int, int, int]) -> tuple[tuple[int, ...], list[Source]]:
        ends = pipes(3)
        for read, _ in ends:
            fcntl.fcntl(read, fcntl.F_SETPIPE_SZ, PIPE_SIZE)
        (stdin, our_stdin), (our_stdout, stdout), (our_stderr, stderr) = ends
        for fd in (our_stdin, our_stdout, our_stderr):
            os.set_blocking(fd, False)
        Sink(self._link, our_stdin, streams[0])
        sources = [
            Source(self._link, our_stdout, streams[1], self._report),
            Source(self._link, our_stderr, streams[2], self._report),
        ]
        return (stdin, stdout, stderr), sources

    def _open_terminal(self, command: Command) -> tuple[tuple[int, ...], list[Source]]:
        master, slave = os.openpty()
        self.terminal = master
        modes = termios.tcgetattr(slave)
        modes[0] |= _IUTF8
        termios.tcsetattr(slave, termios.TCSANOW, modes)
        fcntl.ioctl(slave, termios.TIOCSWINSZ, _window(*(command.size or (24, 80))))
        os.set_blocking(master, False)
        try:
            keys, screen = os.dup(master), os.dup(master)
        except OSError:
            os.close(slave)
            raise
        Sink(self._link, keys, command.streams[0])
        source = Source(self._link, screen, command.streams[1], self._report)
        return (slave, slave, slave), [source]


def pipes(count: int) -> list[tuple[int, int]]:
    """So many pipes, each (read, write). Raises OSError, and then leaves none open."""
    made: list[tuple[int, int]] = []
    try:
        for _ in range(count):
            made.append(os.pipe())
    except OSError:
        for pair in made:
            for fd in pair:
                os.close(fd)
        raise
    return made


def fork() -> int:
    """os.fork, but no signal reaches the child before `become` has made it one that signals end. Raises OSError."""
    before = signal.pthread_sigmask(signal.SIG_SETMASK, signal.valid_signals())
    pid = -1
    try:
        pid = os.fork()
        return pid
    finally:
        if pid:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)


def kill_group(leader: int, number: int) -> None:
    """Signal the process group of a child; or the child, where it has just been forked and leads none yet."""
    for kill in (os.killpg, os.kill):
        try:
            kill(leader, number)
        except ProcessLookupError:
            continue
        return


def _window(rows: int, columns: int) -> bytes:
    return struct.pack("HHHH", min(rows, 0xFFFF), min(columns, 0xFFFF), 0, 0)


def become(command: Command, stdio: Sequence[int], failure: int, inside: Inside) -> None:
    """In the child: turn into the command. Never returns."""
    stage = "start"
    try:
        for number in range(1, signal.NSIG):
            try:
                signal.signal(number, signal.SIG_DFL)
            except (OSError, ValueError):
                pass
        signal.pthread_sigmask(signal.SIG_SETMASK, ())
        os.setsid()
        # Above the three numbers that dup2 is about to take.
        failure = fcntl.fcntl(failure, fcntl.F_DUPFD_CLOEXEC, 10)
        stdio = [fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 10) for fd in stdio]
        for target, fd in enumerate(stdio):
            os.dup2(fd, target)
        if command.size is not None:
            fcntl.ioctl(0, termios.TIOCSCTTY, 0)
        _write("/proc/self/oom_score_adj", "0")
        stage = "namespace"
        linux.setns(inside.hardened if command.harden else inside.namespace, linux.CLONE_NEWNS)
        linux.limit_descriptors(DESCRIPTORS, MAX_DESCRIPTORS)
        inside.ask()
        stage = "user"
        account = user.look_up(command.user)
        environment = {**account.environment(), **user.runtime_directory(account), **command.env}
        if command.harden:
            stage = "harden"
            harden.apply(inside.filter_program)
        stage = "user"
        user.become(account)
        stage = f"{command.cwd}: chdir" if len(command.cwd) <= 150 else f"{command.cwd[:150]}…: chdir"
        os.chdir(command.cwd)
        stage = "exec"
        argv = login_argv(account.shell, command.argv) if command.login else command.argv
        _execute(argv, environment)
    except LookupError as error:
        _report(failure, 0, str(error))
    except OSError as error:
        _report(failure, error.errno or errno.EIO, stage)
    except BaseException as error:
        _report(failure, errno.EIO, f"{stage}: {error}"[:200])
    finally:
        os._exit(127)


def login_argv(shell: str, argv: Sequence[str]) -> Sequence[str]:
    """`argv` run by `shell` as a login shell, or that shell alone."""
    if not argv:
        return [shell, "-l"]
    if shell.rpartition("/")[2] not in POSIX_SHELLS:
        # Others have no "$@": what /etc/profile sets is better than nothing.
        shell = "/bin/sh"
    return [shell, "-l", "-c", 'exec "$@"', shell, *argv]


def _execute(argv: Sequence[str], env: dict[str, str]) -> None:
    """execve by PATH of `env`, as a shell finds it. Raises the most telling OSError."""
    name = argv[0]
    if not name:
        # As shells and execvp(3) have it.
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), name)
    if "/" in name:
        os.execve(name, list(argv), env)
    denied: OSError | None = None
    for directory in env.get("PATH", os.defpath).split(":"):
        try:
            os.execve(f"{directory or '.'}/{name}", list(argv), env)
        except (FileNotFoundError, NotADirectoryError):
            continue
        except OSError as error:
            denied = error
    raise denied or FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), name)


def _report(failure: int, number: int, stage: str) -> None:
    """Say why there will be no command. Names of directories may be any bytes."""
    os.write(failure, f"{number} {stage}".encode(errors="replace")[:REPORT])


def _write(path: str, text: str) -> None:
    fd = os.open(path, os.O_WRONLY)
    try:
        os.write(fd, text.encode())
    finally:
        os.close(fd)
