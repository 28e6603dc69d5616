"""Which virtiofsd is used, and how: as tables, with programs that only say what the real ones say."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from airlock_runner.machine import virtiofs
from airlock_runner.machine.virtiofs import Daemon, Helper, choose_daemon, daemon_argv, find_daemon
from airlock_store.errors import MachineError

OLD, NEW, MIDDLE = "    -o timeout=<number>        I/O timeout", "      --allow-mmap", "      --shared-dir"
"""What tells QEMU's own, the Rust one from 1.11 on, and the Rust one before it, by their help."""


def program(path: Path, says: str) -> Path:
    path.parent.mkdir(exist_ok=True)
    path.write_text(f"#!/bin/sh\necho '{says}'\n")
    path.chmod(0o755)
    return path


@pytest.fixture(autouse=True)
def places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """No virtiofsd of this host; `descriptions` and `bin` are to be filled. The user is root."""
    for name in ("descriptions", "bin"):
        (tmp_path / name).mkdir()
    monkeypatch.setattr(virtiofs, "_DESCRIPTIONS", (tmp_path / "descriptions",))
    monkeypatch.setattr(virtiofs, "_PLACES", (tmp_path / "usual" / "virtiofsd",))
    monkeypatch.setenv("PATH", f"{tmp_path}/bin:/usr/bin:/bin")
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    return tmp_path


def describe(places: Path, name: str, **values: object) -> None:
    (places / "descriptions" / f"{name}.json").write_text(json.dumps(values))


def test_a_host_without_one(places: Path) -> None:
    (places / "descriptions" / "10-bad.json").write_text("{")
    describe(places, "20-other", type="gpu", binary=str(program(places / "bin" / "gpu", NEW)))
    describe(places, "30-gone", type="fs", binary="/nowhere/virtiofsd")
    with pytest.raises(MachineError, match="this host has no virtiofsd") as caught:
        find_daemon()
    assert "install the package virtiofsd" in str(caught.value.hint)


def test_the_first_that_fits_is_taken(places: Path) -> None:
    usual = program(places / "usual" / "virtiofsd", NEW)
    assert find_daemon() == Daemon(usual, rust=True)
    described = program(places / "described", OLD)
    describe(places, "50-qemu", type="fs", binary=str(described))
    assert find_daemon() == Daemon(described, rust=False)
    program(places / "bin" / "virtiofsd", MIDDLE)
    assert find_daemon() == Daemon(described, rust=False)
    own = program(places / "bin" / "virtiofsd", NEW)
    assert find_daemon() == Daemon(own, rust=True)


def test_what_is_wrong_is_told(places: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    old, middle = program(places / "usual" / "virtiofsd", OLD), program(places / "bin" / "virtiofsd", MIDDLE)
    with pytest.raises(MachineError) as caught:
        find_daemon()
    assert str(caught.value).startswith(
        f"{middle} is older than 1.11, which cannot map files that it does not cache; "
        f"{old} is the old one of QEMU, which needs root"
    )


@pytest.mark.parametrize(
    ("share", "cold", "there", "served"),
    [
        ("9p", True, True, False),
        ("virtiofs", False, True, True),
        ("auto", False, True, False),
        ("auto", True, True, True),
        ("auto", True, False, False),
    ],
)
def test_who_serves(places: Path, share: str, *, cold: bool, there: bool, served: bool) -> None:
    if there:
        program(places / "bin" / "virtiofsd", NEW)
    assert (choose_daemon(share, cold=cold) is not None) == served


def test_auto_is_for_root(places: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program(places / "bin" / "virtiofsd", NEW)
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert choose_daemon("auto", cold=True) is None
    assert choose_daemon("virtiofs", cold=True) is not None


def test_one_that_was_asked_for_must_be_there() -> None:
    with pytest.raises(MachineError):
        choose_daemon("virtiofs", cold=True)


def test_the_command_lines() -> None:
    assert daemon_argv(Daemon(Path("/v"), rust=True), Path("/a,b c"), 7) == [
        "/v", "--fd=7", "--shared-dir=/a,b c", "--sandbox=namespace", "--cache=never", "--allow-mmap",
        "--modcaps=-mknod", "--log-level=error",
    ]  # fmt: skip
    assert daemon_argv(Daemon(Path("/v"), rust=False), Path("/a,b\\c"), 7) == [
        "/v", "--fd=7", "-f", "-o",
        "source=/a\\,b\\\\c,sandbox=namespace,cache=auto,timeout=0,modcaps=-mknod,log_level=err",
    ]  # fmt: skip


def test_of_all_that_one_says_the_last_is_kept(tmp_path: Path) -> None:
    """A guest can make it say as much as it likes, and nobody reads that while it runs."""
    path = program(tmp_path / "loud" / "virtiofsd", "")
    path.write_text("#!/bin/sh\nhead -c 5000000 /dev/zero | tr '\\0' x\necho\necho last words >&2\n")
    helper = Helper(Daemon(path, rust=True), tmp_path, None)
    try:
        assert helper._process.wait(60) == 0
        assert helper.said().endswith("xxx\nlast words")
        assert len(helper._said) == 1000
    finally:
        helper.close()
