"""What inotify tells a loop."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from manual_loop import ManualLoop

from airlockd.protocol.inotify import CREATE, Inotify

if TYPE_CHECKING:
    from pathlib import Path


def test_all_that_happened_is_read_at_once(tmp_path: Path) -> None:
    """Of more than one read gives."""
    heard = []
    inotify = Inotify(ManualLoop(), lambda *told: heard.append(told))  # type: ignore[arg-type]
    directory = os.open(tmp_path, os.O_PATH)
    number = inotify.add(directory, CREATE)
    assert inotify.add(directory, CREATE) == number
    os.close(directory)
    names = [f"{each:03}" + "x" * 200 for each in range(500)]
    for name in names:
        (tmp_path / name).touch()
    inotify.read()
    assert heard == [(number, CREATE, name.encode()) for name in names]
    inotify.remove(number)
    (tmp_path / "more").touch()
    inotify.read()
    assert len(heard) == 501
    inotify.close()


def test_who_is_told_may_close_it(tmp_path: Path) -> None:
    loop = ManualLoop()
    heard = []

    def close(_number: int, _mask: int, name: bytes) -> None:
        heard.append(name)
        inotify.close()

    inotify = Inotify(loop, close)  # type: ignore[arg-type]
    directory = os.open(tmp_path, os.O_PATH)
    inotify.add(directory, CREATE)
    os.close(directory)
    for name in ("a", "b"):
        (tmp_path / name).touch()
    inotify.read()
    assert (heard, loop.readable) == ([b"a"], {})
