"""The few QMP commands that saving and restoring a machine's state need, over its monitor socket.

By hand, because the library qemu.qmp needs asyncio, whose import alone takes a tenth of a restored start.
Source: QEMU docs/interop/qmp-spec.rst and qapi/migration.json.
"""

from __future__ import annotations

import json
import socket
from typing import Any

from airlock_store.errors import MachineError

_LIMIT = 1024 * 1024
IGNORE_SHARED = {"capability": "x-ignore-shared", "state": True}
EVENTS = {"capability": "events", "state": True}
# `fd:` of a file is deprecated from QEMU 9.1 on; `file:` takes a set of descriptors as its path.
_FILE_SINCE = (8, 2)
_SET = {"fdset-id": 1}
_FILE = "file:/dev/fdset/1"


class Monitor:
    """A QMP connection in lock step: one command, its answer. Blocking, for at most `timeout` seconds each."""

    def __init__(self, connection: socket.socket, timeout: float = 60.0) -> None:
        self._socket = connection
        self._socket.settimeout(timeout)
        self._buffer = b""
        self._events: list[dict[str, Any]] = []

    def negotiate(self) -> tuple[int, int]:
        """Read the greeting, leave negotiation mode; QEMU's major and minor version. Raises MachineError."""
        greeting = self._read()
        self.execute("qmp_capabilities")
        version = greeting["QMP"]["version"]["qemu"]
        return version["major"], version["minor"]

    def execute(self, command: str, descriptor: int | None = None, **arguments: Any) -> Any:
        """Run a command, with a descriptor of ours on the way if it takes one. Raises MachineError."""
        self._send([command_line(command, **arguments)], descriptor)
        while True:
            message = self._read()
            if "return" in message:
                return message["return"]
            if "error" in message:
                raise MachineError(f"QEMU refused {command}: {message['error'].get('desc')}")
            self._events.append(message)

    def wait_migrated(self) -> None:
        """Until the outgoing migration ended. Raises MachineError unless it was completed."""
        while True:
            while self._events:
                event = self._events.pop(0)
                status = event.get("data", {}).get("status") if event.get("event") == "MIGRATION" else None
                if status == "completed":
                    return
                if status in ("failed", "cancelled"):
                    raise MachineError(f"saving the machine's state {status}")
            self._events.append(self._read())

    def close(self) -> None:
        """Close the connection."""
        self._socket.close()

    def _send(self, lines: list[bytes], descriptor: int | None) -> None:
        try:
            if descriptor is None:
                self._socket.sendall(b"".join(lines))
            else:
                socket.send_fds(self._socket, lines, [descriptor])
        except OSError as error:
            raise MachineError(f"QEMU's monitor is gone: {error}") from error

    def _read(self) -> dict[str, Any]:
        while b"\n" not in self._buffer:
            try:
                data = self._socket.recv(65536)
            except OSError as error:
                raise MachineError(f"QEMU's monitor does not answer: {error}") from error
            if not data or len(self._buffer) > _LIMIT:
                raise MachineError("QEMU's monitor ended")
            self._buffer += data
        line, self._buffer = self._buffer.split(b"\n", 1)
        message = json.loads(line)
        assert isinstance(message, dict)
        return message


def save(connection: socket.socket, target: int) -> None:
    """Write the device state of a running machine to `target`, a descriptor open for writing alone; the machine stops.

    RAM is not in it. Raises MachineError.
    """
    monitor = Monitor(connection)
    version = monitor.negotiate()
    monitor.execute("migrate-set-capabilities", capabilities=[IGNORE_SHARED, EVENTS])
    if version >= _FILE_SINCE:
        monitor.execute("add-fd", target, **_SET)
        monitor.execute("migrate", uri=_FILE)
    else:
        monitor.execute("getfd", target, fdname="state")
        monitor.execute("migrate", uri="fd:state")
    monitor.wait_migrated()


def restore(connection: socket.socket, source: int) -> None:
    """Have a machine that was started with `-incoming defer` go on from the state in its descriptor `source`.

    `source` is open for reading alone, and inherited. Only asks: whether it worked is shown by the guest's answer, or
    by the machine's end.
    """
    lines = (
        command_line("qmp_capabilities"),
        command_line("migrate-set-capabilities", capabilities=[IGNORE_SHARED]),
        command_line("add-fd", **_SET),
        command_line("migrate-incoming", uri=_FILE),
        # The second is refused, unless the first one was: reading the greeting for the version would be a wait.
        command_line("migrate-incoming", uri=f"fd:{source}"),
    )
    socket.send_fds(connection, [b"".join(lines)], [source])


def command_line(command: str, **arguments: Any) -> bytes:
    """A QMP command as it goes over the wire."""
    return json.dumps({"execute": command, "arguments": arguments}).encode() + b"\n"
