"""Hostile bytes against the host's end of the network port: `feed` for tests of properties, `make fuzz` for atheris.

Whatever arrives, the link goes on or is closed with a reason, and nothing is left of it.
"""

from __future__ import annotations

import contextlib
import os
import socket
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wire import frames, main

if TYPE_CHECKING:
    import atheris

    from airlockd.protocol.mux import Message
else:
    with contextlib.suppress(ImportError):
        import atheris

# What is imported here is what atheris watches.
with atheris.instrument_imports() if "atheris" in globals() else contextlib.nullcontext():
    from airlock_runner.config.network_model import NetworkConfig
    from airlock_runner.net.journal import _encode
    from airlock_runner.net.network import policy_of
    from airlock_runner.net.reading import _parse
    from airlock_runner.net.service import Service
    from airlock_runner.net.settle import HostSocket, Settled, ToHost
    from airlockd.protocol.frames import encode
    from airlockd.protocol.link import Link
    from airlockd.protocol.loop import Loop

CONFIG = NetworkConfig()
POLICY = policy_of(CONFIG)
SETTLED = Settled(
    CONFIG, {3000: ToHost(3000, 1, "p")}, (), {"s": HostSocket("s", Path("/nowhere/s"), "/s", None)}, ()
)


def feed(data: bytes) -> str | None:
    """Have the host's end of a port read `data` and then the end; gives the reason of the close, if any."""
    read, write = os.pipe()
    loop = Loop()
    closed: list[str | None] = []
    logged: list[bytes] = []

    def on_close(reason: str | None) -> None:
        closed.append(reason)
        service.close()

    def on_message(message: Message) -> None:
        service.on_message(message)

    link = Link(loop, read, on_message, on_close, bulk=True)
    packets, wire = socket.socketpair()
    service = Service(
        loop, link, packets.detach(), SETTLED, POLICY,
        log=lambda record: logged.append(_encode(record.values()).encode()),
    )  # fmt: skip
    # An answer goes nowhere: a pipe has no way back.
    link.flush = lambda: link.mux.output.written(link.mux.output.size)  # type: ignore[method-assign]
    os.set_blocking(write, False)
    view = memoryview(data)
    while view and not closed:
        with contextlib.suppress(BlockingIOError):
            view = view[os.write(write, view) :]
        link._read()
    os.close(write)
    while not closed:
        link._read()
    wire.close()
    loop.close()
    assert not service.connections
    assert not service._waiting
    for line in logged:
        assert _parse(b'{"time":"t",' + line[1:]) is not None
    return closed[0]


def seeds() -> list[bytes]:
    """Frames of each kind to begin with."""
    headers: list[dict[str, Any]] = [
        {"t": "call", "op": "connect", "id": 2, "stream": 3, "kind": "port", "port": 3000},
        {"t": "call", "op": "connect", "id": 3, "stream": 5, "kind": "socket", "name": "s"},
        {"t": "reply", "id": 1},
        {"t": "reset", "s": 1},
    ]
    wires = [b"".join(map(bytes, encode(header))) for header in headers]
    wires.append(wires[0] + b"".join(map(bytes, encode({"t": "data", "s": 3}, b"data"))))
    return [b"r" + wire for wire in wires] + [b"f" + wire[8:] for wire in wires]


def one_input(data: bytes) -> None:
    """For atheris: the first byte says whether the rest is the wire itself or frames without their lengths."""
    feed(data[1:] if data[:1] == b"r" else frames(data[1:]))


if __name__ == "__main__":
    main(one_input, seeds())
