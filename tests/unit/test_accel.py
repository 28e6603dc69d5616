"""What proves an accelerator: a guest that booted with it. QEMU is a stand-in here that does as the test says."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

import pytest

from airlock_runner import boot, probe
from airlock_runner.machine import accel
from airlock_runner.machine.accel import Candidates, Verdict, candidates, recall, remember
from airlock_runner.machine.qemu import find_qemu
from airlock_store.errors import MachineError
from airlock_store.image import Image
from airlockd.protocol.frames import encode

if TYPE_CHECKING:
    from pathlib import Path

ARCH = "x86_64"
READY, OTHER = (
    b"".join(map(bytes, encode({"t": "event", "name": "ready", "version": version})))
    for version in (boot.PROTOCOL_VERSION, boot.PROTOCOL_VERSION + 1)
)
STAND_IN = f"""#!{sys.executable} -ISB
import os, re, signal, sys
here = os.path.dirname(os.path.abspath(__file__))
accelerator = sys.argv[sys.argv.index("-accel") + 1].partition(",")[0]
with open(here + "/runs", "a") as runs:
    print(accelerator, file=runs)
ends = {{name: int(fd) for name, fd in re.findall(r"socket,id=(\\w+),fd=(\\d+)", " ".join(sys.argv))}}
done = open(here + "/runs").read().count(accelerator)
match open(here + "/" + accelerator).read().split()[done - 1]:
    case "abort":
        sys.exit("failed to set MSR 0x10a")
    case "panic":
        os.write(ends["console"], b"Kernel panic - not syncing: no init\\n")
        sys.exit(0)
    case "oops":
        os.write(ends["console"], b"[    2.4] Oops: int3: 0000 [#1] PREEMPT SMP\\n")
        os.write(ends["console"], b"[    2.5] Kernel panic - not syncing: Fatal\\n")
        sys.exit(0)
    case "reset":
        sys.exit(0)
    case "speak":
        os.write(ends["console"], b"Probing EDD\\n")
    case "other":
        os.write(ends["control"], {OTHER!r})
    case "boot":
        os.write(ends["control"], {READY!r})
signal.pause()
"""


@pytest.fixture
def qemu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The stand-in, on a host with something that looks like KVM and an empty cache."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(accel, "_obstacle", lambda _native, _arch: "")
    monkeypatch.setattr(accel, "PROBE_SECONDS", 60.0)
    qemu = tmp_path / f"qemu-system-{ARCH}"
    qemu.write_text(STAND_IN)
    qemu.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    return qemu


@pytest.fixture
def image(tmp_path: Path) -> Image:
    return Image(
        path=tmp_path, key="0" * 32, name="stand-in", summary="", arch=ARCH, kernel=tmp_path / "kernel",
        kernel_release="6", initrd=tmp_path / "initrd", rootfs=tmp_path / "rootfs", rootfs_format="ext4",
        rootfs_key="0",
    )  # fmt: skip


def script(qemu: Path, *, kvm: str = "", tcg: str = "") -> None:
    """What each machine does, in their order."""
    (qemu.parent / "kvm").write_text(kvm)
    (qemu.parent / "tcg").write_text(tcg)


def runs(qemu: Path) -> list[str]:
    return (qemu.parent / "runs").read_text().split()


def test_a_guest_that_boots_is_proof_and_is_remembered(qemu: Path, image: Image) -> None:
    script(qemu, kvm="boot")
    assert probe.prove(image) == Verdict("kvm", "a guest booted with it")
    assert probe.prove(image) == Verdict("kvm", "a guest booted with it")
    assert candidates("auto", ARCH, qemu) == Candidates(("kvm",), False, "a guest booted with it")
    assert runs(qemu) == ["kvm"]


@pytest.mark.parametrize(
    ("deed", "why"),
    [
        ("abort", "ended with status 1 (failed to set MSR 0x10a)"),
        ("panic", "ended with status 0, its kernel panicked: no init"),
        ("hang", "gave no sign of life"),
        ("speak", "did not become ready"),
    ],
)
def test_a_guest_that_does_not_get_there_makes_it_tcg(
    qemu: Path, image: Image, deed: str, why: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if deed in ("hang", "speak"):
        monkeypatch.setattr(accel, "PROBE_SECONDS", 2.0)
    script(qemu, kvm=deed, tcg="boot")
    verdict = Verdict("tcg", f"kvm does not run guests here: the machine {why}")
    assert probe.prove(image) == recall(qemu) == verdict
    assert runs(qemu) == ["kvm", "tcg"]


def test_what_fails_with_either_says_nothing_of_the_accelerator(qemu: Path, image: Image) -> None:
    """There was no memory for the machine, say: kvm may be fine, and is tried again."""
    script(qemu, kvm="abort", tcg="abort")
    with pytest.raises(MachineError, match="failed to set MSR"):
        probe.prove(image)
    assert recall(qemu) is None
    assert candidates("auto", ARCH, qemu).unproven


def test_early_boots_that_die_are_tried_again(
    qemu: Path, image: Image, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AIRLOCK_LIFE_SECONDS", "2")
    script(qemu, kvm="abort", tcg="hang reset boot")
    assert probe.prove(image).accelerator == "tcg"
    assert runs(qemu) == ["kvm", "tcg", "tcg", "tcg"]


def test_a_fault_of_the_kernel_itself_is_tried_again(qemu: Path, image: Image) -> None:
    script(qemu, kvm="abort", tcg="oops oops boot")
    assert probe.prove(image).accelerator == "tcg"
    assert runs(qemu) == ["kvm", "tcg", "tcg", "tcg"]


def test_a_fault_that_stays_is_told(qemu: Path, image: Image) -> None:
    script(qemu, kvm="abort", tcg="oops oops oops boot")
    with pytest.raises(MachineError, match=r"its kernel panicked: Fatal \(Oops: int3: 0000\)"):
        probe.prove(image)
    assert runs(qemu) == ["kvm", "tcg", "tcg", "tcg"]


def test_but_three_times_and_no_more(qemu: Path, image: Image) -> None:
    script(qemu, kvm="abort", tcg="reset reset reset boot")
    with pytest.raises(MachineError, match="could not start: the machine ended with status 0"):
        probe.prove(image)
    assert runs(qemu) == ["kvm", "tcg", "tcg", "tcg"]


def test_a_panic_is_told_with_its_console_and_not_tried_again(qemu: Path, image: Image) -> None:
    script(qemu, kvm="abort", tcg="panic boot")
    with pytest.raises(
        MachineError, match=r"panicked: no init\nThe last lines of its console:\n.*Kernel panic"
    ):
        probe.prove(image)
    assert runs(qemu) == ["kvm", "tcg"]


def test_an_airlockd_of_another_airlock_is_not_talked_to(qemu: Path, image: Image) -> None:
    script(qemu, kvm="other")
    other = f"speaks version {boot.PROTOCOL_VERSION + 1}, not {boot.PROTOCOL_VERSION}"
    with pytest.raises(MachineError, match=other):
        probe.prove(image)
    assert runs(qemu) == ["kvm"]


def test_a_verdict_is_of_one_boot_of_the_host_and_one_qemu(
    qemu: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    verdict = Verdict("kvm", "a guest booted with it")
    remember(qemu, verdict)
    assert recall(qemu) == verdict
    qemu.write_text(STAND_IN + "# another version\n")
    assert recall(qemu) is None
    remember(qemu, verdict)
    monkeypatch.setattr(accel, "_host", lambda _qemu: "after a reboot")
    assert recall(qemu) is None
    for damage in ("", "[]", "{", '{"host": "after a reboot"}', '{"host": "after a reboot", "x": 1}'):
        (tmp_path / "cache" / "accelerator.json").write_text(damage)
        assert recall(qemu) is None


def test_a_cache_that_cannot_be_written_costs_a_proof_each_time(
    qemu: Path, image: Image, tmp_path: Path
) -> None:
    (tmp_path / "cache").touch()
    script(qemu, kvm="boot boot")
    assert probe.prove(image).accelerator == probe.prove(image).accelerator == "kvm"
    assert runs(qemu) == ["kvm", "kvm"]


def test_a_qemu_is_the_same_whichever_way_leads_to_it(qemu: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (qemu.parent / "bin").symlink_to(qemu.parent)
    monkeypatch.setenv("PATH", str(qemu.parent / "bin"))
    assert find_qemu(ARCH) == qemu


def test_what_is_asked_for_is_not_proven(qemu: Path) -> None:
    assert candidates("tcg", ARCH, qemu) == Candidates(("tcg",), False, "asked for")
    assert candidates("kvm", ARCH, qemu) == Candidates(("kvm",), False, "asked for")
    with pytest.raises(MachineError, match="the accelerator hvf cannot be used: this system has no hvf"):
        candidates("hvf", ARCH, qemu)


def test_a_host_without_kvm_says_why(qemu: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(accel, "_obstacle", lambda _native, _arch: "there is no /dev/kvm")
    assert candidates("auto", ARCH, qemu) == Candidates(("tcg",), False, "there is no /dev/kvm")
    with pytest.raises(
        MachineError, match="the accelerator kvm cannot be used: there is no /dev/kvm"
    ) as caught:
        candidates("kvm", ARCH, qemu)
    assert caught.value.hint == "use --accel auto or --accel tcg"


def test_what_is_in_the_way_is_told_once_and_proves_nothing(
    qemu: Path, image: Image, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who is told to join the group kvm, and does, need not boot the host for it to count."""
    closed, none = "/dev/kvm may not be opened by this user", "there is no /dev/kvm"
    assert [accel.is_news(qemu, why) for why in (closed, closed, none, none)] == [True, False, True, False]
    script(qemu, kvm="boot")
    assert candidates("auto", ARCH, qemu) == Candidates(("kvm", "tcg"), True, "not proven yet")
    assert probe.prove(image) == Verdict("kvm", "a guest booted with it")
    assert accel.is_news(qemu, closed)


def test_a_proof_that_failed_is_not_told_again(qemu: Path, image: Image) -> None:
    script(qemu, kvm="abort", tcg="boot")
    reason = probe.prove(image).reason
    assert candidates("auto", ARCH, qemu) == Candidates(("tcg",), False, reason)
    assert not accel.is_news(qemu, reason)


@pytest.mark.parametrize(
    ("native", "machine", "kvm", "said"),
    [
        ("", ARCH, "usable", "this system has no accelerator that airlock knows"),
        ("kvm", "aarch64", "usable", f"the image is for {ARCH}, this machine is not"),
        ("kvm", ARCH, "none", "there is no /dev/kvm"),
        ("kvm", ARCH, "closed", "/dev/kvm may not be opened by this user (is the user in the group kvm?)"),
        ("kvm", ARCH, "usable", ""),
        ("hvf", ARCH, "none", ""),
    ],
)
def test_obstacles_that_show_without_a_boot(
    native: str, machine: str, kvm: str, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    host = os.uname()
    monkeypatch.setattr(os, "uname", lambda: os.uname_result((*host[:4], machine)))
    monkeypatch.setattr(os.path, "exists", lambda _path: kvm != "none")
    monkeypatch.setattr(os, "access", lambda _path, _mode: kvm == "usable")
    assert accel._obstacle(native, ARCH) == said
