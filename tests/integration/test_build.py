"""The real builder with real packages: same inputs, same bytes, whoever builds and whoever is killed.

What comes from the network and what all images share is taken from the user's store, where it is built once.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from filesystems import debugfs, toolbox_of
from ordinary import ordinary_user

from airlock_builder import tools
from airlock_builder.build import build, plan
from airlock_builder.realise import Realiser, Silent
from airlock_builder.recipe import RootfsFile
from airlock_builder.rootfs import mmdebstrap
from airlock_store.errors import AirlockError, BuildError
from airlock_store.image import load_image
from airlock_store.store import Store

if TYPE_CHECKING:
    from collections.abc import Callable

    from airlock_builder.step import Step
    from airlock_store.image import Image
    from airlock_store.store import StorePath

TINY = """
[recipe]
name = "tiny"
summary = "As little as Debian can be"

[rootfs]
packages = ["libcap2-bin"]
run = [
    "rm -rf /tmp/* /run/*",
    "setcap cap_net_raw+ep /usr/bin/env",
    "cd /srv; mkdir a; echo text > a/b; chown 7:8 a/b; chmod 4750 a/b",
    "cat /proc/net/dev > /etc/net-dev; ls /sys > /etc/sys; ! touch /proc/sys/kernel/hostname",
    "ls /proc/self/fd > /etc/handles; set -- /proc/[0-9]*; echo $# > /etc/processes",
    "touch /dev/shm/airlock-was-here; [ $(readlink /proc/self/ns/ipc) != ipc:[4026531839] ]",
]

[rootfs.files]
"/etc/motd" = "hello\\n"
"/var/log/kept.log" = "kept\\n"
"/usr/local/bin/greet" = { source = "greet", mode = "0755" }
# What ran before the lines as root, without limits; files are there before that.
"/usr/bin/setpriv" = { source = "greedy", mode = "0755" }
"/usr/bin/env" = { source = "greedy", mode = "0755" }
"""

GREEDY = """#!/bin/sh
grep -E 'Cap(Prm|Bnd|Inh)' /proc/self/status > /etc/capabilities
while [ "$1" != /bin/sh ]; do shift; done
export PATH=/usr/sbin:/usr/bin
exec "$@"
"""

BUILD = """
import json, os, signal, sys
from airlock_builder.build import build, plan
from airlock_store.store import Store
from airlock_builder.realise import Silent

class Reporter(Silent):
    def step_started(self, step):
        self.heard(step, "started")

    def step_progress(self, step, fraction, text):
        self.heard(step, text)

    def step_log(self, step, line):
        print(step.kind, line, file=sys.stderr, flush=True)
        self.heard(step, line)

    def heard(self, step, text):
        if len(sys.argv) > 2 and f"{step.kind} {text}".startswith(sys.argv[2]):
            os.kill(os.getpid(), signal.SIGKILL)

result = build(plan(sys.argv[1]), Store.open(), Reporter())
print(json.dumps([(step.kind, step.cached, str(step.path)) for step in result.steps]))
"""

KILLED_AT = ("initrd packing", "rootfs I: installing essential packages", "disk writing", "image started")
"""Where builders of `tiny` are killed, one after another, in the order in which steps are carried out."""


@pytest.fixture(scope="session")
def shared(store: Store, base_image: Image, tmp_path_factory: pytest.TempPathFactory) -> dict[str, StorePath]:
    """What every image of this machine is made of, and the packages of `tiny`: fetched once, by key."""
    directory = tmp_path_factory.mktemp("shared")
    steps = (*plan(str(write_tiny(directory))).steps, *plan("base").steps)
    realiser = Realiser(store, Silent())
    return {step.key: realiser.realise(step) for step in steps if step.kind in {"fetch", "toolbox", "kernel"}}


def write_tiny(directory: Path, text: str = TINY) -> Path:
    directory.mkdir(exist_ok=True)
    (directory / "greet").write_text("#!/bin/sh\necho hello\n")
    (directory / "greedy").write_text(GREEDY)
    recipe = directory / "tiny.toml"
    recipe.write_text(text)
    return recipe


def seed(root: Path, shared: dict[str, StorePath]) -> Store:
    """A store of its own that has what is shared."""
    root.mkdir()
    for path in shared.values():
        shutil.copytree(path.path, root / path.path.name, symlinks=True)
    return Store(root)


def step_of(recipe: Path, kind: str) -> Step:
    return next(step for step in plan(str(recipe)).steps if step.kind == kind)


def output_of(store: Store, recipe: Path, kind: str) -> StorePath:
    step = step_of(recipe, kind)
    found = store.find(step.key, step.name)
    assert found, f"{step.name} was not built"
    return found


# The image `base`


def test_every_step_of_base_verifies(store: Store, base_image: Image) -> None:
    for step in plan("base").steps:
        path = store.find(step.key, step.name)
        assert path is None or store.verify(path) == (), step.name
    assert base_image.name == "base"
    assert base_image.vm.command == ("/bin/bash", "-l")


def test_a_second_build_looks_at_the_image_and_no_further(base_image: Image) -> None:
    script = (
        BUILD
        + 'assert not {"sh", "http.server", "tarfile", "airlock_builder.rootfs.fetch"} & set(sys.modules)'
    )
    result = subprocess.run(
        [sys.executable, "-c", script, "base"],
        check=True,
        capture_output=True,
        env={**os.environ, "PYTHONPATH": ":".join(sys.path)},
    )
    assert json.loads(result.stdout) == [["image", True, str(base_image.path)]]
    assert result.stderr == b""


def test_the_filesystem_of_base_is_sound(store: Store, base_image: Image, tmp_path: Path) -> None:
    toolbox = toolbox_of(store)
    toolbox.run("usr/sbin/e2fsck", "-f", "-n", base_image.rootfs, log=lambda _: None)
    read = debugfs(toolbox, base_image.rootfs)
    assert read("cat /etc/hostname") == "airlock\n"
    assert read("cat /etc/resolv.conf") == "nameserver 10.0.0.1\n"
    assert read("cat /etc/machine-id") == ""
    assert "127.0.0.1" not in read("cat /etc/apt/sources.list")
    for name in ("/airlock/disk", "/proc", "/sys", "/dev", "/run", "/tmp"):
        assert "Type: directory" in read(f"stat {name}"), name
    for name in ("/var/lib/apt/lists", "/var/cache/apt", "/var/log/apt"):
        assert not [
            entry
            for entry in entries(read(f"ls -p {name}"))
            if entry.endswith((".deb", ".bin", ".log", "Packages"))
        ]


def test_the_initrd_runs_airlockd_with_nothing_of_the_host(base_image: Image, tmp_path: Path) -> None:
    with base_image.initrd.open("rb") as archive:
        subprocess.run(["cpio", "-idm", "--quiet"], stdin=archive, cwd=tmp_path, check=True)
    libraries = tmp_path / f"usr/lib/{base_image.arch}-linux-gnu"
    loader = next(tmp_path.glob("lib*/ld-linux-*"))
    code = (
        "import sys; sys.path = [p for p in sys.path if p.startswith(sys.argv[1])]\n"
        "import airlockd.supervisor, os\n"
        "maps = open('/proc/self/maps').read()\n"
        "print(all(sys.argv[1] in l for l in maps.splitlines() if '.so' in l), callable(airlockd.supervisor.main))"
    )
    result = subprocess.run(
        [loader, "--library-path", libraries, tmp_path / "usr/bin/python3", "-sSB", "-c", code, tmp_path],
        env={"PYTHONHOME": str(tmp_path / "usr")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (result.stdout, result.stderr) == ("True True\n", "")
    for program in ("mke2fs", "e2fsck", "resize2fs"):
        version = subprocess.run(
            [loader, "--library-path", libraries, tmp_path / "usr/sbin" / program, "-V"],
            env={},
            capture_output=True,
            text=True,
            check=False,
        )
        assert "1.47" in version.stderr, program
    assert (tmp_path / "init").stat().st_mode & 0o777 == 0o755
    assert not list(tmp_path.rglob("*.py"))
    order = (tmp_path / "lib/modules/order").read_text().split()
    assert sorted(f"{name}.ko" for name in order) == sorted(
        p.name for p in (tmp_path / "lib/modules").glob("*.ko")
    )
    assert order.index("jbd2") < order.index("ext4")
    assert order.index("9pnet") < order.index("9p")


def test_every_feature_exists_in_the_kernel(shared: dict[str, StorePath], tmp_path: Path) -> None:
    recipe = write_tiny(tmp_path, TINY + '[kernel]\nfeatures = ["docker"]\n')
    store = seed(tmp_path / "store", shared)
    kernel = Realiser(store, Silent()).realise(step_of(recipe, "kernel"))
    order = (kernel / "modules/order").read_text().split()
    assert {"overlay", "br_netfilter", "nft_chain_nat", "xt_MASQUERADE", "veth"} <= set(order)


# A small image, built in several ways


@pytest.fixture(scope="session")
def tiny(shared: dict[str, StorePath], tmp_path_factory: pytest.TempPathFactory) -> tuple[Store, Path]:
    """`tiny` in a store of its own, built by a builder that took over from several that were killed."""
    directory = tmp_path_factory.mktemp("tiny")
    recipe = write_tiny(directory / "recipe")
    store = seed(directory / "store", shared)
    environ = {
        **os.environ,
        "PYTHONPATH": ":".join(sys.path),
        "AIRLOCK_STORE": str(store.root),
        "TMPDIR": str(directory),
    }
    argv = [sys.executable, "-c", BUILD, str(recipe)]
    finished: set[str] = set()
    for point in KILLED_AT:
        killed = subprocess.run([*argv, point], capture_output=True, text=True, env=environ, check=False)
        assert killed.returncode == -signal.SIGKILL, killed.stderr
        assert finished <= {path.key for path in store.paths()}
        finished = {path.key for path in store.paths()}
        assert step_of(recipe, point.partition(" ")[0]).key not in finished

    again = subprocess.run(argv, capture_output=True, text=True, env=environ, check=False)
    assert again.returncode == 0, again.stderr
    results = json.loads(again.stdout)
    assert [kind for kind, cached, _ in results if not cached] == ["image"]
    assert not list((store.root / ".tmp").iterdir())
    assert sorted(path.name for path in directory.iterdir()) == ["recipe", "store"]
    assert all(store.verify(path) == () for path in store.paths())
    return store, recipe


def test_what_a_recipe_says_is_in_the_image(tiny: tuple[Store, Path]) -> None:
    store, recipe = tiny
    image = output_of(store, recipe, "image") / "rootfs.ext4"
    toolbox = toolbox_of(store)
    toolbox.run("usr/sbin/e2fsck", "-f", "-n", image, log=lambda _: None)
    read = debugfs(toolbox, image)
    assert read("cat /etc/motd") == "hello\n"
    assert read("cat /var/log/kept.log") == "kept\n"
    assert read("ls -p /var/log").count(".log/") == 1
    assert "Mode:  0755" in read("stat /usr/local/bin/greet")
    stat = read("stat /srv/a/b")
    assert "Mode:  04750" in stat
    assert "User:     7   Group:     8" in stat
    assert "security.capability" in read("ea_list /usr/bin/env")
    assert read("cat /etc/sys") == ""
    # Of the network a line sees the loopback device that is down, and nothing of the host's.
    assert [line.partition(":")[0].strip() for line in read("cat /etc/net-dev").splitlines()[2:]] == ["lo"]


def test_nothing_leads_out_of_the_new_root(tiny: tuple[Store, Path]) -> None:
    store, recipe = tiny
    read = debugfs(toolbox_of(store), output_of(store, recipe, "image") / "rootfs.ext4")
    # Its own three, and that of the listing; two shells, the lines' and the line's.
    assert read("cat /etc/handles").split() == ["0", "1", "2", "3"]
    assert read("cat /etc/processes") == "2\n"
    assert not Path("/dev/shm/airlock-was-here").exists()
    # chown, dac_override, fowner, fsetid, kill, setgid, setuid, setpcap, setfcap: not chroot, mknod or mount.
    allowed = "00000000800001fb"
    assert dict(line.split() for line in read("cat /etc/capabilities").splitlines()) == {
        "CapInh:": "0" * 16,
        "CapPrm:": allowed,
        "CapBnd:": allowed,
    }


@pytest.fixture
def hook(tiny: tuple[Store, Path], tmp_path: Path) -> Callable[..., str]:
    """Runs a recipe's lines, and what goes before and after them, in a tree of `tiny` as mmdebstrap does: the output.

    Where sysfs would be is /dev/shm of the host, and for its console stands /dev/zero.
    """
    store, recipe = tiny
    root = tmp_path / "root"
    root.mkdir()
    tar = output_of(store, recipe, "rootfs") / "rootfs.tar"
    script = """\
mount -t tmpfs -o mode=0755 none "$1"
tar -xf "$2" -C "$1" --exclude "./dev/*"
mkdir "$1/dev/shm"
touch "$1/dev/null" "$1/dev/console"
mount --bind /dev/null "$1/dev/null"
mount --bind /dev/zero "$1/dev/console"
mount --bind /dev/shm "$1/sys"
cp "$3" "$1/.airlock-files"
exec "$4" "$1"
"""
    as_root = () if os.geteuid() == 0 else ("--user", "--map-root-user", "--map-auto")

    def run(lines: list[str], files: list[RootfsFile]) -> str:
        archive, program = tmp_path / "files.tar", tmp_path / "hook"
        mmdebstrap._write_files(archive, {}, files, 1)
        program.write_text(mmdebstrap.hook_script(lines))
        program.chmod(0o755)
        result = subprocess.run(
            ["unshare", *as_root, "--mount", "sh", "-euc", script, "sh", root, tar, archive, program],
            env={"PATH": tools.SEARCH_PATH, "SOURCE_DATE_EPOCH": "1"},
            stdout=subprocess.PIPE,
            text=True,
            check=True,
        )
        return "".join(line for line in result.stdout.splitlines(True) if mmdebstrap._MARK not in line)

    return run


def test_files_do_not_follow_links_out_of_the_new_root(hook: Callable[..., str]) -> None:
    """/var/run is a link to /run; and what mmdebstrap mounts is the host's."""
    names = ("/var/run/airlock-was-here", "/sys/airlock-was-here", "/srv/file")
    files = [RootfsFile(name, b"text\n", 0o640) for name in names]
    assert hook(
        ["stat -c '%n %U %a' /run/* /sys/* /srv/file; [ ! -e /.airlock-files ]"], files
    ).splitlines() == [
        "/run/airlock-was-here root 640",
        "/sys/airlock-was-here root 640",
        "/srv/file root 640",
    ]
    assert not Path("/run/airlock-was-here").exists()
    assert not Path("/dev/shm/airlock-was-here").exists()


def test_lines_may_be_many_and_long(hook: Callable[..., str]) -> None:
    """Together longer than an argument can be, and each as long as one."""
    lines = [f"echo {number}; # {'x' * 131000}" for number in range(3)]
    assert hook([*lines, "ls -A /run /tmp; cat"], []).split() == ["0", "1", "2", "/run:", "/tmp:"]


def test_lines_get_neither_the_console_nor_the_name_of_the_host(hook: Callable[..., str]) -> None:
    assert hook(["stat -c %t:%T /dev/console; uname -n"], []).split() == ["1:3", "airlock"]


def test_changing_the_machine_rebuilds_the_last_step_only(tiny: tuple[Store, Path], tmp_path: Path) -> None:
    store, _ = tiny
    changed = write_tiny(tmp_path / "changed", TINY + '[vm]\nmemory = "1 GB"\n[env]\nA = "1"\n')
    result = build(plan(str(changed)), store)
    assert [(step.kind) for step in result.steps if not step.cached] == ["image"]


def test_an_ordinary_user_builds_the_same_bytes(
    tiny: tuple[Store, Path], shared: dict[str, StorePath], tmp_path: Path
) -> None:
    """In mmdebstrap's unshare mode, from a home that nobody else may enter."""
    store, recipe = tiny
    with ordinary_user(tmp_path) as (home, run):
        other = seed(home / "store", shared)
        write_tiny(home / "recipe")
        result = run(BUILD, "recipe/tiny.toml", AIRLOCK_STORE=str(other.root))
        assert result.returncode == 0, result.stderr
        built = {kind: Path(path) for kind, cached, path in json.loads(result.stdout) if not cached}
        assert {"initrd", "rootfs", "disk", "image"} <= set(built)
        assert members(built["rootfs"] / "rootfs.tar") == members(
            output_of(store, recipe, "rootfs") / "rootfs.tar"
        )
        for kind in ("rootfs", "disk", "initrd", "image"):
            mine = output_of(store, recipe, kind)
            assert built[kind].name == mine.path.name
            assert (built[kind] / "store.json").read_bytes() == (mine / "store.json").read_bytes(), kind
            assert Store(other.root).verify(next(p for p in other.paths() if p.path == built[kind])) == ()


def test_the_recipe_of_the_manual_builds(store: Store, tmp_path: Path) -> None:
    """As it stands there: in the user's own store, so that only the first run takes its time."""
    manual = Path(__file__).resolve().parents[2] / "docs" / "recipes.md"
    recipe = tmp_path / "mine.toml"
    recipe.write_text(manual.read_text().partition("```toml\n")[2].partition("```")[0])
    image = load_image(build(plan(str(recipe)), store).image.path)
    assert (image.name, image.vm.cpus, image.env) == ("mine", 2, {"EDITOR": "nano"})
    assert "docker" in image.features
    read = debugfs(toolbox_of(store), image.rootfs)
    assert read("cat /home/worker/greeting") == "good day\n"


# What goes wrong


def test_a_line_that_fails_says_where_and_what(shared: dict[str, StorePath], tmp_path: Path) -> None:
    text = TINY.replace('"rm -rf /tmp/* /run/*",', '"echo fine",\n    "echo said this; ls /not-there",')
    recipe = write_tiny(tmp_path / "recipe", text)
    store = seed(tmp_path / "store", shared)
    with pytest.raises(BuildError) as caught:
        build(plan(str(recipe)), store)
    error = caught.value
    assert error.at and (error.at.path, error.at.line) == (recipe, 10)
    assert "this line failed: echo said this; ls /not-there" in error.message
    assert "said this" in error.message
    assert "No such file or directory" in error.message
    assert "fine" not in error.message
    assert store.find(step_of(recipe, "rootfs").key, "rootfs-trixie") is None
    assert not list((store.root / ".tmp").iterdir())


def test_a_file_where_a_directory_is_says_where(shared: dict[str, StorePath], tmp_path: Path) -> None:
    recipe = write_tiny(tmp_path / "recipe", TINY.replace('"/var/log/kept.log"', '"/etc"'))
    with pytest.raises(BuildError, match="'/etc' cannot be a file in this image") as caught:
        build(plan(str(recipe)), seed(tmp_path / "store", shared))
    assert caught.value.at
    assert caught.value.at.line == TINY[: TINY.index('"/var/log/kept')].count("\n") + 1


def test_an_image_that_is_too_small(tiny: tuple[Store, Path], tmp_path: Path) -> None:
    store, _ = tiny
    recipe = write_tiny(tmp_path, TINY + '[image]\nsize = "10 MB"\n')
    with pytest.raises(BuildError, match="takes at least") as caught:
        build(plan(str(recipe)), store)
    assert caught.value.at and caught.value.at.line == TINY.count("\n") + 2


def test_a_mirror_that_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AIRLOCK_DEBIAN_MIRROR", "http://127.0.0.1:9/debian")
    with pytest.raises(BuildError) as caught:
        build(plan(str(write_tiny(tmp_path))), Store(tmp_path / "store"))
    assert caught.value.hint and "AIRLOCK_DEBIAN_MIRROR" in caught.value.hint
    assert "127.0.0.1" in caught.value.message


def test_a_package_that_is_not_there(shared: dict[str, StorePath], tmp_path: Path) -> None:
    recipe = write_tiny(tmp_path / "recipe", TINY.replace("libcap2-bin", "no-such-package-anywhere"))
    with pytest.raises(AirlockError, match="no-such-package-anywhere"):
        build(plan(str(recipe)), seed(tmp_path / "store", shared))


# Helpers


def members(path: Path) -> list[tuple[object, ...]]:
    """What a tar says of each of its members, the bytes included: where two differ, this shows how."""
    found = []
    with tarfile.open(path) as archive:
        for member in archive:
            file = archive.extractfile(member) if member.isreg() else None
            digest = hashlib.sha256(file.read()).hexdigest() if file else member.linkname
            owner = (member.uid, member.gid, member.uname, member.gname)
            found.append((member.name, oct(member.mode), *owner, member.mtime, member.pax_headers, digest))
    return found


def entries(listing: str) -> list[str]:
    """The names in what `ls -p` of debugfs prints."""
    return [line.split("/")[5] for line in listing.splitlines() if line.startswith("/")]
