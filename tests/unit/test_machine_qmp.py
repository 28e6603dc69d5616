"""The commands that save a machine, as QEMU of an age takes them. That they work: tests/integration/test_restore.py."""

from __future__ import annotations

import json
import os
import socket
import threading
from typing import TYPE_CHECKING, Any

import pytest

from airlock_runner.machine import qmp
from airlock_store.errors import MachineError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

DONE = {"event": "MIGRATION", "data": {"status": "completed"}}


def monitor(
    connection: socket.socket, version: tuple[int, int], last: dict[str, Any], said: list[Any]
) -> None:
    """QEMU's end: greets, answers each command with nothing, and after `migrate` has one thing more to say."""
    major, minor = version
    greeting = {
        "QMP": {"version": {"qemu": {"major": major, "minor": minor, "micro": 1}}, "capabilities": []}
    }
    connection.sendall(json.dumps(greeting).encode() + b"\r\n")
    while True:
        data, descriptors, _, _ = socket.recv_fds(connection, 65536, 1)
        if not data:
            return
        for descriptor in descriptors:
            os.close(descriptor)
        command = json.loads(data)
        said.append((command["execute"], command["arguments"].get("uri"), len(descriptors)))
        answers = [{"return": {}}, *([last] if command["execute"] == "migrate" else [])]
        connection.sendall(b"".join(json.dumps(answer).encode() + b"\r\n" for answer in answers))


@pytest.fixture
def save(tmp_path: Path) -> Callable[[tuple[int, int], dict[str, Any]], list[Any]]:
    """What is asked of a QEMU of this version when a state is saved: (command, uri, descriptors) each."""

    def save(version: tuple[int, int], last: dict[str, Any]) -> list[Any]:
        said: list[Any] = []
        ours, theirs = socket.socketpair()
        thread = threading.Thread(target=monitor, args=(theirs, version, last, said))
        thread.start()
        with (tmp_path / "state").open("wb") as target, ours:
            try:
                qmp.save(ours, target.fileno())
            finally:
                ours.shutdown(socket.SHUT_RDWR)
                thread.join()
                theirs.close()
        return said

    return save


FILE = [("add-fd", None, 1), ("migrate", "file:/dev/fdset/1", 0)]
FD = [("getfd", None, 1), ("migrate", "fd:state", 0)]


@pytest.mark.parametrize(
    ("version", "asked"), [((7, 2), FD), ((8, 1), FD), ((8, 2), FILE), ((9, 0), FILE), ((10, 0), FILE)]
)
def test_a_state_is_saved_as_a_file_where_qemu_can(
    save: Callable[..., list[Any]], version: tuple[int, int], asked: list[Any]
) -> None:
    assert save(version, DONE)[2:] == asked


def test_a_state_that_could_not_be_saved_is_told(save: Callable[..., list[Any]]) -> None:
    with pytest.raises(MachineError, match="failed"):
        save((10, 0), {"event": "MIGRATION", "data": {"status": "failed"}})
