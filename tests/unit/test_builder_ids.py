"""An ordinary user's range of ids: found, or asked for with the command that gives one."""

from __future__ import annotations

import os
import pwd
from typing import TYPE_CHECKING

import pytest

import airlock_builder.rootfs.ids as module
from airlock_builder.build import build, plan
from airlock_builder.rootfs import mmdebstrap
from airlock_builder.rootfs.ids import require_range
from airlock_store.errors import BuildError
from airlock_store.store import Store

if TYPE_CHECKING:
    from pathlib import Path

GAMES = 5
NAME = pwd.getpwuid(GAMES).pw_name


def refusal(etc: Path, **ranges: str) -> BuildError | None:
    for name, text in ranges.items():
        (etc / name).write_text(text)
    try:
        require_range(etc, GAMES)
    except BuildError as error:
        return error
    return None


def test_a_range_is_enough(tmp_path: Path) -> None:
    line = f"other:100000:65536\n{NAME}:165536:65536\n"
    assert refusal(tmp_path, subuid=line, subgid=line) is None


@pytest.mark.parametrize(
    ("subuid", "subgid", "start"),
    [
        (None, None, 100_000),
        ("", "", 100_000),
        ("other:100000:65536\n", "other:100000:65536\nthird:300000:1000\n", 301_000),
        (f"{NAME}:100000:65536\n", "", 165_536),
        (f"{NAME}:100000:1000\n", f"{NAME}:100000:65536\n", 165_536),
        # Only the first counts for mmdebstrap.
        (f"{NAME}:1:1\n{NAME}:100000:65536\n", f"{NAME}:100000:65536\n", 165_536),
        ("junk\nx:y:z\n\n", "::\n", 100_000),
    ],
)
def test_without_one_the_command_names_a_free_one(
    tmp_path: Path, subuid: str | None, subgid: str | None, start: int
) -> None:
    written = {name: text for name, text in (("subuid", subuid), ("subgid", subgid)) if text is not None}
    error = refusal(tmp_path, **written)
    assert error and error.message.startswith(f"{NAME} has no range of 65536 ids in {tmp_path}/subuid and ")
    ids = f"{start}-{start + 65535}"
    assert error.hint == f"Have root run: usermod --add-subuids {ids} --add-subgids {ids} {NAME}"


def test_a_user_without_a_name() -> None:
    with pytest.raises(BuildError, match="the user id 4123456 has no name"):
        require_range(uid=4_123_456)


def test_a_host_without_user_namespaces(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("unshare", "newuidmap", "newgidmap"):
        (tmp_path / name).write_text(
            '#!/bin/sh\necho "$0 $*"; echo unshare failed: Operation not permitted; exit 1'
        )
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(BuildError, match="needs: unshare failed: Operation not permitted") as caught:
        module.require_namespace()
    assert caught.value.hint and "kernel.unprivileged_userns_clone" in caught.value.hint


def test_it_is_told_before_anything_is_fetched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def none() -> None:
        raise BuildError("no range")

    monkeypatch.setattr(module, "require_range", none)
    monkeypatch.setattr(module, "require_namespace", lambda: None)
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    store = Store(tmp_path / "store")
    with pytest.raises(BuildError, match="no range"):
        build(plan("base"), store)
    assert not store.root.exists()
    # Root needs none.
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    mmdebstrap.require()
