"""Children of airlockd that have files instead of streams: daemons, and the probes that ask whether one is ready.

daemons.py decides when to start them, the supervisor reaps them.
"""

from __future__ import annotations

import fcntl
import os
import stat
from typing import TYPE_CHECKING

from airlockd import linux
from airlockd.process import REPORT, Command, Inside, SpawnError, become, fork, pipes

if TYPE_CHECKING:
    from collections.abc import Callable

    from airlockd.protocol.loop import Loop

LOGS = "/airlock/daemons"
_PROBE_SECONDS = 5.0


class Logs:
    """The two log files of a daemon, opened in the sandbox's root, whatever the sandbox has put there."""

    def __init__(self, root: str, name: str) -> None:
        self.fds: list[int] = []
        directory = os.open(root, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            path = ""
            for part in (*LOGS.strip("/").split("/"), name):
                parent = linux.open_in_root(directory, path or "/", os.O_PATH | os.O_DIRECTORY)
                try:
                    os.mkdir(part, 0o755, dir_fd=parent)
                except FileExistsError:
                    pass
                finally:
                    os.close(parent)
                path = f"{path}/{part}"
            parent = linux.open_in_root(directory, path, os.O_PATH | os.O_DIRECTORY)
            try:
                self.fds = [_open_log(parent, stream) for stream in ("stdout.log", "stderr.log")]
            finally:
                os.close(parent)
        finally:
            os.close(directory)
        self._offsets = [0, 0]
        self._tails = [b"", b""]

    def close(self) -> None:
        """No daemon runs any more: what is open for writing would keep the disk from being left clean."""
        for fd in self.fds:
            os.close(fd)

    def say(self, text: bytes) -> bool:
        """Whether a line with `text` in it came since the last call, or began before and is complete now."""
        for number, fd in enumerate(self.fds):
            data = os.pread(fd, 1 << 16, self._offsets[number])
            self._offsets[number] += len(data)
            seen = self._tails[number] + data
            if text in seen:
                return True
            self._tails[number] = seen[-len(text) :]
        return False

    def last_line(self) -> str:
        """The last line that it wrote on stderr, or else on stdout."""
        for fd in reversed(self.fds):
            size = os.fstat(fd).st_size
            lines = os.pread(fd, 400, max(0, size - 400)).decode(errors="replace").split("\n")
            said = [line.strip() for line in lines if line.strip()]
            if said:
                return said[-1]
        return ""


def _open_log(directory: int, name: str) -> int:
    flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    fd = os.open(name, flags, 0o644, dir_fd=directory)
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise OSError(f"{LOGS}: {name} is no regular file")
    os.ftruncate(fd, 0)
    os.set_blocking(fd, True)
    return fd


def start(
    loop: Loop,
    command: Command,
    outputs: tuple[int, int],
    inside: Inside,
    *,
    on_started: Callable[[SpawnError | None], None],
) -> int:
    """Start `command` with nothing to read and with these outputs; gives its pid. `on_started` is called later.

    Raises OSError where there is no process to be had.
    """
    ((read, write),) = pipes(1)
    null = -1
    try:
        null = os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)
        pid = fork()
        if not pid:
            become(command, (null, *outputs), write, inside)
    except OSError:
        os.close(read)
        raise
    finally:
        for fd in (write, null):
            if fd >= 0:
                os.close(fd)
    os.set_blocking(read, False)

    def told() -> None:
        report = os.read(read, REPORT)
        loop.forget(read)
        os.close(read)
        number, _, stage = report.decode(errors="replace").partition(" ")
        on_started(SpawnError(int(number), stage) if report else None)

    loop.on_readable(read, told)
    return pid


def probe(kind: str, value: str, namespace: int) -> int:
    """A child that ends with 0 if something listens: at the socket `value` (`socket`), or the port (`tcp`)."""
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        import socket

        linux.setns(namespace, linux.CLONE_NEWNS)
        family, address = (
            (socket.AF_UNIX, value) if kind == "socket" else (socket.AF_INET, ("127.0.0.1", int(value)))
        )
        with socket.socket(family) as connection:
            connection.settimeout(_PROBE_SECONDS)
            connection.connect(address)
        code = 0
    except (OSError, ValueError):
        pass
    finally:
        os._exit(code)


def group(name: str, pid: int) -> None:
    """Put a daemon into a control group of its own, below the first one.

    In the first one there are no limits to be seen, from which Docker concludes that the kernel cannot limit swap, and
    warns at each container. The sandbox can stand in the way; the daemon then stays where it is.
    """
    path = f"/sys/fs/cgroup/daemon-{name}"
    try:
        os.makedirs(path, exist_ok=True)
        with open(f"{path}/cgroup.procs", "w", encoding="ascii") as file:
            file.write(str(pid))
    except OSError:
        pass


def null_outputs() -> tuple[int, int]:
    """For a probe's command, whose words nobody wants. The caller closes them."""
    fd = os.open("/dev/null", os.O_WRONLY | os.O_CLOEXEC)
    return fd, fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 3)
