"""The network process as the supervisor sees it: forked before READY, told what to listen at."""

from __future__ import annotations

import json
import os
import socket
import traceback
from collections import deque
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from airlockd.protocol.loop import Loop


class NetworkProcess:
    """The process `pid`, at the other end of `channel`; its answers come in the order of what it was told."""

    def __init__(self, pid: int, channel: socket.socket) -> None:
        self.pid = pid
        self._channel = channel
        self._waiting: deque[Callable[[Mapping[str, Any]], None]] = deque()

    def watch(self, loop: Loop) -> None:
        """Serve its answers in this loop."""

        def answered() -> None:
            text = self._channel.recv(65536)
            if not text:
                loop.forget(self._channel.fileno())
            elif self._waiting:
                self._waiting.popleft()(json.loads(text))

        loop.on_readable(self._channel.fileno(), answered)

    def listen(
        self, order: Mapping[str, Any], namespace: int, answered: Callable[[Mapping[str, Any]], None]
    ) -> None:
        """Have it listen at ports, and at sockets of this mount namespace.

        `answered` gets nothing, or a `message` and the `port` or `socket` that it is about. Raises OSError where the
        process is gone.
        """
        socket.send_fds(self._channel, [json.dumps(order).encode()], [namespace])
        self._waiting.append(answered)


def start(port: int, packets: int, *close: int) -> NetworkProcess | None:
    """Fork it with the ports airlock.network and airlock.packets, without the descriptors `close`.

    Gives None where the kernel has no TUN.
    """
    here, there = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    pid = os.fork()
    if pid:
        there.close()
        # Up before READY: it is part of a saved state, and no start waits for it again.
        if not here.recv(65536):
            os.waitpid(pid, 0)
            here.close()
            return None
        return NetworkProcess(pid, here)
    try:
        here.close()
        for fd in close:
            os.close(fd)
        _serve(port, packets, there)
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(1)


def _serve(port: int, packets: int, channel: socket.socket) -> None:
    from airlockd.net import pump, tun

    try:
        device = tun.create()
    except FileNotFoundError:
        return
    pumping = os.fork()
    if not pumping:
        channel.close()
        os.close(port)
        pump.run(device, packets)
        return
    os.close(device)
    os.close(packets)
    from airlockd.net.service import run

    run(port, channel, pumping)
