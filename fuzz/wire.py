"""Hostile bytes against the host's reader of the wire: `feed` for tests of properties, `make fuzz` for atheris.

Whatever arrives, the connection goes on or is closed with a reason. Nothing is raised, and what is kept is bounded.
"""

from __future__ import annotations

import contextlib
import os
import struct
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

    import atheris
else:
    with contextlib.suppress(ImportError):
        import atheris

# What is imported here is what atheris watches.
with atheris.instrument_imports() if "atheris" in globals() else contextlib.nullcontext():
    from airlock_runner.control import Control, integer, outcome
    from airlock_runner.daemons import line
    from airlock_runner.watch import correction
    from airlockd.protocol.frames import MAX_HEADER, MAX_PAYLOAD, encode
    from airlockd.protocol.link import READ_SIZE
    from airlockd.protocol.loop import Loop
    from airlockd.protocol.mux import MAX_STREAM_ID

OPEN = (1, 2, 3)
"""The streams that are open when the bytes arrive."""
PENDING = MAX_HEADER + MAX_PAYLOAD + READ_SIZE
"""Bytes that a reader may hold at most: a frame and a read."""


class _Stream:
    def __init__(self, control: Control, number: int) -> None:
        self._mux, self._number = control.link.mux, number

    def on_data(self, data: bytes) -> None:
        self._mux.consumed(self._number, len(data))

    def on_end(self) -> None:
        self._mux.send_end(self._number)

    def on_credit(self, amount: int) -> None:
        assert amount > 0

    def on_reset(self) -> None:
        pass


def feed(data: bytes) -> str | None:
    """Have the session's end of a link read `data` and then the end; gives the reason of the close, if any."""
    read, write = os.pipe()
    loop = Loop()
    closed: list[str | None] = []
    control = Control(loop, read, _on_event, closed.append)
    for stream in OPEN:
        control.link.open(stream, _Stream(control, stream))
    control.call("ping", {}, lambda reply: _ignore(correction(0, reply.get("time"), 0)), _ignore)
    # An answer goes nowhere: a pipe has no way back.
    control.link.flush = _silent(control)  # type: ignore[method-assign]
    os.set_blocking(write, False)
    view = memoryview(data)
    while view and not closed:
        with contextlib.suppress(BlockingIOError):
            view = view[os.write(write, view) :]
        control.link._read()
        assert control.link.mux._decoder.pending <= PENDING
        assert len(control.link.mux._streams) <= len(OPEN)
    os.close(write)
    while not closed:
        control.link._read()
    loop.close()
    return closed[0]


def _silent(control: Control) -> Any:
    def flush() -> None:
        mux = control.link.mux
        mux.output.written(mux.output.size)

    return flush


def _on_event(header: dict[str, Any]) -> None:
    """What the session does with events."""
    if header.get("name") == "exit":
        integer(header, "process", 1, MAX_STREAM_ID)
        outcome(header)
        return
    text = line(header)
    assert text is None or all(character.isprintable() for character in text)


def _ignore(_value: object) -> None:
    pass


def frames(data: bytes) -> bytes:
    """The same bytes with lengths that fit, so that a fuzzer gets past them: `\\n` ends a header, `\\0` a payload."""
    wire = b""
    for part in data.split(b"\0"):
        header, _, payload = part.partition(b"\n")
        wire += struct.pack(">II", len(header), len(payload)) + header + payload
    return wire


def seeds() -> list[bytes]:
    """Frames of each kind to begin with."""
    headers: list[dict[str, Any]] = [
        {"t": "event", "name": "exit", "process": 1, "code": 0},
        {
            "t": "event",
            "name": "daemon",
            "daemon": "a",
            "state": "backoff",
            "how": "x",
            "restarts": 1,
            "delay": 1.0,
        },
        {"t": "reply", "id": 1, "time": 1},
        {"t": "error", "id": 1, "message": "no"},
        {"t": "credit", "s": 1, "n": 4096},
        {"t": "end", "s": 2},
        {"t": "reset", "s": 3},
    ]
    wires = [b"".join(map(bytes, encode(header))) for header in headers]
    wires.append(b"".join(map(bytes, encode({"t": "data", "s": 1}, b"data"))))
    return [b"r" + wire for wire in wires] + [b"f" + wire[8:] for wire in wires]


def one_input(data: bytes) -> None:
    """For atheris: the first byte says whether the rest is the wire itself or frames without their lengths."""
    feed(data[1:] if data[:1] == b"r" else frames(data[1:]))


def main(one_input: Callable[[bytes], None], seeds: list[bytes]) -> None:
    """Options are libFuzzer's; the last argument is the directory of the corpus."""
    corpus = Path(sys.argv[-1])
    corpus.mkdir(parents=True, exist_ok=True)
    for number, seed in enumerate(seeds):
        (corpus / f"seed-{number}").write_bytes(seed)
    atheris.Setup(sys.argv, one_input)
    atheris.Fuzz()


if __name__ == "__main__":
    main(one_input, seeds())
