"""What goes wrong with a VM: killed, panicked, out of memory, hung, dead at boot. Each ends, and says what it was."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from sandboxes import running, write_config

if TYPE_CHECKING:
    from conftest import Airlock

    from airlock_store.image import Image

pytestmark = pytest.mark.usefixtures("base_image")

WRITER = """
    n=$(cat /airlock/disk/count 2>/dev/null || echo 0)
    while :; do n=$((n+1)); echo $n > /airlock/disk/new; sync /airlock/disk/new
    mv /airlock/disk/new /airlock/disk/count; sync /airlock/disk; echo $n; done
"""


def gone(pid: int) -> bool:
    """Whether a process has ended; a zombie has."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


def test_killed_again_and_again_with_a_writer_inside(airlock: Airlock, project: Path) -> None:
    last = 0
    for _ in range(20):
        with running(project, WRITER) as sandbox:
            qemu = os.pidfd_open(sandbox.qemu())
            first = int(sandbox.stdout.readline())
            assert first > last
            for _ in range(5):
                last = int(sandbox.stdout.readline())
            sandbox.process.kill()
            # Readable when QEMU has ended: it must, though nobody told it to.
            import select

            assert select.select([qemu], [], [], 60)[0]
            os.close(qemu)
    done = airlock("-q", "start", "--", "cat", "/airlock/disk/count", cwd=project)
    assert int(done.stdout) >= last
    assert done.returncode == 0


def test_a_machine_that_is_killed_is_reported(project: Path) -> None:
    with running(project) as sandbox:
        os.kill(sandbox.qemu(), signal.SIGKILL)
        code, _, err = sandbox.wait()
    assert code == 1
    assert b"the sandbox's machine ended (status -9)" in err
    assert not (project / ".airlock/sandbox/cli.sock").exists()


def test_a_child_of_airlockd_that_is_killed_takes_nothing_with_it(project: Path) -> None:
    """The one that has the network: without that, the sandbox goes on."""
    with running(project) as sandbox:
        sandbox.sh("kill -KILL $(pgrep -x -P 1 airlock-net)")
        while b"the network is gone: its process ended by signal 9\n" not in sandbox.stderr.readline():
            pass
        assert sandbox.sh("echo alive") == "alive\n"
        assert sandbox.stop() == 143


def test_a_panic_is_reported_with_the_console(airlock: Airlock, project: Path) -> None:
    write_config(project, "harden = false")
    done = airlock("start", "--", "sh", "-c", "echo c > /proc/sysrq-trigger", cwd=project)
    assert done.returncode == 1
    assert b"the sandbox's kernel panicked: sysrq triggered crash" in done.stderr
    assert b"The last lines of its console" in done.stderr
    assert "sysrq triggered crash" in (project / ".airlock/sandbox/console.log").read_text()


def test_groups_that_come_and_go_while_another_cpu_works_panic_nothing(
    airlock: Airlock, project: Path
) -> None:
    """The kernel's code is patched for the first group and for the last; under TCG that goes wrong within a second."""
    (project / "airlock.toml").write_text(
        '[vm]\nimage = "base"\nmemory = "512 MB"\ncpus = 2\nharden = false\n'
    )
    work = "while :; do /bin/true; done & for n in $(seq 200); do mkdir /sys/fs/cgroup/x; rmdir /sys/fs/cgroup/x; done"
    done = airlock("start", "--", "sh", "-ec", f"{work}; echo survived", cwd=project)
    assert (done.returncode, done.stdout) == (0, b"survived\n"), done.stderr


def test_running_out_of_memory_names_the_victim(airlock: Airlock, project: Path) -> None:
    # A process that holds ever more memory, with what every image has.
    hog = "x=$(head -c 64000000 /dev/zero | tr '\\0' x); while :; do x=$x$x; done"
    done = airlock("start", "--", "bash", "-c", hog, cwd=project)
    assert done.returncode == 137
    assert b"the sandbox ran out of memory" in done.stderr
    assert b"(bash)" in done.stderr


def test_a_guest_that_hangs_is_given_up(project: Path) -> None:
    with running(project, env={"AIRLOCK_HANG_SECONDS": "4"}) as sandbox:
        os.kill(sandbox.qemu(), signal.SIGSTOP)
        code, _, err = sandbox.wait()
    assert code == 1
    assert b"has not answered for 4 seconds" in err


@pytest.fixture
def odd_image(base_image: Image, tmp_path: Path) -> Path:
    """A copy of the base image outside the store, to be spoilt."""
    image = tmp_path / "odd"
    subprocess.run(["cp", "--recursive", "--sparse=always", base_image.path, image], check=True)
    return image


def test_a_kernel_that_is_none_is_reported(airlock: Airlock, project: Path, odd_image: Path) -> None:
    (odd_image / "kernel").unlink()
    (odd_image / "kernel").write_bytes(b"no kernel at all" * 1000)
    done = airlock("start", "--image", os.fspath(odd_image), "--", "true", cwd=project)
    assert done.returncode == 1
    assert b"could not start" in done.stderr
    assert b"Traceback" not in done.stderr


@pytest.mark.parametrize("cold", [["--cold"], []], ids=["cold", "warm"])
def test_a_qemu_that_cannot_be_run_is_reported(
    airlock: Airlock, project: Path, base_image: Image, monkeypatch: pytest.MonkeyPatch, cold: list[str]
) -> None:
    qemu = project / f"qemu-system-{base_image.arch}"
    qemu.write_text("no program")
    qemu.chmod(0o755)
    monkeypatch.setenv("PATH", str(project), prepend=os.pathsep)
    done = airlock("start", "--accel", "tcg", *cold, "--", "true", cwd=project)
    assert done.returncode == 1
    assert f"{qemu} cannot be started: Exec format error" in done.stderr.decode()


def test_an_init_that_dies_is_reported(airlock: Airlock, project: Path, odd_image: Path) -> None:
    (odd_image / "initrd").unlink()
    (odd_image / "initrd").write_bytes(b"")
    done = airlock("start", "--image", os.fspath(odd_image), "--", "true", cwd=project)
    assert done.returncode == 1
    assert b"its kernel panicked: VFS: Unable to mount root fs" in done.stderr


def test_a_silent_boot_is_started_again_and_then_given_up(
    airlock: Airlock, project: Path, base_image: Image, odd_image: Path
) -> None:
    """A kernel that never says a word stands in for the rare early hang of TCG."""
    silent = bytearray((odd_image / "kernel").read_bytes())
    # A jump to itself. On arm64 what is loaded begins with a harmless instruction, which is a magic number too.
    entry, code = (4, b"\0\0\0\x14") if base_image.arch == "aarch64" else (elf_pvh_entry(silent), b"\xeb\xfe")
    silent[entry : entry + len(code)] = code
    (odd_image / "kernel").unlink()
    (odd_image / "kernel").write_bytes(silent)
    done = airlock(
        "start", "--image", os.fspath(odd_image), "--", "true",
        cwd=project, env={"AIRLOCK_LIFE_SECONDS": "2"},
    )  # fmt: skip
    assert done.returncode == 1
    assert b"booting again (2 of 3)" in done.stderr
    assert b"booting again (3 of 3)" in done.stderr
    assert b"gave no sign of life" in done.stderr


def elf_pvh_entry(kernel: bytearray) -> int:
    """The file offset of the PVH entry point: ELF note 18 of owner Xen (xen/include/public/elfnote.h)."""
    import struct

    header_at, size, count = struct.unpack_from("<Q", kernel, 32)[0], *struct.unpack_from("<HH", kernel, 54)
    headers = [struct.unpack_from("<IIQQQQQQ", kernel, header_at + size * i) for i in range(count)]
    (address,) = [
        struct.unpack_from("<I", kernel, note + 12 + 4)[0]
        for kind, _, start, _, _, length, _, _ in headers
        if kind == 4
        for note in range(start, start + length, 4)
        if struct.unpack_from("<III4s", kernel, note)[1:] in ((4, 18, b"Xen\0"), (8, 18, b"Xen\0"))
    ]
    for kind, _, offset, _, physical, length, _, _ in headers:
        if kind == 1 and physical <= address < physical + length:
            return int(address - physical + offset)
    raise AssertionError("the kernel has no PVH entry")
