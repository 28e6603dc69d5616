"""What `airlock doctor` finds."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING

import pytest

import airlock_builder.rootfs.ids
import airlock_builder.tools
import airlock_runner.attach
import airlock_runner.machine.qemu
import airlock_runner.probe
from airlock.cli import run
from airlock.commands import doctor as doctor_module
from airlock_runner.machine import accel
from airlock_runner.machine.accel import Candidates, Verdict
from airlock_store.errors import BuildError, MachineError

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.usefixtures("elsewhere")


def test_doctor_names_what_is_missing_and_its_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert run(["doctor", "--json"]) == 1
    findings = {finding["name"]: finding for finding in json.loads(capsys.readouterr().out)}
    assert findings["qemu"]["status"] == "missing"
    assert "qemu-system-" in findings["qemu"]["hint"]
    assert findings["disk"]["detail"].endswith(f"({tmp_path / 'store'})")
    assert run(["doctor"]) == 1
    assert "missing  qemu" in capsys.readouterr().out


def findings(capsys: pytest.CaptureFixture[str]) -> dict[str, dict[str, str]]:
    run(["doctor", "--json"])
    return {finding["name"]: finding for finding in json.loads(capsys.readouterr().out)}


def test_doctor_tells_builds_from_compilations(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    found = findings(capsys)
    assert (found["builder"]["status"], found["compiler"]["status"]) == ("ok", "ok")
    monkeypatch.setattr(airlock_builder.tools, "SEARCH_PATH", str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path))
    found = findings(capsys)
    assert found["mmdebstrap"]["detail"] == (
        "not installed (package mmdebstrap); images cannot be built without it"
    )
    assert found["builder"]["status"] == "warning"
    assert found["builder"]["hint"].startswith("apt-get install apt coreutils dpkg mmdebstrap mount")
    assert "gcc" not in found
    assert found["compiler"]["status"] == "ok"
    assert found["compiler"]["hint"] == "apt-get install bc binutils bison flex gcc make xz-utils"


def test_doctor_asks_for_ids_where_the_user_is_none_that_needs_none(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def none() -> None:
        raise BuildError("me has no range of ids", hint="get one")

    monkeypatch.setattr(airlock_builder.rootfs.ids, "require_range", none)
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert "ids" not in findings(capsys)
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert findings(capsys)["ids"] == {
        "name": "ids",
        "status": "warning",
        "detail": "images cannot be built: me has no range of ids",
        "hint": "get one",
    }


@pytest.mark.parametrize("proof", [None, Verdict("kvm", "a guest booted with it")])
def test_doctor_proves_the_accelerator_with_an_image_that_is_good(
    proof: Verdict | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = tmp_path / "store" / f"{'0' * 32}-broken"
    broken.mkdir(parents=True)
    (broken / "manifest.json").write_text("{")
    monkeypatch.setattr(accel, "candidates", lambda *_: Candidates(("kvm", "tcg"), True, "not proven yet"))
    monkeypatch.setattr(airlock_runner.machine.qemu, "find_qemu", lambda _arch: tmp_path / "qemu")
    monkeypatch.setattr(airlock_runner.machine.qemu, "qemu_version", lambda _qemu: "10.0")
    assert "to be proven by the first start" in findings(capsys)["accelerator"]["detail"]

    def prove(_image: object) -> Verdict:
        if proof is None:
            raise MachineError("the machine ended", hint="look at it")
        return proof

    monkeypatch.setattr(doctor_module, "_any_image", lambda _arch: object())
    monkeypatch.setattr(airlock_runner.probe, "prove", prove)
    found = findings(capsys)["accelerator"]
    if proof is None:
        assert (found["status"], found["detail"]) == ("missing", "no guest runs here: the machine ended")
    else:
        assert (found["status"], found["detail"]) == ("ok", "kvm: a guest booted with it")


@pytest.mark.parametrize("store", ["file/store", "~nosuchuser/store"])
def test_doctor_tells_of_a_store_that_cannot_be_looked_into(
    store: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("AIRLOCK_STORE", store if store.startswith("~") else str(tmp_path / store))
    monkeypatch.setattr(accel, "candidates", lambda *_: Candidates(("kvm", "tcg"), True, "not proven yet"))
    assert run(["doctor", "--json"]) == 1
    found = {finding["name"]: finding for finding in json.loads(capsys.readouterr().out)}
    assert found["disk"]["status"] == "missing"
    assert ("there is no such user" in found["disk"]["detail"]) is store.startswith("~")
    assert {"memory", "builder"} <= set(found)
