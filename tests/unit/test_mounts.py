"""What of the host is shared with a sandbox: sources as the config names them, and what is refused."""

from __future__ import annotations

import errno
import itertools
import os
from pathlib import Path

import pytest

from airlock_runner import borders
from airlock_runner.config import load_config
from airlock_runner.files import FileMount
from airlock_runner.machine.argv import Share
from airlock_runner.machine.virtiofs import Daemon
from airlock_runner.mounts import MAX_FILES, MAX_MOUNTS, Mounts, over_virtiofs, settle
from airlock_store.errors import ConfigError


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project, in a home."""
    monkeypatch.setenv("HOME", os.fspath(tmp_path))
    path = tmp_path / "project"
    path.mkdir()
    return path


def mounts(root: Path, text: str) -> Mounts:
    (root / "airlock.toml").write_text(text)
    return settle(load_config(root), root)


def refusal(root: Path, text: str) -> str:
    with pytest.raises(ConfigError) as caught:
        mounts(root, text)
    return str(caught.value).removeprefix(f"{root}/airlock.toml:")


def targets(settled: Mounts) -> list[tuple[str, str]]:
    return [(place["kind"], place["target"]) for place in settled.places]


def test_a_project_alone_is_shared_and_its_private_directory_hidden(root: Path) -> None:
    settled = mounts(root, "")
    assert settled.shares == (Share("project", root),)
    assert settled.places == (
        {"kind": "share", "tag": "project", "target": f"{root}", "read_only": False},
        {"kind": "mask", "target": f"{root}/.airlock"},
    )


def test_sources_are_absolute_below_home_or_relative_to_the_project(root: Path, tmp_path: Path) -> None:
    for name in ("one", "project/two", "three"):
        (tmp_path / name).mkdir()
    settled = mounts(
        root,
        f'[mounts.a]\nsource = "{tmp_path}/one"\nread_only = true\n'
        '[mounts.b]\nsource = "two"\ntarget = "/srv//./two/"\n'
        '[mounts.c]\nsource = "~/three/../three"\ntarget = "~/t"\n',
    )
    assert settled.shares[1:] == (
        Share("mount0", tmp_path / "one", True),
        Share("mount1", root / "two"),
        Share("mount2", tmp_path / "three"),
    )
    assert targets(settled)[1:-1] == [("share", f"{tmp_path}/one"), ("share", "/srv/two"), ("share", "~/t")]


def test_the_private_directory_is_hidden_wherever_it_shows(root: Path, tmp_path: Path) -> None:
    settled = mounts(root, '[mounts.all]\nsource = "~"\ntarget = "/srv/home"\n')
    assert [target for kind, target in targets(settled) if kind == "mask"] == [
        "/srv/home/project/.airlock", f"{root}/.airlock",
    ]  # fmt: skip


@pytest.mark.parametrize(("missing", "warned"), [("warn", 1), ("ignore", 0)])
def test_a_missing_source_can_be_left_out(root: Path, missing: str, warned: int) -> None:
    settled = mounts(root, f'[mounts.a]\nsource = "~/none"\nmissing = "{missing}"\n')
    assert len(settled.shares) == 1
    assert len(settled.warnings) == warned
    assert all("mount a: ~/none is not there" in warning for warning in settled.warnings)


def test_a_missing_source_can_be_made(root: Path, tmp_path: Path) -> None:
    settled = mounts(root, '[mounts.a]\nsource = "~/deep/er"\nmissing = "create-dir"\n')
    assert settled.shares[1].source == tmp_path / "deep" / "er"
    assert (tmp_path / "deep" / "er").is_dir()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('[mounts.a]\nsource = "~/none"', "2:1: mount a: {home}/none is not there"),
        ('[mounts.a]\nsource = "~/pipe"', "2:1: mount a: {home}/pipe is neither a directory nor a file"),
        ('[mounts.a]\nsource = "~/large"', "2:1: mount a: {home}/large is larger than 16 MB"),
        ('[mounts.a]\nsource = "~"\nmissing = "create-file"', "2:1: mount a: {home} is a directory"),
        ('[mounts.a]\nsource = "~"\nfile_content = ""', "1:9: file_content needs missing = "),
        (
            '[mounts.a]\nsource = "~/file/x"\nmissing = "create-dir"',
            "2:1: mount a: {home}/file/x cannot be used",
        ),
        (
            '[mounts.a]\nsource = "~"\ntarget = "{home}/project"',
            "1:9: {home}/project is also the place of the project",
        ),
        (
            '[mounts.a]\nsource = "~"\ntarget = "/x"\n[disk.cache.c]\npaths = ["/x"]',
            "4:13: /x is also the place of mount a",
        ),
        ('[mounts."a b"]\nsource = "~"', "1:9: 'a b' is not a name"),
        ("[mounts.a]", "1:9: missing key 'source' in [mounts.a]"),
        ('[mounts.a]\nsource = "~other/x"', "2:1: 'source': '~other/x': only one's own home"),
        ('[mounts.a]\nsource = "~"\ntarget = "x"', "3:1: 'target': 'x' is neither absolute nor below '~'"),
        ('[mounts.a]\nsource = "~"\ntarget = "/a/../b"', "3:1: 'target': '/a/../b' has '..' in it"),
        ('[mounts.a]\nsource = "~"\ntarget = "//"', "3:1: 'target': nothing can be mounted at '//'"),
        ('[mounts.a]\nsource = "~"\ntarget = "/proc/self"', "3:1: 'target': nothing can be mounted at"),
        ('[mounts.a]\nsource = "/proc/self/../fs"', "2:1: mount a: nothing can be mounted at '/proc/fs'"),
        ('[mounts.a]\nsource = "/"', "2:1: mount a: nothing can be mounted at '/'"),
        ('[mounts.a]\nsource = "~"\nmissing = "make"', "3:1: 'missing': expected one of 'fail', 'warn'"),
        ('[mask.a]\npaths = ["/etc"]', "2:10: 'paths': '/etc' is not a path below the project"),
        ('[mask.a]\npaths = ["x/../.."]', "2:10: 'paths': 'x/../..' is not a path below the project"),
        ('[mask.a]\npaths = ["~/x"]', "2:10: 'paths': '~/x' is not a path below the project"),
        ('[mask.a]\npaths = ["."]', "2:10: 'paths': '.' is not a path below the project"),
        ("[mask.a]\npaths = []", "2:1: 'paths': expected an array of 1 to 256 elements, found 0"),
        ('[disk.cache.a]\npaths = ["../x"]', "2:10: 'paths': '../x' is not a path below the project"),
    ],
)
def test_what_cannot_be_mounted_is_refused_at_its_place(
    root: Path, tmp_path: Path, text: str, said: str
) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "large").touch()
    os.truncate(tmp_path / "large", (16 << 20) + 1)
    os.mkfifo(tmp_path / "pipe")
    assert refusal(root, text.replace("{home}", str(tmp_path))).startswith(
        said.replace("{home}", str(tmp_path))
    )


def test_the_number_of_mounts_is_bounded(root: Path) -> None:
    text = "".join(f'[mounts.m{n}]\nsource = "~"\ntarget = "/m/{n}"\n' for n in range(MAX_MOUNTS + 1))
    assert f"more than {MAX_MOUNTS} directories" in refusal(root, text)
    (root / "file").touch()
    text = "".join(f'[mounts.m{n}]\nsource = "file"\ntarget = "/m/{n}"\n' for n in range(MAX_FILES + 1))
    assert f"more than {MAX_FILES} files" in refusal(root, text)


def test_a_target_in_what_is_read_only_has_to_be_there(root: Path) -> None:
    """airlockd makes the place of a mount, which there it cannot."""
    below = root / "ro/there"
    below.mkdir(parents=True)
    (below / "file").touch()
    text = (
        '[mounts.ro]\nsource = "ro"\ntarget = "/data"\nread_only = true\n'
        '[mounts.good]\nsource = "b"\ntarget = "/data/there"\nmissing = "create-dir"\n'
        # That one may be written to.
        '[mounts.deep]\nsource = "c"\ntarget = "/data/there/new"\nmissing = "create-dir"\n'
    )
    assert [share.tag for share in mounts(root, text).shares] == ["project", "mount0", "mount1", "mount2"]
    wrong = (
        '[mounts.bad]\nsource = "d"\ntarget = "/data/new/er"\nmissing = "create-dir"\n'
        '[mounts.own]\nsource = "ro"\nread_only = true\n[mask.m]\npaths = ["ro/secret", "ro/there"]\n'
        '[disk.cache.c]\npaths = ["/data/cache", "ro/there/file"]\n'
    )
    with pytest.raises(ConfigError) as caught:
        mounts(root, text + wrong)
    assert [str(each).partition("airlock.toml:")[2] for each in caught.value.problems] == [
        "13:9: mount bad: /data/new/er lies in /data, which is read-only and has no such place",
        f"20:7: mask m: {root}/ro/secret lies in {root}/ro, which is read-only and has no such place",
        "22:13: cache c: /data/cache lies in /data, which is read-only and has no such place",
    ]
    assert caught.value.problems[0].hint == f"make {root}/ro/new/er first"


def test_what_is_read_only_stays_with_qemu(root: Path) -> None:
    for name in ("a", "b"):
        (root / name).mkdir()
    daemon = Daemon(Path("/v"), rust=True)
    settled = mounts(root, '[mounts.a]\nsource = "a"\n[mounts.b]\nsource = "b"\nread_only = true\n')
    served = over_virtiofs(settled, daemon)
    assert [share.daemon for share in served.shares] == [daemon, daemon, None]
    kinds = [place.get("filesystem") for place in served.places if place["kind"] == "share"]
    assert kinds == ["virtiofs", "virtiofs", None]


def test_a_file_is_no_share(root: Path, tmp_path: Path) -> None:
    (tmp_path / "real").write_text("x")
    (tmp_path / "link").symlink_to("real")
    settled = mounts(
        root,
        '[mounts.a]\nsource = "~/link"\ntarget = "~/.it"\n'
        '[mounts.b]\nsource = "~/new/b"\nread_only = true\nmissing = "create-file"\nfile_content = "b"\n',
    )
    assert settled.shares == (Share("project", root),)
    assert settled.files == (
        FileMount(0, "a", tmp_path / "real", "~/.it", read_only=False),
        FileMount(1, "b", tmp_path / "new" / "b", f"{tmp_path}/new/b", read_only=True),
    )
    assert [place for place in settled.places if place["kind"] == "file"] == [
        {"kind": "file", "file": 0, "target": "~/.it", "read_only": False},
        {"kind": "file", "file": 1, "target": f"{tmp_path}/new/b", "read_only": True},
    ]
    assert (tmp_path / "new" / "b").read_text() == "b"


def test_a_directory_that_cannot_be_read_is_refused_at_its_place(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (root / "sub").mkdir()
    real = os.open

    def refuses(path: str | Path, flags: int, *mode: int) -> int:
        # As for whoever is not root, whom nothing is refused.
        if path == root / "sub":
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        return real(path, flags, *mode)

    monkeypatch.setattr(os, "open", refuses)
    said = refusal(root, '[mounts.a]\nsource = "sub"\n')
    assert said == f"2:1: mount a: {root}/sub cannot be used: Permission denied"


@pytest.mark.parametrize("source", ["inner", "inner/below"])
def test_a_symlink_that_a_sandbox_could_have_made_leads_nowhere(
    root: Path, tmp_path: Path, source: str
) -> None:
    (tmp_path / "secret" / "below").mkdir(parents=True)
    (root / "inner").symlink_to("../secret")
    text = f'[mounts.a]\nsource = "{source}"\nread_only = true\nmissing = "create-dir"\n'
    assert "leads out of" in refusal(root, text)
    (root / "inner").unlink()
    (root / "inner").symlink_to(tmp_path / "not-made-yet")
    assert "leads out of" in refusal(root, text)
    assert not (tmp_path / "not-made-yet").exists()


def test_a_symlink_below_another_writable_mount_leads_nowhere(root: Path, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "link").symlink_to("/etc")
    text = '[mounts.data]\nsource = "~/data"\n{}[mounts.b]\nsource = "~/data/link"\ntarget = "/b"\n'
    assert "leads out of" in refusal(root, text.format(""))
    # Where no sandbox can write, a symlink is the user's own.
    settled = mounts(root, text.format("read_only = true\n"))
    assert os.fspath(settled.shares[2].source) == "/etc"


def test_no_spelling_of_a_path_hides_a_symlink_of_the_sandbox(root: Path, tmp_path: Path) -> None:
    """Of what the config names in a directory that is itself behind a symlink, as a home may be."""
    (tmp_path / "alias").symlink_to(root.parent)
    spelled = tmp_path / "alias" / root.name
    (tmp_path / "secret").mkdir()
    (root / "inner").symlink_to(tmp_path / "secret")
    (root / "made").symlink_to(tmp_path / "not-made")
    # The user's own symlinks lead into the project, and a sandbox's out of it again.
    (tmp_path / "way").symlink_to(root / "inner")
    (tmp_path / "round").symlink_to(tmp_path / "secret" / ".." / root.name / "inner")
    for source in (spelled / "inner", tmp_path / "way", tmp_path / "round"):
        assert "leads out of" in refusal(root, f'[mounts.a]\nsource = "{source}"\ntarget = "/a"\n')
    text = f'[mounts.a]\nsource = "{spelled}/made"\nmissing = "create-file"\n'
    assert "leads out of" in refusal(root, text)
    assert not (tmp_path / "not-made").exists()
    # By another mount that is writable, spelled in two ways.
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "link").symlink_to(tmp_path / "secret")
    (tmp_path / "other").symlink_to(tmp_path / "data")
    text = '[mounts.data]\nsource = "~/{}"\n[mounts.b]\nsource = "~/{}/link"\ntarget = "/b"\n'
    for one, other in (("data", "other"), ("other", "data"), ("other", "other")):
        assert "leads out of" in refusal(root, text.format(one, other))


def test_a_circle_of_symlinks_comes_to_an_end(tmp_path: Path) -> None:
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("a")
    steps = borders._steps(tmp_path / "a" / "x")
    assert len(list(itertools.islice(steps, 1000))) < 100


def test_a_project_behind_a_symlink_has_its_mounts(root: Path, tmp_path: Path) -> None:
    (tmp_path / "alias").symlink_to(root.parent)
    (root / "real").mkdir()
    (root / "link").symlink_to("real")
    settled = mounts(root, f'[mounts.a]\nsource = "{tmp_path}/alias/{root.name}/link"\ntarget = "/a"\n')
    assert settled.shares[1].source == root / "real"


def test_a_symlink_within_the_project_is_followed(root: Path) -> None:
    (root / "real").mkdir()
    (root / "link").symlink_to("real")
    assert mounts(root, '[mounts.a]\nsource = "link"').shares[1].source == root / "real"


def test_masks_and_caches_become_places(root: Path) -> None:
    settled = mounts(
        root,
        '[mask.secrets]\npaths = [".env", "./a//b/"]\n[disk.cache.c]\npaths = ["target", "~/.cargo", "/var/x"]\n',
    )
    assert targets(settled)[2:] == [
        ("mask", f"{root}/.env"), ("mask", f"{root}/a/b"),
        ("cache", f"{root}/target"), ("cache", "~/.cargo"), ("cache", "/var/x"),
    ]  # fmt: skip
    before = {place["target"]: place["directory"] for place in settled.places if place["kind"] == "cache"}
    assert len(set(before.values())) == 3
    after = mounts(root, '[disk.cache.c]\npaths = ["/var/x", "target"]').places[2:]
    assert {place["target"]: place["directory"] for place in after}.items() <= before.items()


def test_entries_that_are_off_are_not_there(root: Path) -> None:
    (root / "airlock.local.toml").write_text(
        "[mounts.a]\nenabled = false\n[mask.m]\nenabled = false\n[disk.cache.c]\nenabled = false\n"
    )
    settled = mounts(root, '[mounts.a]\nsource = "~/none"\n[mask.m]\npaths = ["x"]\n')
    assert len(settled.places) == 2
    # What is wrong in one that is off is wrong.
    assert "unknown key 'sorce'" in refusal(root, "[mounts.a]\nenabled = false\nsorce = ''\n")


def test_binds_become_places(root: Path) -> None:
    settled = mounts(root, '[disk.bind.docker]\npath = "/var/lib/docker/"\n[disk.bind.mine]\npath = "~/.x"\n')
    assert [place for place in settled.places if place["kind"] == "bind"] == [
        {"kind": "bind", "target": "/var/lib/docker", "directory": "docker"},
        {"kind": "bind", "target": "~/.x", "directory": "mine"},
    ]
    with pytest.raises(ConfigError, match=r":3:12: /x is also the place of cache c"):
        mounts(root, '[disk.cache.c]\npaths = ["/x"]\n[disk.bind.b]\npath = "/x"\n')


def test_all_that_is_wrong_is_told_at_once(root: Path) -> None:
    said = refusal(
        root,
        '[mounts.a]\nsource = "none"\n[mounts.b]\nsource = "~"\ntarget = "/x"\n[mounts.c]\nsource = "nor"\n'
        '[disk.cache.c]\npaths = ["/x", "/y"]\n[disk.bind.d]\npath = "/y"\n',
    )
    lines = [line.removeprefix(f"{root}/airlock.toml:") for line in said.splitlines()]
    assert [line.partition(" ")[0] for line in lines] == ["2:1:", "7:1:", "8:13:", "10:12:"]


@pytest.mark.parametrize("source", [".airlock", ".airlock/sandbox", "link/state.json"])
def test_the_private_directory_is_no_source(root: Path, source: str) -> None:
    (root / ".airlock" / "sandbox").mkdir(parents=True)
    (root / ".airlock" / "sandbox" / "state.json").touch()
    (root / "link").symlink_to(".airlock/sandbox")
    text = f'[mounts.a]\nsource = "{source}"\ntarget = "/x"\n'
    assert "2:1: mount a: " in (said := refusal(root, text))
    assert "lies where airlock keeps the sandbox itself" in said


def test_every_place_has_an_origin_in_the_config(root: Path, tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    (root / "file").touch()
    settled = mounts(
        root,
        '[mounts.a]\nsource = "~"\ntarget = "/srv"\n[mounts.b]\nsource = "~/one"\n[mounts.f]\nsource = "file"\n'
        'target = "/etc/f"\n[mask.m]\npaths = ["x", "y"]\n[disk.cache.c]\npaths = ["z", "/z"]\n'
        '[disk.bind.d]\npath = "/var/d"\n',
    )
    found = [
        (place["target"], settled.keys_of(number))
        for number, place in enumerate(settled.places)
        if settled.keys_of(number)
    ]
    assert found == [
        ("/srv", ("mounts", "a", "target")),
        (f"{tmp_path}/one", ("mounts", "b", "source")),
        ("/etc/f", ("mounts", "f", "target")),
        (f"{root}/x", ("mask", "m", "paths", 0)),
        (f"{root}/y", ("mask", "m", "paths", 1)),
        (f"{root}/z", ("disk", "cache", "c", "paths", 0)),
        ("/z", ("disk", "cache", "c", "paths", 1)),
        ("/var/d", ("disk", "bind", "d", "path")),
    ]
    assert len(settled.origins) == len(settled.places)
    for hostile in (-1, len(settled.places), "0", None, 1.0, [], 1 << 70):
        assert settled.keys_of(hostile) == ()


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("{root}/x.sock", "lies in {root} of the sandbox, which is a directory of the host"),
        ("/a:{root}/d/x.sock", "lies in {root} of the sandbox, which is a directory of the host"),
        ("/a:{root}/.airlock/./x.sock", "lies in {root}/.airlock of the sandbox, which is a mask"),
        ("/a:{root}/m/x.sock", "lies in {root}/m of the sandbox, which is a mask"),
        ("/a:/srv/home/deep/x.sock", "lies in /srv/home of the sandbox, which is a directory of the host"),
        ("/a:~/h/x.sock", "lies in ~/h of the sandbox, which is a directory of the host"),
        ("/a:/etc/f/x.sock", "lies in /etc/f of the sandbox, which is a file"),
    ],
)
def test_a_socket_is_put_over_nothing_of_the_hosts(root: Path, path: str, said: str) -> None:
    (root / "file").touch()
    text = (
        '[mounts.a]\nsource = "~"\ntarget = "/srv/home"\n[mounts.b]\nsource = "~"\ntarget = "~/h"\n'
        '[mounts.f]\nsource = "file"\ntarget = "/etc/f"\n[mask.m]\npaths = ["m"]\n[network.sockets.s]\n'
    )
    told = refusal(root, f"{text}host = '{path.format(root=root)}'")
    assert told.startswith("13:1: socket s: ")
    assert told.endswith(said.format(root=root))


def test_a_socket_may_lie_on_the_sandboxs_disk_also_below_the_project(root: Path) -> None:
    for path in (f"/a:{root}/c/x", "/a:/var/d/x", "/run/x", f"/a:{root}.sock", "/a:~/x"):
        text = '[disk.cache.c]\npaths = ["c"]\n[disk.bind.d]\npath = "/var/d"\n[network.sockets.s]\n'
        mounts(root, f"{text}host = '{path}'")
