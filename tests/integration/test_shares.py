"""What host and guest see of each other's writes, and where a hostile guest cannot get, by every kind of share."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from sandboxes import COMMAND, Running, running, write_config

from airlock_runner.machine.virtiofs import Daemon, find_daemon
from airlock_store.errors import MachineError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from conftest import Airlock


def daemon() -> Daemon | None:
    """The virtiofsd that this user can use here."""
    try:
        return find_daemon()
    except MachineError:
        return None


KINDS = ["9p", "virtiofs"] if daemon() else ["9p"]
CONFIG = """
share = "{kind}"
harden = false
[mounts.data]
source = "{shared}/data"
target = "/srv/data"
[mounts.fixed]
source = "{shared}/fixed"
target = "/srv/data/fixed"
read_only = true
[mounts.one]
source = "{shared}/one"
target = "/srv/data/one"
[mask.secrets]
paths = ["hidden"]
"""
MAP = """
    ($map, $read) = `uname -m` =~ /x86/ ? (9, 0) : (222, 63);
    sub map_file {
        open(F, "+<", $_[0]) or die; my $p = syscall($map, 0, 4096, 3, 1, fileno(F), 0); die $! if $p < 0; $p
    }
"""
"""Perl, which every Debian has, maps a file to be shared: mmap(2) and read(2) by number."""
RACE = r"""
    chdir "/srv/data" or die; mkdir "d"; $| = 1;
    for (["d/secret", "inner"], ["f", "inner"]) { open(F, ">", $_->[0]); print F $_->[1]; close F }
    unless ($child = fork) {
        for (1 .. 300) {
            rename "d", "e"; symlink "../outside", "d"; unlink "d"; rename "e", "d";
            rename "f", "g"; symlink "../outside/secret", "f"; unlink "f"; rename "g", "f";
        }
        exit 0;
    }
    until (waitpid($child, 1)) {
        for $path (qw(d/secret f)) {
            if (open(F, "<", $path)) { $text = <F>; $seen{$text}++ if defined $text; close F }
        }
        for $path (qw(d/pwned f)) { if (open(F, ">", $path)) { print F "inner"; close F } }
    }
    print join(" ", sort keys %seen), "\n";
"""


@pytest.fixture(scope="module", params=KINDS)
def shared(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory per kind, whose name says which."""
    directory = tmp_path_factory.mktemp(f"{request.param}, shared")
    for name in ("data", "fixed", "outside"):
        (directory / name).mkdir()
    (directory / "fixed" / "name").write_text("fixed\n")
    (directory / "outside" / "secret").write_text("host only\n")
    (directory / "one").write_text("one\n")
    return directory


@pytest.fixture(scope="module")
def sandbox(base_image: object, shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """One without hardening: what holds here holds against root."""
    project = tmp_path_factory.mktemp("project, with commas")
    write_config(project, CONFIG.format(kind=shared.name.partition(",")[0], shared=shared))
    with running(project) as sandbox:
        yield sandbox


def holding(sandbox: Running, script: str) -> subprocess.Popen[bytes]:
    """A command in the sandbox that has said a line and goes on."""
    held = subprocess.Popen(
        [COMMAND, "exec", "sh", "-c", script],
        cwd=sandbox.project,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert held.stdout is not None
    assert held.stdout.readline() == b"held\n"
    return held


def test_what_is_mounted_is_of_the_kind_that_was_asked_for(sandbox: Running, shared: Path) -> None:
    kind = shared.name.partition(",")[0]
    # What is read-only is QEMU's to enforce in any case.
    mounted = sandbox.sh("awk '$3 ~ /9p|virtiofs/ { print $1, $3 }' /proc/mounts").splitlines()
    assert sorted(mounted) == [f"mount0 {kind}", "mount1 9p", f"project {kind}"]
    assert sandbox.sh("cat /srv/data/one; ls -A hidden .airlock").split() == ["one", ".airlock:", "hidden:"]


def test_the_guest_sees_what_the_host_has_written(sandbox: Running) -> None:
    """Also to a file that the guest has read already, and that it has open."""
    file = sandbox.project / "file"
    file.write_text("one\n")
    assert sandbox.sh("cat file") == "one\n"
    held = holding(sandbox, "exec 3<file; read x <&3; echo held; read y; cat <&3; cat file")
    for text in ("two\n", "three, which is longer\n", "\n"):
        file.write_text(text)
        assert sandbox.sh("cat file; stat -c %s file") == f"{text}{len(text)}\n"
    file.write_text("one\nmore\n")
    out, _err = held.communicate(b"\n", timeout=300)
    assert out == b"more\none\nmore\n"
    (sandbox.project / "new").write_text("replaced\n")
    (sandbox.project / "new").replace(file)
    assert sandbox.sh("cat file") == "replaced\n"
    file.unlink()
    assert sandbox.exec("cat", "file").returncode == 1


def test_the_host_sees_what_the_guest_has_written(sandbox: Running) -> None:
    """Also to a file that the guest still has open."""
    held = holding(sandbox, "exec 3>log; echo line >&3; echo held; read y; echo another >&3")
    assert (sandbox.project / "log").read_text() == "line\n"
    held.communicate(b"\n", timeout=300)
    assert (sandbox.project / "log").read_text() == "line\nanother\n"
    sandbox.sh("echo replaced >new; mv new log")
    assert (sandbox.project / "log").read_text() == "replaced\n"


def test_files_can_be_mapped(sandbox: Running) -> None:
    file = sandbox.project / "mapped"
    file.write_text("first\n")
    show = f"""perl -e '{MAP} print unpack("P6", pack("Q", map_file("mapped")))'"""
    assert sandbox.sh(show) == "first\n"
    file.write_text("other\n")
    assert sandbox.sh(show) == "other\n"
    # Within the guest, too, a mapping and other ways of access are of one file.
    both = (
        f'{MAP} $at = map_file("mapped"); syscall($read, 0, $at, 5); open(G, "+<", "mapped"); print scalar <G>;'
        'seek(G, 0, 0); syswrite(G, "GUEST"); print unpack("P6", pack("Q", $at)); syscall($read, 0, $at, 5);'
    )
    done = sandbox.exec("perl", "-e", both, input=b"firstguest")
    assert done.stdout == b"first\nGUEST\n", done
    assert file.read_text() == "guest\n"


def test_read_only_holds_against_root_in_the_guest(sandbox: Running, shared: Path) -> None:
    sandbox.exec(
        "sh",
        "-c",
        "mount -o remount,rw /srv/data/fixed; cd /srv/data/fixed; echo x >name; echo x >y; rm name",
    )
    assert [(path.name, path.read_text()) for path in (shared / "fixed").iterdir()] == [("name", "fixed\n")]


def test_no_race_leads_the_host_out_of_a_share(sandbox: Running, shared: Path) -> None:
    """Root in the guest puts symlinks in the place of what it uses at the same time."""
    done = sandbox.exec("perl", "-e", RACE)
    assert done.stdout == b"inner\n", done
    assert [(path.name, path.read_text()) for path in (shared / "outside").iterdir()] == [
        ("secret", "host only\n")
    ]


def test_a_source_that_vanishes_is_an_error_in_the_guest_only(sandbox: Running, shared: Path) -> None:
    """The last of this module: nothing is there after it."""
    (shared / "data").rename(shared / "moved")
    (shared / "data").mkdir()
    sandbox.exec("touch", "/srv/data/after")
    assert list((shared / "data").iterdir()) == []
    assert sandbox.sh("echo alive") == "alive\n"


def descendants(pid: int) -> set[int]:
    """All processes below one."""
    try:
        children = [int(each) for each in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return set()
    return set(children).union(*(descendants(child) for child in children))


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_outlives_a_session_that_is_killed(base_image: object, project: Path, kind: str) -> None:
    write_config(project, f'share = "{kind}"')
    with running(project) as sandbox:
        processes = descendants(sandbox.process.pid)
        assert len(processes) >= (1 if kind == "9p" else 2)
        os.kill(sandbox.process.pid, signal.SIGKILL)
        sandbox.wait()
        deadline = time.monotonic() + 60
        while any(Path(f"/proc/{pid}").exists() for pid in processes):
            assert time.monotonic() < deadline
            time.sleep(0.05)


def test_auto_takes_virtiofs_where_nothing_is_restored(airlock: Airlock, project: Path) -> None:
    script = "awk '$1 == \"project\" { print $3 }' /proc/mounts"
    assert airlock("start", "--", "sh", "-c", script, cwd=project).stdout == b"9p\n"
    cold = airlock("start", "--cold", "--", "sh", "-c", script, cwd=project)
    assert cold.stdout.decode().strip() == (KINDS[-1] if os.geteuid() == 0 else "9p")


def test_a_virtiofsd_that_is_of_no_use_is_named(airlock: Airlock, project: Path, tmp_path: Path) -> None:
    write_config(project, 'share = "virtiofs"')
    program = tmp_path / "virtiofsd"
    program.write_text(
        '#!/bin/sh\n[ "$1" = --help ] && echo --allow-mmap && exit\necho it is broken >&2; exit 3\n'
    )
    program.chmod(0o755)
    done = airlock("start", "--", "true", cwd=project, env={"PATH": f"{tmp_path}:{os.environ['PATH']}"})
    assert done.returncode == 1
    assert b"it is broken" in done.stderr
