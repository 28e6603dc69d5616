"""The guest's network process without a machine: on a real TUN, in a network namespace of its own on this host.

The host's end is a real service, in a thread of the test. Sockets are made inside and handed out, so that the test
itself is the program in the guest.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import socket
import struct
import subprocess
import sys
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from airlock_runner.net.network import policy_of
from airlock_runner.net.service import Service
from airlock_runner.net.settle import settle
from airlockd.protocol.link import Link
from airlockd.protocol.loop import Loop

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from airlock_runner.config.network_model import NetworkConfig
    from airlock_runner.net.record import Record
    from airlockd.protocol.mux import Message

PATIENCE = 100.0
"""Seconds after which a test counts as hung."""
FIRST_LIMITS = (1024, 4096)
"""What Linux gives its first process in descriptors, soft and hard."""


class Inside:
    """A network namespace with the network process: makes sockets, and tells it what to listen at."""

    def __init__(self, port: socket.socket, packets: socket.socket) -> None:
        self._channel, there = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._process = subprocess.Popen(
            ["unshare", "--net", "--mount", "--map-root-user", sys.executable, __file__,
             *(str(each.fileno()) for each in (port, packets, there))],
            pass_fds=tuple(each.fileno() for each in (port, packets, there)),
        )  # fmt: skip
        for each in (there, port, packets):
            each.close()
        self._channel.settimeout(PATIENCE)
        self.pid: int = json.loads(self._channel.recv(1000))["pid"]

    def socket(
        self, family: int = socket.AF_INET, kind: int = socket.SOCK_STREAM, protocol: int = 0
    ) -> socket.socket:
        """A socket of the namespace."""
        self._channel.send(json.dumps({"socket": (family, kind, protocol)}).encode())
        answer, fds, _, _ = socket.recv_fds(self._channel, 1000, 1)
        assert fds, answer
        made = socket.socket(fileno=fds[0])
        made.settimeout(PATIENCE)
        return made

    def listen(self, order: dict[str, Any]) -> str | None:
        """Hand it the order of a start; gives what went wrong."""
        return self.run("listen", order)

    def run(self, what: str, argument: Any = None) -> Any:
        """Have something done inside; see `main`."""
        self._channel.send(json.dumps({what: argument}).encode())
        return json.loads(self._channel.recv(1 << 16))

    def descriptors(self) -> int:
        """How many the network process and the pump have open."""
        return sum(len(os.listdir(f"/proc/{pid}/fd")) for pid in self._pids())

    def memory(self) -> int:
        """Their resident bytes."""
        pages = 0
        for pid in self._pids():
            with open(f"/proc/{pid}/statm", encoding="ascii") as file:
                pages += int(file.read().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE")

    def pump(self) -> int:
        """The pid of the one that carries packets."""
        with open(f"/proc/{self.pid}/task/{self.pid}/children", encoding="ascii") as file:
            (pump,) = file.read().split()
        return int(pump)

    def _pids(self) -> list[int]:
        return [self.pid, self.pump()]

    def close(self) -> None:
        self._channel.close()
        self._process.wait(PATIENCE)


class Host:
    """The service at the other end, in a thread. `records` are the lines of the log."""

    def __init__(
        self, config: NetworkConfig, root: Path, port: socket.socket, packets: socket.socket
    ) -> None:
        self.records: list[dict[str, Any]] = []
        self.closed: list[str | None] = []
        self._settled = settle(config, root, [root])
        self._loop = Loop(many=True)
        self._wake, self._woken = os.pipe()
        self._jobs: list[Callable[[], None]] = []
        self._loop.on_readable(self._wake, self._do)

        def log(record: Record) -> None:
            self.records.append(record.values())

        def on_close(reason: str | None) -> None:
            self.closed.append(reason)
            self.service.close()

        def on_message(message: Message) -> None:
            self.service.on_message(message)

        self.link = Link(self._loop, port.detach(), on_message, on_close, bulk=True)
        self.service = Service(
            self._loop, self.link, packets.detach(), self._settled, policy_of(config), log=log
        )
        self._thread = threading.Thread(target=self._loop.run)
        self._thread.start()

    @property
    def order(self) -> dict[str, Any] | None:
        """What airlockd is to listen at."""
        return self._settled.listen_call()

    def do(self, job: Callable[[], None]) -> None:
        """Run it in the loop's thread, and wait for that."""
        done = threading.Event()

        def both() -> None:
            job()
            done.set()

        self._jobs.append(both)
        os.write(self._woken, b"x")
        assert done.wait(PATIENCE)

    def close(self) -> None:
        self.do(self.link.close)
        self.do(self._loop.stop)
        self._thread.join(PATIENCE)
        self._loop.close()
        self._settled.close()
        os.close(self._wake)
        os.close(self._woken)

    def _do(self) -> None:
        os.read(self._wake, 100)
        while self._jobs:
            self._jobs.pop(0)()


class Guest:
    """Both together, as programs in the guest and their tests see them."""

    def __init__(self, inside: Inside, host: Host) -> None:
        self.inside, self.host = inside, host

    def address(self, name: str) -> str:
        """What DNS has for a name."""
        labels = b"".join(bytes((len(label),)) + label.encode() for label in name.split("."))
        query = struct.pack(">6H", 7, 0x100, 1, 0, 0, 0) + labels + struct.pack(">BHH", 0, 1, 1)
        with self.inside.socket(kind=socket.SOCK_DGRAM) as asked:
            asked.connect(("10.0.0.1", 53))
            asked.send(query)
            return socket.inet_ntoa(asked.recv(512)[-4:])

    def connect(self, port: int, host: str = "web.test") -> socket.socket:
        """A program's connection by name or address. Raises OSError as `connect` does."""
        made = self.inside.socket()
        address = host if host.replace(".", "").isdigit() else self.address(host)
        try:
            made.connect((address, port))
        except OSError:
            made.close()
            raise
        return made

    def until(self, happened: Callable[[], object]) -> None:
        """Wait until it has happened at either end."""
        pause = threading.Event()
        for _ in range(int(PATIENCE / 0.02)):
            if happened():
                return
            pause.wait(0.02)
        raise AssertionError(
            f"it never happened; logged: {self.host.records[-5:]}, closed: {self.host.closed}"
        )


def pause_host(guest: Guest) -> None:
    """From now on the host does not read what the guest sends."""
    wire, link = guest.host.service.airlock0.wire, guest.host.link

    def pause() -> None:
        wire._loop.on_readable(wire._fd, None)
        link.loop.on_readable(link._fd, None)

    guest.host.do(pause)


def resume_host(guest: Guest) -> None:
    wire, link = guest.host.service.airlock0.wire, guest.host.link

    def resume() -> None:
        wire._loop.on_readable(wire._fd, wire._read)
        link.loop.on_readable(link._fd, link._read)

    guest.host.do(resume)


@contextmanager
def running(config: NetworkConfig, root: Path) -> Iterator[Guest]:
    """A guest whose host has this config."""
    ours, theirs = zip(socket.socketpair(), socket.socketpair(), strict=True)
    inside = Inside(*theirs)
    host = Host(config, root, *ours)
    try:
        order = host.order
        assert order is None or inside.listen(order) is None
        yield Guest(inside, host)
    finally:
        host.close()
        inside.close()


def main(port: int, packets: int, channel: socket.socket) -> None:
    """Inside: what the supervisor does there, and sockets on demand until the channel ends."""
    from airlockd import linux
    from airlockd.net.process import start

    resource.setrlimit(resource.RLIMIT_NOFILE, FIRST_LIMITS)
    linux.loopback_up()
    network = start(port, packets, channel.fileno())
    assert network is not None
    os.close(port)
    os.close(packets)
    namespace = os.open("/proc/self/ns/mnt", os.O_RDONLY)
    channel.send(json.dumps({"pid": network.pid}).encode())
    while text := channel.recv(1 << 16):
        ((what, argument),) = json.loads(text).items()
        if what == "socket":
            made = socket.socket(*argument)
            socket.send_fds(channel, [b"."], [made.fileno()])
            made.close()
            continue
        answer = None
        if what == "listen":
            network.listen(argument, namespace, lambda _: None)
            answer = json.loads(network._channel.recv(1 << 16)).get("message")
        elif what == "sh":
            done = subprocess.run(["sh", "-ec", argument], capture_output=True, text=True, check=False)
            answer = done.stdout + done.stderr
        channel.send(json.dumps(answer).encode())
    os.kill(network.pid, signal.SIGKILL)


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), socket.socket(fileno=int(sys.argv[3])))
