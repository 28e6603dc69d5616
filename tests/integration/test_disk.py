"""The project's disk: what persists, what an image change resets, growing, shrinking, foreign and broken disks."""

from __future__ import annotations

import os
import random
import re
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pexpect
import pytest
from filesystems import toolbox_of
from sandboxes import COMMAND, write_config

if TYPE_CHECKING:
    from conftest import Airlock

    from airlock_store.store import Store

pytestmark = pytest.mark.usefixtures("base_image")

DISK = Path(".airlock/sandbox/disk.img")


def sh(airlock: Airlock, project: Path, script: str, *options: str) -> str:
    done = airlock("-q", "start", *options, "--", "sh", "-ec", script, cwd=project)
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout.decode()


def test_writes_persist_and_the_disk_is_sparse(airlock: Airlock, project: Path) -> None:
    sh(airlock, project, "echo root > /opt/kept; echo data > /airlock/disk/kept; rm /etc/motd")
    script = (
        "cat /opt/kept /airlock/disk/kept; test ! -e /etc/motd; df --output=size -BG /airlock/disk | tail -1"
    )
    assert sh(airlock, project, script).split() == ["root", "data", "10G"]
    disk = (project / DISK).stat()
    assert disk.st_size == 10 * 1000**3 or disk.st_size == 10 * 1024**3
    assert disk.st_blocks * 512 < 200 << 20


def test_the_root_is_like_one_filesystem(airlock: Airlock, project: Path) -> None:
    """Though it is the image and a disk: programs compare devices and numbers of files, and rename directories."""
    script = """
        echo new >/etc/new; echo >>/etc/bash.bashrc
        stat -c %d / /usr /usr/bin/env /etc/new /etc/bash.bashrc | sort -u | wc -l
        for file in /usr/bin/env /etc/new /etc/bash.bashrc /etc; do
            listed=$(ls -aid ${file%/*}/* | awk -v file=$file '$2 == file { print $1 }')
            test $(stat -c %i $file) = $listed || echo $file
        done
        perl -e 'rename("/usr/share/bash-completion", "/usr/share/renamed") or die "$!\n"'
        ls /usr/share/renamed | wc -l
    """
    one, *others = sh(airlock, project, script).split()
    assert one == "1"
    assert others == sh(airlock, project, "ls /usr/share/renamed | wc -l").split() != ["0"]


def test_an_ephemeral_disk_is_new_and_gone_afterwards(airlock: Airlock, project: Path) -> None:
    leave = "echo mine > /opt/mine; echo mine > /airlock/disk/mine"
    see = "ls -A /opt /airlock/disk"
    # Also without one of the project's own.
    sh(airlock, project, leave, "--ephemeral")
    assert not list(project.glob(f"{DISK}*"))
    sh(airlock, project, leave.replace("mine", "kept"))
    before = (project / DISK).stat()
    # Not even its size is asked for.
    write_config(project, '[disk]\nsize = "512 MB"')
    for _ in range(2):
        assert "kept" not in sh(airlock, project, f"{see}; {leave}", "--ephemeral")
    assert list(project.glob(f"{DISK}*")) == [project / DISK]
    after = (project / DISK).stat()
    assert (before.st_mtime_ns, before.st_ino, before.st_size) == (
        after.st_mtime_ns,
        after.st_ino,
        after.st_size,
    )
    write_config(project, "")
    assert sh(airlock, project, see).split() == ["/airlock/disk:", "kept", "/opt:", "kept"]


def test_of_an_ephemeral_disk_a_killed_start_leaves_nothing(project: Path) -> None:
    process = subprocess.Popen(
        [COMMAND, "start", "-q", "--ephemeral", "--", "sh", "-c", "echo up; sleep 1000"],
        cwd=project, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stdout.readline() == b"up\n"
    process.kill()
    process.communicate()
    assert not list(project.glob(f"{DISK}*"))


def test_another_image_resets_the_root_and_keeps_the_data(airlock: Airlock, project: Path) -> None:
    sh(airlock, project, "echo root > /opt/kept; echo data > /airlock/disk/kept")
    (project / "other.toml").write_text(
        '[recipe]\nname = "other"\nsummary = "base and a file"\nextends = "base"\n'
        '[rootfs.files]\n"/etc/other" = "other\\n"\n'
    )
    script = "cat /etc/other /airlock/disk/kept; test ! -e /opt/kept"
    assert sh(airlock, project, script, "--image", "./other.toml").split() == ["other", "data"]
    # And back: what was written under the first image is gone, not resurrected.
    assert sh(airlock, project, "cat /airlock/disk/kept; test ! -e /opt/kept").split() == ["data"]


def test_a_larger_size_grows_the_disk_and_keeps_its_data(
    airlock: Airlock, store: Store, project: Path
) -> None:
    write_config(project, '[disk]\nsize = "512 MB"')
    script = "df --output=size -BM /airlock/disk | tail -1"
    sh(airlock, project, f"echo data > /airlock/disk/kept; {script}")
    write_config(project, '[disk]\nsize = "4 GB"')
    size, kept = sh(airlock, project, f"{script}; cat /airlock/disk/kept").split()
    assert int(size.rstrip("M")) > 3500
    assert kept == "data"
    toolbox_of(store).run("usr/sbin/e2fsck", "-f", "-n", project / DISK, log=lambda _: None)


def test_of_a_new_disk_nothing_is_left_to_initialise(airlock: Airlock, store: Store, project: Path) -> None:
    sh(airlock, project, "true")
    lines: list[str] = []
    toolbox_of(store).run("usr/sbin/dumpe2fs", project / DISK, log=lines.append)
    groups = [line for line in lines if re.match(r"Group \d+:", line)]
    assert len(groups) == 80
    assert all("ITABLE_ZEROED" in group for group in groups)


def test_a_disk_on_which_errors_were_recorded_is_checked(
    airlock: Airlock, store: Store, project: Path
) -> None:
    toolbox = toolbox_of(store)

    def state() -> str:
        lines: list[str] = []
        toolbox.run("usr/sbin/dumpe2fs", "-h", project / DISK, log=lines.append)
        return next(line for line in lines if line.startswith("Filesystem state:")).split(":")[1].strip()

    sh(airlock, project, "echo data > /airlock/disk/kept")
    toolbox.run("usr/sbin/debugfs", "-w", "-R", "set_super_value state 3", project / DISK, log=lambda _: None)
    assert state() == "clean with errors"
    assert sh(airlock, project, "cat /airlock/disk/kept") == "data\n"
    assert state() == "clean"


def test_a_smaller_size_asks_before_data_is_lost(airlock: Airlock, project: Path) -> None:
    write_config(project, '[disk]\nsize = "1 GB"')
    sh(airlock, project, "echo data > /airlock/disk/kept")
    write_config(project, '[disk]\nsize = "512 MB"')
    done = airlock("start", "--", "true", cwd=project)
    assert done.returncode == 2
    assert b"all data on it will be lost" in done.stderr
    for answer, script, expected in (
        ("n", "true", "the disk is as it was"),
        ("y", "test ! -e /airlock/disk/kept && echo fresh", "fresh"),
    ):
        child = pexpect.spawn(
            os.fspath(COMMAND),
            ["start", "--", "sh", "-c", script],
            cwd=project,
            timeout=120,
            encoding="utf-8",
        )
        child.expect(r"will be lost. Go on\? \[y/N\]")
        child.sendline(answer)
        child.expect(expected)
        child.expect(pexpect.EOF)
        child.close()


@pytest.mark.parametrize(
    ("damage", "complaint"),
    [
        (lambda disk: os.truncate(disk, 300 << 20), b"is cut short"),
        (
            lambda disk: disk.write_bytes(b"precious" * (512 << 20 >> 3)),
            b"holds something that airlock did not write",
        ),
        (lambda disk: disk.write_bytes(b""), b"cut short"),
    ],
    ids=["truncated", "foreign", "empty"],
)
def test_a_disk_that_is_not_ours_is_refused_and_left_alone(
    airlock: Airlock, project: Path, damage: object, complaint: bytes
) -> None:
    write_config(project, '[disk]\nsize = "512 MB"')
    sh(airlock, project, "true")
    assert callable(damage)
    damage(project / DISK)
    before = (project / DISK).read_bytes()[: 1 << 20]
    done = airlock("start", "--", "true", cwd=project)
    assert done.returncode == 1
    assert complaint in done.stderr
    assert b"airlock rm" in done.stderr
    assert (project / DISK).read_bytes()[: 1 << 20] == before


def test_remove_and_start_afresh(airlock: Airlock, project: Path) -> None:
    sh(airlock, project, "echo data > /airlock/disk/kept")
    done = airlock("remove", "--force", cwd=project)
    assert (done.returncode, b"Sandbox removed" in done.stdout + done.stderr) == (0, True)
    assert airlock("show", cwd=project).returncode == 1
    assert sh(airlock, project, "ls /airlock/disk") == ""


def test_a_bound_directory_is_of_the_disk_and_stays(airlock: Airlock, project: Path) -> None:
    write_config(
        project,
        '[disk.bind.data]\npath = "/srv/data"\n[disk.bind.mail]\npath = "/var/mail"',
    )
    script = """
        stat -c %a:%G /var/mail /airlock/disk/mail
        stat -f -c %T /srv/data
        echo kept > /srv/data/file
        cat /airlock/disk/data/file
        rm -r /airlock/disk/mail
        ln -s /etc /airlock/disk/mail
    """
    kind = "2775:mail"
    assert sh(airlock, project, script).split() == [kind, kind, "ext2/ext3", "kept"]
    # Under another image it is there again. What the sandbox made a link of is not followed.
    (project / "other.toml").write_text(
        '[recipe]\nname = "other"\nextends = "base"\n[disk.bind.data]\npath = "/x"\n'
    )
    done = airlock("start", "--image", "./other.toml", "--", "true", cwd=project)
    assert done.returncode == 1
    assert b"/airlock/disk/mail is not a directory" in done.stderr
    write_config(project, "")
    assert sh(airlock, project, "cat /x/file", "--image", "./other.toml").split() == ["kept"]


PLACES = (
    "userdata",
    "cache",
    "files",
    "trash",
    "overlay",
    "overlay/upper",
    "overlay/work",
    "overlay/root-key",
)


@pytest.mark.parametrize("place", PLACES)
def test_no_link_on_the_disk_leads_airlockd_elsewhere(
    airlock: Airlock, store: Store, project: Path, place: str
) -> None:
    """Root without harden can write to the disk as it likes, past the directory that it is given."""
    (project / "file").write_text("of the host")
    write_config(
        project,
        """
        [disk.cache.things]
        paths = ["/things"]
        [mounts.file]
        source = "./file"
        target = "/mnt/file"
        read_only = true
        """,
    )
    sh(airlock, project, "echo data > /airlock/disk/kept")
    commands = project / "commands"
    # debugfs overwrites nothing.
    commands.write_text(f"ln {place} /elsewhere\nunlink {place}\nsymlink {place} /\n")
    toolbox_of(store).run("usr/sbin/debugfs", "-w", "-f", commands, project / DISK, log=print)
    done = airlock("start", "--", "ls", "/airlock/disk", "/things", "/", cwd=project)
    if place in ("overlay", "overlay/root-key"):
        # There is no key that could be trusted, and so nothing but a new root.
        assert (done.returncode, b"kept" in done.stdout) == (0, True), done.stderr
        return
    assert done.returncode == 1, done.stdout
    complaint = f"disk.img holds something that airlock did not write: {place}"
    assert complaint.encode() in done.stderr
    assert b" is no directory\n" in done.stderr
    assert b"airlock rm" in done.stderr


def fill(airlock: Airlock, store: Store, project: Path, more: int) -> None:
    """Leave no room on a small disk, nor overlayfs's own directory, and use so many bytes that the kernel keeps."""
    write_config(project, '[disk]\nsize = "64 MB"')
    sh(airlock, project, "for n in 1 2 3; do dd if=/dev/zero of=/fill$n bs=1k || sync; done 2>/dev/null")
    (project / "filler").write_bytes(b"x" * more)
    script = project / "commands"
    script.write_text(f"rmdir overlay/work/work\nwrite {project}/filler userdata/filler\n")
    toolbox_of(store).run("usr/sbin/debugfs", "-w", "-f", script, project / DISK, log=print)


def test_on_a_full_disk_one_can_delete(airlock: Airlock, store: Store, project: Path) -> None:
    """overlayfs makes a directory of its own when it is mounted; without one it is read-only."""
    fill(airlock, store, project, 16 << 10)
    sh(airlock, project, "rm /fill1; echo x > /root/x")
    sh(airlock, project, "rm /root/x")


def test_a_start_that_a_full_disk_prevents_says_what_helps(
    airlock: Airlock, store: Store, project: Path
) -> None:
    fill(airlock, store, project, 1 << 20)
    done = airlock("start", "--", "true", cwd=project)
    assert done.returncode == 1
    assert b"No space left on device" in done.stderr
    assert b"a larger [disk] size makes room" in done.stderr
    write_config(project, '[disk]\nsize = "128 MB"')
    sh(airlock, project, "rm /fill1")
    # There is a reserve again, which counts as used.
    lines: list[str] = []
    toolbox_of(store).run("usr/sbin/debugfs", "-R", "stat reserve", project / DISK, log=lines.append)
    assert "Size: 131072" in "\n".join(lines)


@pytest.mark.parametrize(
    ("place", "size"), [(4096 + 0x1E, 2), (4096, 4096)], ids=["a checksum", "descriptors of groups"]
)
def test_a_disk_that_cannot_be_mounted_is_repaired_or_refused(
    airlock: Airlock, project: Path, place: int, size: int
) -> None:
    sh(airlock, project, "echo data > /airlock/disk/kept; echo root > /opt/kept")
    with (project / DISK).open("r+b") as disk:
        disk.seek(place)
        disk.write(random.Random(1).randbytes(size))
    done = airlock("start", "--", "cat", "/airlock/disk/kept", "/opt/kept", cwd=project)
    if size == 2:
        assert done.stdout == b"data\nroot\n", done.stderr
        return
    # Only guesses would help, and those are the user's to make.
    assert done.returncode == 1
    assert b"e2fsck failed on /dev/vd" in done.stderr
    assert b"airlock rm" in done.stderr
