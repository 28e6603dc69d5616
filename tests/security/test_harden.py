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
    # What the kernel runs by itself has every capability there is.
    "the program for crashes": "echo '|/bin/false' > /proc/sys/kernel/core_pattern",
    "the program for modules": "cat /proc/sys/kernel/modprobe > /proc/sys/kernel/modprobe",
    "who is dumpable": "test -w /proc/sys/fs/suid_dumpable",
    "drivers": "test -w /sys/bus/virtio/drivers/virtio_console/unbind",
    # Through their registers a device writes wherever it is told to, the kernel's memory included.
    "a device's registers": "test -w /proc/bus/pci/00/00.0",
    "a device's registers by another name": "test -w /sys/bus/pci/devices/0000:00:00.0/config",
    "magic keys": "test -w /proc/sysrq-trigger",
    # What is on the disk airlockd works with at the next start.
    "the disk": "head -c 1 /dev/$(basename $(dirname $(grep -l airlock-disk /sys/block/vd*/serial)))",
    "a device of its own": "mknod /root/null c 1 3 && echo x > /root/null",
    "a file by its number": """perl -e '
        sysopen(my $mount, "/airlock/disk", 0200000) or die;
        my $root = pack("LlLL", 8, 1, 2, 0);
        exit(syscall((split " ", `uname -m`)[0] eq "x86_64" ? 304 : 265, fileno $mount, $root, 0200000) < 0);
    '""",
}
"""What a hardened command must fail at. Each is a command line that succeeds where hardening is off."""
WORKS_WITHOUT = (
    "a mount namespace",
    "a user namespace",
    "a network namespace",
    "a mount",
    "airlockd's files",
    "the program for crashes",
    "the program for modules",
    "who is dumpable",
    "drivers",
    "a device's registers",
    "a device's registers by another name",
    "magic keys",
    "the disk",
    "a device of its own",
    "a file by its number",
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
    assert (values["Seccomp"], values["Seccomp_filters"]) == ("2", "2")
    for dropped in (16, 17, 19, 21, 22, 27, 38, 39):
        for kind in ("CapBnd", "CapEff", "CapPrm"):
            assert not int(values[kind], 16) & 1 << dropped


def test_off_means_off(open_sandbox: Running) -> None:
    values = status(open_sandbox)
    # One filter, which has airlockd asked before some calls and refuses none.
    assert (values["NoNewPrivs"], values["Seccomp_filters"]) == ("0", "1")
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


CRASH = """
    echo "while read line; do echo \\$line; done < /proc/self/status > /proc/$$/root/tmp/ran" > /tmp/crash
    echo "|/proc/$$/root/bin/sh /proc/$$/root/tmp/crash" > /proc/sys/kernel/core_pattern
    sh -c 'kill -SEGV $$'
    for n in $(seq 30); do grep CapEff /tmp/ran && break; sleep 0.1; done
"""


def test_no_crash_runs_a_program_of_the_sandbox(hardened: Running) -> None:
    assert b"CapEff" not in hardened.exec("sh", "-c", CRASH).stdout


def test_a_crash_does_without(open_sandbox: Running) -> None:
    assert b"CapEff" in open_sandbox.exec("sh", "-c", CRASH).stdout


SETTINGS = ("net/core/somaxconn", "vm/max_map_count", "vm/overcommit_memory", "fs/inotify/max_user_watches")


@pytest.mark.parametrize("setting", SETTINGS)
def test_what_servers_ask_for_can_be_set(hardened: Running, setting: str) -> None:
    hardened.sh(f"cat /proc/sys/{setting} > /proc/sys/{setting}")


def test_mounts_of_others_are_seen(base_image: object, tmp_path: Path) -> None:
    """As before they were in a namespace of their own: what an open daemon mounts, hardened commands find."""
    write_config(
        tmp_path,
        """
        [daemons.mounter]
        command = ["sh", "-c", "mkdir /media/x; mount -t tmpfs x /media/x; echo good > /media/x/f; sleep infinity"]
        harden = false
        ready = { command = ["test", "-e", "/media/x/f"] }
        """,
    )
    with running(tmp_path) as sandbox:
        assert sandbox.sh("cat /media/x/f; grep -c /media/x /proc/self/mounts").split() == ["good", "1"]


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
