"""A running QEMU: started with its sockets, never outliving us, its console kept for the day that it dies."""

from __future__ import annotations

import ctypes
import os
import select
import signal
import socket
import subprocess
import sys
from typing import TYPE_CHECKING

from airlock_runner.machine.argv import Channels, MachineSpec, qemu_argv
from airlock_runner.machine.virtiofs import Helper
from airlock_runner.timeline import mark
from airlock_store.errors import MachineError

if TYPE_CHECKING:
    from collections.abc import Callable

CONSOLE_TAIL = 64 * 1024
"""Bytes of the guest's console that are kept."""
_PR_SET_PDEATHSIG = 1


class Machine:
    """One QEMU process.

    `control`, `network`, `packets`, `console` and, if asked for, `monitor` are our ends of its sockets.
    """

    def __init__(self, spec: MachineSpec, keep: tuple[int, ...] = (), *, monitored: bool = False) -> None:
        """Start it. `keep`: descriptors that it inherits, such as the project's lock or those that `spec` names.

        Raises MachineError where it cannot be executed.
        """
        pairs = [socket.socketpair() for _ in range(5 if monitored else 4)]
        theirs = [pair[1] for pair in pairs]
        self.console, self.control, self.network, self.packets = (pair[0].detach() for pair in pairs[:4])
        self.monitor = pairs[4][0] if monitored else None
        self._helpers: list[Helper] = []
        try:
            # No thread of ours runs at this time.
            prepare = _die_with(os.getpid())
            for share in spec.shares:
                if share.daemon is not None:
                    self._helpers.append(Helper(share.daemon, share.source, prepare))
            served = [helper.connection.fileno() for helper in self._helpers]
            argv = qemu_argv(spec, Channels(*(end.fileno() for end in theirs), shares=tuple(served)))
            self._process = subprocess.Popen(
                argv,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                pass_fds=[*(end.fileno() for end in theirs), *served, *keep],
                # Ctrl-C on our terminal is for the command inside, never for the machine.
                process_group=0,
                preexec_fn=prepare,  # noqa: PLW1509
            )
        except (OSError, MachineError) as error:
            for helper in self._helpers:
                helper.close()
            if isinstance(error, MachineError):
                raise
            raise MachineError(f"{spec.qemu} cannot be started: {error.strerror}") from error
        finally:
            for end in theirs:
                end.close()
            for helper in self._helpers:
                helper.forget()
        mark("QEMU started")
        self.pid = self._process.pid
        self._tail = bytearray()

    def read_console(self) -> bool:
        """Take what the guest printed; False at the end."""
        try:
            data = os.read(self.console, 65536)
        except BlockingIOError:
            return True
        except OSError:
            data = b""
        self._tail += data
        del self._tail[:-CONSOLE_TAIL]
        return bool(data)

    def drain_console(self) -> None:
        """Take all that is there now."""
        poll = select.poll()
        poll.register(self.console, select.POLLIN)
        while poll.poll(0) and self.read_console():
            pass

    @property
    def tail(self) -> str:
        """The last that the guest's console showed, as it came: hostile text, escape it before printing."""
        return self._tail.decode("utf-8", "replace")

    def kill(self) -> None:
        """End it at once; what the guest's filesystems had flushed is in the page cache and safe."""
        self._process.kill()
        self._process.wait()

    def wait(self) -> tuple[int, str]:
        """Its exit status and what it and its helpers said on stderr (at most 4 KiB), after it closed its sockets."""
        assert self._process.stderr is not None
        said = self._process.stderr.read(4096).decode("utf-8", "replace").strip()
        status = self._process.wait()
        return status, "\n".join(
            text for text in (said, *(helper.said() for helper in self._helpers)) if text
        )

    def take_network(self) -> tuple[int, int]:
        """Our ends of its ports for streams and for packets, from now on the caller's to close."""
        taken, self.network, self.packets = (self.network, self.packets), -1, -1
        return taken

    def close(self) -> None:
        """Kill it if need be and release everything but `control`, which its link closes."""
        if self._process.poll() is None:
            self.kill()
        for helper in self._helpers:
            helper.close()
        if self._process.stderr is not None:
            self._process.stderr.close()
        os.close(self.console)
        for each in self.take_network():
            if each >= 0:
                os.close(each)
        if self.monitor is not None:
            self.monitor.close()


def _die_with(parent: int) -> Callable[[], None] | None:
    """For the child, between fork and exec: be killed when `parent` is, however that dies."""
    if not sys.platform.startswith("linux"):
        return None
    prctl = ctypes.CDLL(None).prctl

    def prepare() -> None:
        prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:
            os.kill(os.getpid(), signal.SIGKILL)

    return prepare
