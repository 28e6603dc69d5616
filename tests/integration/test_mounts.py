"""Mounts, masks and caches in real sandboxes, also against a root in the guest who is up to no good."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest
from sandboxes import Running, running, write_config

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from conftest import Airlock

CONFIG = """
harden = false
[mounts.inner]
source = "{shared}/inner"
target = "/srv/outer/inner"
[mounts.outer]
source = "{shared}/outer"
target = "/srv/outer"
[mounts.inner-by-a-symlink]
source = "{shared}/inner"
target = "/lib/outer/inner"
[mounts.outer-of-that]
source = "{shared}/outer"
target = "/usr/lib/outer"
[mounts.fixed]
source = "{shared}/fixed"
target = "~/fixed"
read_only = true
[mounts.below-a-mask]
source = "{shared}/inner"
target = "{project}/hidden/inner"
[mask.secrets]
paths = ["hidden", "secret.env", "not/there"]
[disk.cache.build]
paths = ["~/.cache/build", "out"]
"""


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("shared, with 'commas'")
    for name in ("inner", "outer", "fixed"):
        (directory / name).mkdir()
        (directory / name / "name").write_text(f"{name}\n")
    (directory / "fixed" / "way-out").symlink_to("../outside")
    (directory / "outside").write_text("host only\n")
    return directory


@pytest.fixture(scope="module")
def sandbox(base_image: object, shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """One without hardening: what holds here holds against root."""
    project = tmp_path_factory.mktemp("project")
    (project / "hidden").mkdir()
    (project / "hidden" / "key").write_text("key\n")
    (project / "secret.env").write_text("TOKEN=1\n")
    write_config(project, CONFIG.format(shared=shared, project=project))
    with running(project) as sandbox:
        yield sandbox


def test_mounts_are_where_they_belong_in_any_order(sandbox: Running) -> None:
    assert sandbox.sh("cat /srv/outer/name /srv/outer/inner/name ~/fixed/name").split() == [
        "outer", "inner", "fixed",
    ]  # fmt: skip
    # Debian's /lib is a symlink to usr/lib.
    assert sandbox.sh("cat /usr/lib/outer/name /usr/lib/outer/inner/name").split() == ["outer", "inner"]


def test_host_and_guest_see_each_others_writes(sandbox: Running, shared: Path) -> None:
    (shared / "inner" / "from-host").write_text("1\n")
    assert sandbox.sh("cat /srv/outer/inner/from-host; echo 2 > /srv/outer/inner/from-guest") == "1\n"
    assert (shared / "inner" / "from-guest").read_text() == "2\n"
    (shared / "inner" / "new").write_text("3\n")
    os.replace(shared / "inner" / "new", shared / "inner" / "from-host")
    assert sandbox.sh("cat /srv/outer/inner/from-host") == "3\n"


def test_read_only_holds_against_root_in_the_guest(sandbox: Running, shared: Path) -> None:
    done = sandbox.exec(
        "sh", "-c",
        "touch ~/fixed/x; mount -o remount,rw ~/fixed; mount -o remount,rw,bind ~/fixed;"
        "grep -o '/root/fixed 9p r[ow]' /proc/mounts;"
        "touch ~/fixed/x; echo y > ~/fixed/name; rm ~/fixed/name; chmod 777 ~/fixed",
    )  # fmt: skip
    # For the guest it is writable now.
    assert done.stdout == b"/root/fixed 9p rw\n", done.stderr
    assert done.stderr.count(b"Read-only file system") >= 3
    assert sorted(path.name for path in (shared / "fixed").iterdir()) == ["name", "way-out"]
    assert (shared / "fixed" / "name").read_text() == "fixed\n"


def test_a_symlink_does_not_lead_the_host_outside(sandbox: Running, shared: Path) -> None:
    assert sandbox.exec("cat", "/root/fixed/way-out").returncode == 1
    sandbox.sh("ln -s ../../outside /srv/outer/inner/out; ln -s /etc /srv/outer/inner/etc")
    assert sandbox.exec("cat", "/srv/outer/inner/out").returncode == 1
    sandbox.sh("test /srv/outer/inner/etc/passwd -ef /etc/passwd")
    assert (shared / "outside").read_text() == "host only\n"


def test_masked_paths_are_empty_and_stay_so(sandbox: Running) -> None:
    script = "ls -A hidden not/there .airlock; cat secret.env; for i in hidden not/there; do touch $i/x; done"
    done = sandbox.exec("sh", "-c", script)
    assert done.stdout.decode().split() == [".airlock:", "hidden:", "inner", "not/there:"]
    assert done.stderr.count(b"Read-only file system") == 2
    assert sandbox.sh("cat hidden/inner/name") == "inner\n"
    assert sandbox.exec("sh", "-c", "echo x > secret.env").returncode != 0
    assert (sandbox.project / "secret.env").read_text() == "TOKEN=1\n"


def test_caches_are_on_the_disk(sandbox: Running) -> None:
    assert sandbox.sh("stat -fc %T ~/.cache/build out").split() == ["ext2/ext3"] * 2
    sandbox.sh("touch out/built ~/.cache/build/there; test ! -e out/there")
    assert list((sandbox.project / "out").iterdir()) == []


def test_a_cache_belongs_to_the_user_and_outlives_the_root(airlock: Airlock, project: Path) -> None:
    project.chmod(0o755)
    write_config(project, 'user = "games"\n[disk.cache.mine]\npaths = ["/var/tmp/mine", "~/deep/er"]\n')
    assert airlock("start", "--", "sh", "-ec", "echo kept > /var/tmp/mine/x", cwd=project).returncode == 0
    done = airlock("start", "--", "sh", "-ec", "cat /var/tmp/mine/x; stat -c %U ~/deep/er", cwd=project)
    assert done.stdout == b"kept\ngames\n", done.stderr


def test_a_source_that_vanishes_is_an_error_in_the_guest_only(
    airlock: Airlock, project: Path, tmp_path: Path
) -> None:
    source = tmp_path / "vanishing"
    source.mkdir()
    write_config(project, f'[mounts.v]\nsource = "{source}"\ntarget = "/srv/v"\n')
    with running(project) as sandbox:
        sandbox.sh("touch /srv/v/x")
        (source / "x").unlink()
        source.rmdir()
        assert sandbox.exec("touch", "/srv/v/y").returncode == 1
        assert sandbox.sh("echo alive") == "alive\n"
        assert not source.exists()
        assert sandbox.stop() == 143


def test_what_is_in_the_way_is_told_with_its_place(airlock: Airlock, project: Path) -> None:
    (project / "file").touch()
    write_config(project, '[disk.cache.c]\npaths = ["file"]')
    done = airlock("start", "--", "true", cwd=project)
    assert done.returncode == 1
    at, trouble = f"Error: {project}/airlock.toml", "the sandbox could not be set up"
    said = f"{at}:6:10: {trouble}: cache at {project}/file: Not a directory\n"
    assert done.stderr.decode().endswith(said)
    write_config(project, '[mask.m]\npaths = ["none", "file/none"]')
    done = airlock("start", "--", "true", cwd=project)
    said = f"{at}:6:18: {trouble}: mask at {project}/file/none: Not a directory\n"
    assert (done.returncode, done.stderr.decode().endswith(said)) == (1, True), done.stderr
    write_config(project, '[mounts.m]\nsource = "file"\ntarget = "/etc"')
    done = airlock("start", "--", "true", cwd=project)
    said = f"{at}:7:1: mount m: it cannot be put at /etc: Is a directory\n"
    assert (done.returncode, done.stderr.decode().endswith(said)) == (1, True), done.stderr
    (project / "directory").mkdir()
    (project / "link").symlink_to("/nowhere")
    for name, why in (("directory", "Is a directory"), ("link", "it is a symlink that leads nowhere")):
        write_config(project, f'[mounts.f]\nsource = "file"\ntarget = "{project}/{name}"')
        done = airlock("start", "--", "true", cwd=project)
        assert done.returncode == 1
        said = f"{at}:7:1: {trouble}: file at {project}/{name}: {why}\n"
        assert done.stderr.decode().endswith(said), done.stderr


def test_a_missing_source_stops_the_start_or_not(airlock: Airlock, project: Path) -> None:
    write_config(project, '[mounts.v]\nsource = "none"\ntarget = "/srv/v"\n')
    done = airlock("start", "--", "true", cwd=project)
    assert done.returncode == 2
    assert f"{project}/airlock.toml:6:1: mount v: {project}/none is not there".encode() in done.stderr
    write_config(project, '[mounts.v]\nsource = "none"\ntarget = "/srv/v"\nmissing = "warn"\n')
    done = airlock("start", "--", "test", "!", "-e", "/srv/v", cwd=project)
    assert done.returncode == 0
    assert b"airlock: mount v: none is not there, going on without it\n" in done.stderr


def test_a_directory_of_the_host_at_etc_is_left_as_it_is(
    airlock: Airlock, project: Path, tmp_path: Path
) -> None:
    """What a sandbox is called is written into its own root, and to nobody's shares."""
    etc = tmp_path / "etc"
    etc.mkdir()
    (etc / "hostname").write_text("of-the-host\n")
    # By a user who is not the project's owner, for whom git has exceptions there.
    user = f'user = "{os.geteuid() + 4321}"'
    project.chmod(0o755)
    write_config(project, f'{user}\n[mounts.etc]\nsource = "{etc}"\ntarget = "/etc"\n')
    done = airlock("-q", "start", "--", "cat", "/etc/hostname", cwd=project)
    assert (done.returncode, done.stdout) == (0, b"of-the-host\n")
    assert [path.name for path in etc.iterdir()] == ["hostname"]
    assert (etc / "hostname").read_text() == "of-the-host\n"
    write_config(project, "")
    same = 'test "$(hostname)" = "$(cat /etc/hostname)" && grep -qw "$(hostname)" /etc/hosts'
    assert airlock("-q", "start", "--", "sh", "-c", same, cwd=project).returncode == 0


def test_a_config_that_a_sandbox_wrote_is_named_at_the_end(airlock: Airlock, project: Path) -> None:
    script = (
        "printf '[mounts.all]\nsource = \"/\"\n' >airlock.local.toml;"
        "cp -p airlock.toml x; echo '# more' >>airlock.toml; touch -r x airlock.toml; touch other.toml"
    )
    done = airlock("start", "--", "sh", "-ec", script, cwd=project)
    assert done.returncode == 0
    said = [line for line in done.stderr.decode().splitlines() if "was changed" in line]
    assert said == [
        f"airlock: {name} was changed while the sandbox ran: the next start asks whether to use it"
        for name in ("airlock.local.toml", "airlock.toml")
    ]
    (project / "airlock.local.toml").unlink()
    assert b"was changed" not in airlock("start", "--", "true", cwd=project).stderr
