"""Hardening, proven from inside a real VM: with it, nothing of the list works; without it, all of it does."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "integration"))
from sandboxes import Running, running, write_config

if TYPE_CHECKING:
    from collections.abc import Iterator

ATTEMPTS = {
    "a mount namespace": "unshare --mount true",
    "a user namespace": "unshare --user true",
    "a network namespace": "unshare --net true",
    "another's namespace": "nsenter --mount=/proc/1/ns/mnt true",
    "a mount": "mount -t tmpfs tmpfs /mnt",
    "an unmount": "umount /airlock/disk",
    "airlockd's files": "ls /proc/1/root/usr",
    "airlockd's memory": "head -c 1 /proc/1/mem",
    "the control port": "for port in /dev/vport*; do head -c 0 $port && exit; done; false",
}
"""What a hardened command must fail at. Each is a command line that succeeds where hardening is off."""
WORKS_WITHOUT = (
    "a mount namespace",
    "a user namespace",
    "a network namespace",
    "a mount",
    "airlockd's files",
)


def sandbox_of(factory: pytest.TempPathFactory, harden: str) -> Iterator[Running]:
    project = factory.mktemp("project")
    write_config(project, f"harden = {harden}")
    with running(project) as sandbox:
        yield sandbox


@pytest.fixture(scope="module")
def hardened(base_image: object, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    yield from sandbox_of(tmp_path_factory, "true")


@pytest.fixture(scope="module")
def open_sandbox(base_image: object, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    yield from sandbox_of(tmp_path_factory, "false")


def status(sandbox: Running) -> dict[str, str]:
    lines = sandbox.sh("cat /proc/self/status").splitlines()
    return {key: value.strip() for key, _, value in (line.partition(":") for line in lines)}


def test_the_kernel_says_so(hardened: Running) -> None:
    values = status(hardened)
    assert values["NoNewPrivs"] == "1"
    assert values["Seccomp"] == "2"
    for dropped in (16, 17, 19, 21, 22, 38, 39):
        for kind in ("CapBnd", "CapEff", "CapPrm"):
            assert not int(values[kind], 16) & 1 << dropped


def test_off_means_off(open_sandbox: Running) -> None:
    values = status(open_sandbox)
    assert (values["NoNewPrivs"], values["Seccomp"]) == ("0", "0")
    assert int(values["CapEff"], 16) == int(values["CapBnd"], 16) == (1 << 41) - 1


@pytest.mark.parametrize("what", ATTEMPTS)
def test_refused(hardened: Running, what: str) -> None:
    done = hardened.exec("sh", "-c", ATTEMPTS[what])
    assert done.returncode != 0, f"{what} was to be had: {done.stdout!r}"
    assert done.returncode != 127, done.stderr


@pytest.mark.parametrize("what", WORKS_WITHOUT)
def test_granted_without(open_sandbox: Running, what: str) -> None:
    done = open_sandbox.exec("sh", "-c", ATTEMPTS[what])
    assert done.returncode == 0, done.stderr


def test_the_control_port_is_taken_even_without(open_sandbox: Running) -> None:
    done = open_sandbox.exec("sh", "-c", "ls /dev/vport*; " + ATTEMPTS["the control port"])
    assert done.returncode != 0
    assert b"/dev/vport" in done.stdout


SETUID = """
    cp "$(command -v id)" /opt/id-as-root; chmod 4755 /opt/id-as-root
    setpriv --reuid=65534 --regid=65534 --clear-groups /opt/id-as-root -u
"""


def test_a_setuid_program_gains_nothing(hardened: Running) -> None:
    assert hardened.sh(SETUID) == "65534\n"


def test_a_setuid_program_works_without(open_sandbox: Running) -> None:
    assert open_sandbox.sh(SETUID) == "0\n"


def test_the_project_cannot_reach_the_sandbox_directory(hardened: Running) -> None:
    """The directory with the disk and the socket is masked in the share."""
    assert hardened.sh("ls -A .airlock") == ""
    assert hardened.exec("sh", "-c", "echo x > .airlock/x").returncode != 0


def test_the_image_cannot_be_written(open_sandbox: Running) -> None:
    device = open_sandbox.sh(
        "for b in /sys/block/vd*; do if grep -q image $b/serial; then echo /dev/${b##*/}; fi; done"
    ).strip()
    done = open_sandbox.exec("dd", "if=/dev/zero", f"of={device}", "bs=512", "count=1", "conv=fsync")
    assert done.returncode != 0
