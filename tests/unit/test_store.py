"""The store: what exists is complete, whoever is killed when, and however many build at once."""

from __future__ import annotations

import errno
import os
import resource
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from airlock_store import contents, gc, paths
from airlock_store.errors import StoreError
from airlock_store.store import INHERITED, Store, pass_on

KEY = "0123456789abcdef" * 2
OTHER = "fedcba9876543210" * 2


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


def fill(output: Path) -> None:
    (output / "bin").mkdir()
    (output / "bin" / "tool").write_text("#!/bin/sh\n")
    (output / "bin" / "tool").chmod(0o4775)
    (output / "data").write_bytes(b"x" * 5000)
    (output / "link").symlink_to("bin/tool")


def no_build(output: Path) -> None:
    pytest.fail(f"built {output} although the store has it")


def run_script(script: str, *arguments: object) -> subprocess.Popen[str]:
    """A process of its own that runs `script`, with the store's modules and this file's `fill` at hand."""
    prelude = "import os, signal, sys\nfrom pathlib import Path\nfrom airlock_store import contents, store as module\n"
    return subprocess.Popen(
        [sys.executable, "-c", prelude + textwrap.dedent(script), *map(str, arguments)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": ":".join(sys.path)},
    )


def leftovers(store: Store) -> list[Path]:
    return list((store.root / ".tmp").iterdir())


def test_realised_once_then_found(store: Store) -> None:
    assert store.find(KEY, "thing") is None
    path = store.realise(KEY, "thing", fill)
    assert path.path == store.root / f"{KEY}-thing"
    assert store.find(KEY, "thing") == path == store.realise(KEY, "thing", no_build)
    assert list(store.paths()) == [path]
    assert store.verify(path) == ()
    assert leftovers(store) == []


def test_files_are_read_only_and_listed(store: Store) -> None:
    path = store.realise(KEY, "thing", fill, kind="test", references=())
    assert (path / "bin/tool").stat().st_mode & 0o7777 == 0o555
    assert (path / "data").stat().st_mode & 0o7777 == 0o444
    listed = contents.read(path.path)
    assert list(listed.files) == ["bin/tool", "data", "link"]
    assert listed.files["link"] == contents.LinkEntry("bin/tool")
    assert listed.files["data"] == contents.FileEntry(contents.sha256_of(path / "data"), 5000, 0o444)
    assert (listed.kind, listed.key, listed.name) == ("test", KEY, "thing")
    assert listed.size == 5000 + len("#!/bin/sh\n")


def test_manifest_has_the_same_bytes_every_time(tmp_path: Path) -> None:
    one, two = (Store(tmp_path / name).realise(KEY, "thing", fill) for name in "ab")
    assert (one / contents.MANIFEST).read_bytes() == (two / contents.MANIFEST).read_bytes()


@pytest.mark.parametrize(
    ("damage", "problem"),
    [
        (lambda path: (path / "data").unlink(), "data: missing"),
        (lambda path: (path / "more").write_text(""), "more: does not belong here"),
        (
            lambda path: ((path / "data").chmod(0o644), (path / "data").write_bytes(b"y" * 5000)),
            "data: changed",
        ),
        (lambda path: (path / "data").chmod(0o777), "data: changed"),
        (lambda path: ((path / "link").unlink(), (path / "link").symlink_to("/etc")), "link: changed"),
    ],
)
def test_verify_tells_what_changed(store: Store, damage: object, problem: str) -> None:
    path = store.realise(KEY, "thing", fill)
    damage(path.path)  # type: ignore[operator]
    assert store.verify(path) == (problem,)


def test_a_path_under_another_ones_name_is_told(store: Store) -> None:
    path = store.realise(KEY, "thing", fill)
    path.path.rename(store.path(OTHER, "thing"))
    (moved,) = store.paths()
    assert store.verify(moved) == (f"the manifest is that of {KEY}-thing",)


def test_link_shares_the_file_and_its_digest(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    source = store.realise(KEY, "thing", fill)
    hashed: list[str] = []
    digest = contents.sha256_of
    monkeypatch.setattr(contents, "sha256_of", lambda path: hashed.append(path.name) or digest(path))

    def build(output: Path) -> None:
        store.link(source, "data", output / "copy")
        (output / "own").write_text("own")

    path = store.realise(OTHER, "linked", build, references=[source])
    assert os.path.samefile(path / "copy", source / "data")
    assert hashed == ["own"]
    monkeypatch.undo()
    assert store.verify(path) == ()
    assert contents.read(path.path).references == (source.path.name,)


def test_link_to_what_is_not_there(store: Store) -> None:
    source = store.realise(KEY, "thing", fill)
    with pytest.raises(StoreError, match="holds no file 'nothing'"):
        store.link(source, "nothing", store.root / "x")


def test_a_build_that_fails_leaves_nothing(store: Store) -> None:
    def build(output: Path) -> None:
        (output / "half").write_text("half")
        (output / "closed").mkdir(mode=0o500)
        raise ValueError("broken")

    with pytest.raises(ValueError, match="broken"):
        store.realise(KEY, "thing", build)
    assert store.find(KEY, "thing") is None
    assert leftovers(store) == []


def test_devices_and_pipes_are_refused(store: Store) -> None:
    with pytest.raises(StoreError, match="neither a file"):
        store.realise(KEY, "thing", lambda output: os.mkfifo(output / "pipe"))
    assert store.find(KEY, "thing") is None


KILLED_AT = {
    "in the build": "pass",
    "after the build": "module.Store._seal = die",
    "before hashing": "contents.survey = die",
    "before the manifest": "contents.encode = die",
    "half a manifest": "contents.encode = lambda c: (manifest(c), die())[0]",
    "before the first fsync": "module._fsync = die",
    "before the rename": "Path.rename = die",
    "after the rename": "rename = Path.rename; Path.rename = lambda *a: (rename(*a), die())",
}


@pytest.mark.parametrize("point", KILLED_AT)
def test_killed_anywhere_nothing_half_is_trusted(store: Store, point: str) -> None:
    script = """
        def die(*_): os.kill(os.getpid(), signal.SIGKILL)
        manifest = contents.encode
        def build(output):
            (output / "data").write_bytes(b"data")
            if sys.argv[2] == "in the build": die()
        exec(sys.argv[3])
        module.Store(Path(sys.argv[1])).realise(sys.argv[4], "thing", build)
    """
    process = run_script(script, store.root, point, KILLED_AT[point], KEY)
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    found = store.find(KEY, "thing")
    assert (found is not None) == (point == "after the rename")

    path = store.realise(KEY, "thing", lambda output: (output / "data").write_bytes(b"data") and None)
    assert store.verify(path) == ()
    # What was left is swept by the next build of whatever.
    store.realise(OTHER, "other", fill)
    assert leftovers(store) == []


def test_two_processes_share_one_build(store: Store, tmp_path: Path) -> None:
    script = """
        log = Path(sys.argv[2])
        def build(output):
            with log.open("a") as file: file.write("built\\n")
            print("building", flush=True)
            sys.stdin.readline()
            (output / "data").write_text("data")
        print(module.Store(Path(sys.argv[1])).realise(sys.argv[3], "thing", build).path, flush=True)
    """
    log = tmp_path / "log"
    first = run_script(script, store.root, log, KEY)
    assert first.stdout and first.stdout.readline() == "building\n"
    second = run_script(script, store.root, log, KEY)
    # Nothing tells that the second waits but the kernel: the lock has a waiter.
    lock = (store.root / ".locks" / f"{KEY}-thing").stat().st_ino
    while not any(
        "->" in line and f":{lock} " in line for line in Path("/proc/locks").read_text().splitlines()
    ):
        assert second.poll() is None
    first_out, _ = first.communicate("go\n", timeout=60)
    second_out, _ = second.communicate(timeout=60)
    assert first_out == second_out == f"{store.root / KEY}-thing\n"
    assert log.read_text() == "built\n"


def test_what_is_no_directory_among_leftovers_stops_no_build(store: Store) -> None:
    (store.root / ".tmp").mkdir(parents=True)
    (store.root / ".tmp" / "file").touch()
    (store.root / ".tmp" / "link").symlink_to("nowhere")
    (store.root / ".tmp" / "outside").symlink_to("/etc")
    store.realise(KEY, "thing", fill)
    assert leftovers(store) == []


def test_sweeping_spares_a_build_that_lives(store: Store) -> None:
    script = """
        def build(output):
            (output / "data").write_text("data")
            print("building", flush=True)
            sys.stdin.readline()
        module.Store(Path(sys.argv[1])).realise(sys.argv[2], "thing", build)
    """
    process = run_script(script, store.root, KEY)
    assert process.stdout and process.stdout.readline() == "building\n"
    store.realise(OTHER, "other", fill)
    assert [path.name for path in leftovers(store)] == [f"{KEY}-thing"]
    process.communicate("go\n", timeout=60)
    found = store.find(KEY, "thing")
    assert found and store.verify(found) == ()


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EROFS])
def test_a_disk_that_fails_is_a_store_error_with_a_hint(
    store: Store, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    def fail(_: int) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(StoreError, match=os.strerror(code)) as caught:
        store.realise(KEY, "thing", fill)
    assert caught.value.hint and "set AIRLOCK_STORE to a directory" in caught.value.hint
    with pytest.raises(StoreError, match=os.strerror(code)) as caught:
        Store(store.root, "--store").realise(KEY, "thing", fill)
    assert caught.value.hint and "give --store a directory" in caught.value.hint
    assert "airlock" not in caught.value.hint.lower()
    assert store.find(KEY, "thing") is None
    assert leftovers(store) == []


def test_a_store_that_cannot_be(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    store = Store(tmp_path / "file" / "store")
    with pytest.raises(StoreError, match="cannot be used"):
        Store(tmp_path / ("x" * 300)).find("0" * 32, "name")
    with pytest.raises(StoreError, match="cannot be used"):
        store.realise(KEY, "thing", fill)
    with pytest.raises(StoreError, match="cannot be used"):
        list(store.paths())


def test_a_lock_that_cannot_be_opened_is_the_stores_trouble(store: Store) -> None:
    """As in a store that may only be read, also for root."""
    (store.root / ".locks" / "gc").mkdir(parents=True)
    with pytest.raises(StoreError, match=r"the store cannot be used: .*/gc: Is a directory"), store.in_use():
        pass


@pytest.mark.parametrize(
    ("name", "clean"),
    [("a b/c", "a-b-c"), ("../../etc", "etc"), ("", "unnamed"), ("ü", "unnamed"), ("a" * 300, "a" * 100)],
)
def test_names_are_made_fit_for_files(store: Store, name: str, clean: str) -> None:
    assert store.path(KEY, name) == store.root / f"{KEY}-{clean}"
    assert store.realise(KEY, name, fill).name == clean


@pytest.mark.parametrize("key", ["", "abc", "../" + KEY[3:], KEY.upper(), KEY + "\n"])
def test_what_is_no_key_is_refused(store: Store, key: str) -> None:
    with pytest.raises(StoreError, match="not a store key"):
        store.path(key, "thing")


def test_where_the_store_is(tmp_path: Path) -> None:
    assert Store.open({"AIRLOCK_STORE": str(tmp_path)}).root == tmp_path
    assert Store.open({"AIRLOCK_STORE": ""}).root.parts[-2:] == ("airlock", "store")
    with pytest.raises(StoreError, match="AIRLOCK_STORE: '~nosuchuser': there is no such user"):
        Store.open({"AIRLOCK_STORE": "~nosuchuser"})


# Garbage collection


def build_chain(store: Store) -> tuple[paths.StorePath, paths.StorePath]:
    """A path, and one that refers to it."""
    base = store.realise(KEY, "base", fill)
    top = store.realise(
        OTHER, "top", lambda output: store.link(base, "data", output / "data"), references=[base]
    )
    return base, top


def test_gc_keeps_what_roots_reach(store: Store) -> None:
    base, top = build_chain(store)
    gc.add_root(store, "mine", top)
    assert store.gc().removed == ()
    gc.add_root(store, "mine", base)
    assert store.gc().removed == (top,)
    assert store.verify(base) == ()


def test_gc_counts_only_what_it_frees(store: Store) -> None:
    base, top = build_chain(store)
    gc.add_root(store, "mine", base)
    collected = store.gc()
    assert collected.removed == (top,)
    assert collected.freed < (base / "data").stat().st_blocks * 512
    gc.add_root(store, "mine", store.realise(OTHER, "third", fill))
    # The file has one link now, and goes.
    assert store.gc().freed >= 5000


def test_a_project_keeps_its_image_until_it_is_gone(store: Store, tmp_path: Path) -> None:
    _, top = build_chain(store)
    project = tmp_path / "project"
    project.mkdir()
    gc.add_project_root(store, project / "image", top.path)
    assert (project / "image").resolve() == top.path
    assert store.gc().removed == ()
    (project / "image").unlink()
    assert len(store.gc().removed) == 2
    assert list((store.root / "roots").iterdir()) == []


def test_a_project_is_known_whatever_its_image(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One of a store path, one of an image that nobody keeps and that is gone by now, one that cannot be looked at."""
    _, top = build_chain(store)
    links = [tmp_path / f"project{number}" / "image" for number in range(3)]
    for link, image in zip(links, (top.path, tmp_path / "gone", top.path), strict=True):
        link.parent.mkdir()
        gc.add_project_root(store, link, image)
    real = os.lstat

    def lstat(path: Path) -> os.stat_result:
        if path == links[2]:
            raise PermissionError(errno.EACCES, "Permission denied")
        return real(path)

    monkeypatch.setattr(gc.os, "lstat", lstat)
    assert sorted(gc.project_links(store)) == links
    assert store.gc().removed == ()
    links[1].unlink()
    links[0].unlink()
    links[0].parent.rmdir()
    assert store.gc().removed == ()
    assert gc.project_links(store) == links[2:]


def test_a_project_that_was_moved_keeps_its_image_once_it_is_told(store: Store, tmp_path: Path) -> None:
    _, top = build_chain(store)
    (tmp_path / "old").mkdir()
    gc.add_project_root(store, tmp_path / "old" / "image", top.path)
    link = (tmp_path / "old").rename(tmp_path / "new") / "image"
    gc.keep_project_link(store, link)
    assert store.gc().removed == ()
    assert gc.project_links(store) == [link]


def test_gc_does_not_follow_roots_out_of_the_store(store: Store, tmp_path: Path) -> None:
    outside = tmp_path / f"{KEY}-outside"
    outside.mkdir()
    store.realise(OTHER, "thing", fill)
    (store.root / "roots" / "odd").symlink_to(outside)
    assert gc.kept(store) == set()
    assert len(store.gc().removed) == 1
    assert outside.is_dir()


def test_gc_bears_a_root_that_leads_to_itself(store: Store) -> None:
    path = store.realise(KEY, "thing", fill)
    (store.root / "roots" / "loop").symlink_to("loop")
    assert store.gc().removed == (path,)
    assert gc.project_links(store) == []


def test_a_size_beyond_all_numbers_is_no_manifest(store: Store) -> None:
    path = store.realise(KEY, "thing", fill)
    manifest = path / contents.MANIFEST
    manifest.chmod(0o644)
    manifest.write_text(manifest.read_text().replace('"size": 5000', '"size": 1e400'))
    with pytest.raises(StoreError, match="not a store path"):
        store.verify(path)


def test_gc_waits_for_nobody_who_builds(store: Store) -> None:
    store.realise(KEY, "thing", fill)
    with store.in_use(), pytest.raises(StoreError, match="a build is using the store"):
        Store(store.root).gc()
    assert store.find(KEY, "thing")
    assert len(store.gc().removed) == 1


def test_gc_of_a_store_that_never_was(store: Store) -> None:
    assert store.gc() == gc.Collected((), 0)


def test_a_limit_of_open_files_that_is_too_low_is_told() -> None:
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    handle = os.open(os.devnull, os.O_RDONLY)
    resource.setrlimit(resource.RLIMIT_NOFILE, (INHERITED, limits[1]))
    try:
        with pytest.raises(StoreError, match="no more than 100 files may be open"):
            pass_on(handle)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(handle)
