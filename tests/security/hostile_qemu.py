"""Stands in for QEMU with a guest that has taken over airlockd: speaks until a command runs, then breaks the rules.

Run as qemu-system-*, with the name of what to do in HOSTILE. `ATTACKS` says what is to become of each.
"""

from __future__ import annotations

import os
import re
import signal
import socket
import struct
import sys
from collections.abc import Callable, Iterable
from itertools import chain
from typing import NoReturn

from airlock_runner.boot import PROTOCOL_VERSION
from airlockd.protocol.frames import MAX_HEADER, MAX_PAYLOAD, Decoder, encode
from airlockd.protocol.mux import WINDOW

Chunks = Iterable[bytes]
PORTION = bytes(MAX_PAYLOAD)


def frame(payload: bytes = b"", **header: object) -> bytes:
    return b"".join(bytes(part) for part in encode(header, payload))


def raw(header: bytes, payload: bytes = b"") -> bytes:
    return struct.pack(">II", len(header), len(payload)) + header + payload


def exit_event(**values: object) -> bytes:
    return frame(t="event", name="exit", **values)


LOG = frame(t="event", name="log", level="debug", text="x" * 40)
LARGE = frame(PORTION, t="event", name=["?"], x="y" * (MAX_HEADER - 100))

# What is sent once a command runs: `process` is its number, `out` that of its standard output's stream.
ATTACKS: dict[str, tuple[Callable[[int, int], Chunks], str]] = {
    "oversized": (lambda process, out: [struct.pack(">II", 2**32 - 1, 2**32 - 1)], "oversized frame"),
    "oversized-payload": (lambda process, out: [struct.pack(">II", 2, MAX_PAYLOAD + 1)], "oversized frame"),
    "unknown-type": (lambda process, out: [frame(t="boom\x1b[31m")], "unknown frame type 'boom"),
    "not-json": (lambda process, out: [raw(b"\xff\xfe{")], "header is not JSON"),
    "not-an-object": (lambda process, out: [raw(b"[1]")], "not an object"),
    "nested": (lambda process, out: [raw(b'{"t":"event","x":' + b"[" * 100_000)], "nested too deeply"),
    "nan": (lambda process, out: [raw(b'{"t":"event","x":NaN}')], "NaN"),
    "million-streams": (
        lambda process, out: (frame(b"x", t="data", s=number) for number in range(10, 1_000_010)),
        "unknown stream",
    ),
    "million-resets": (
        lambda process, out: (frame(t="reset", s=number) for number in range(10**6, 2 * 10**6)),
        "unknown stream",
    ),
    "credit": (lambda process, out: [frame(t="credit", s=out, n=WINDOW)], "credit beyond the window"),
    "credit-of-no-number": (lambda process, out: [frame(t="credit", s=out, n="9")], "bad credit"),
    # Nobody reads the output: there is never credit for more than the window.
    "data": (lambda process, out: (frame(PORTION, t="data", s=out) for _ in range(400)), "more than its window"),
    # A window of no bytes lasts for ever.
    "empty": (lambda process, out: (frame(t="data", s=out) * 1000 for _ in range(1000)), "a frame of no data"),
    "truncated": (lambda process, out: [struct.pack(">II", 100, 100) + b"cut"], "machine ended (status 1)"),
    "a-call": (lambda process, out: [frame(t="call", op="spawn", id=1)], "unexpected call"),
    "a-reply": (lambda process, out: [frame(t="reply", id=10**9)], "unexpected reply"),
    "a-reply-to-a-list": (lambda process, out: [frame(t="reply", id=[1])], "unexpected reply"),
    "exit-of-a-list": (lambda process, out: [exit_event(process=[1], code=0)], "bad process [1]"),
    "exit-of-a-giant": (lambda process, out: [exit_event(process=2**70, code=0)], "bad process"),
    "exit-with-a-text": (lambda process, out: [exit_event(process=process, code="zero")], "bad code 'zero'"),
    "exit-with-a-giant": (lambda process, out: [exit_event(process=process, code=10**300)], "bad code"),
    "exit-without": (lambda process, out: [exit_event(process=process)], "bad signal None"),
    "events": (
        lambda process, out: chain((LOG for _ in range(200_000)), [raw(b"{")]),
        "header is not JSON",
    ),
    "large-events": (
        lambda process, out: chain((LARGE for _ in range(200)), [raw(b"{")]),
        "header is not JSON",
    ),
    "drawn-events": (
        lambda process, out: [
            frame(t="event", name="daemon", daemon="\x1b]0;x\x07\nairlock: fine", state="up"),
            frame(t="event", name="daemon", daemon={"a": []}, state={"b": 1}),
            frame(t="event", name="oom", text=["\x9b5m\r"]),
            frame(t="event", name="log", level="error", text="\x1b[2J\nairlock: fine"),
            frame(t="event", name="log", level=["error"], text=None),
            raw(b"{"),
        ],
        "header is not JSON",
    ),
}  # fmt: skip
BEFORE: dict[str, tuple[Chunks, str]] = {
    "noise-before-ready": ([b"\xff" * 4096], "oversized frame"),
    "another-version": ([frame(t="event", name="ready", version="\x1b[5m")], "speaks version '\\x1b[5m"),
}
"""What is sent instead of READY."""


def main() -> NoReturn:
    """Until the host hangs up."""
    name = os.environ["HOSTILE"]
    ends = {
        found[1]: int(found[2]) for word in sys.argv if (found := re.match(r"socket,id=(\w+),fd=(\d+)", word))
    }
    port = socket.socket(fileno=ends["control"])
    os.write(ends["console"], b"\x1b]0;owned\x07the console says: airlock\r\n")
    try:
        if name == "console-flood":
            for _ in range(1000):
                os.write(ends["console"], b"\x1b[31m" * 20_000)
            sys.exit(1)
        if name in BEFORE:
            for chunk in BEFORE[name][0]:
                port.sendall(chunk)
            wait_for_end(port)
        port.sendall(
            frame(t="event", name="ready", version=PROTOCOL_VERSION, kernel="\x1b[31m\n6", uptime=1.0)
        )
        serve(port, name)
    except OSError:
        # The host has closed the connection, as it should.
        wait_for_end(port)


def serve(port: socket.socket, name: str) -> NoReturn:
    decoder = Decoder()
    while data := port.recv(65536):
        for header, _ in decoder.feed(data):
            if header.get("t") != "call":
                continue
            if header["op"] == "configure" and name == "drawn-refusal":
                port.sendall(frame(t="error", id=header["id"], message="\x1b[31m no\nairlock: fine"))
            elif header["op"] == "spawn" and name == "odd-refusal":
                port.sendall(frame(t="error", id=header["id"], message={"a": [1]}, errno="2", stage=["exec"]))
            else:
                port.sendall(frame(t="reply", id=header["id"], pid="\x1b", time="never", disk=[]))
                if header["op"] == "spawn" and name in ATTACKS:
                    for chunk in ATTACKS[name][0](header["process"], header["streams"][1]):
                        port.sendall(chunk)
                    if name == "truncated":
                        sys.exit(1)
    wait_for_end(port)


def wait_for_end(port: socket.socket) -> NoReturn:
    try:
        while port.recv(65536):
            pass
    except OSError:
        pass
    # The host ends us, as it ends QEMU.
    while True:
        signal.pause()


if __name__ == "__main__":
    main()
