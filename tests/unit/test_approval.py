"""The config that a sandbox may have changed: what counts as a change, what is remembered, what is shown."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airlock_runner import approval
from airlock_runner.project import Project
from airlock_store.errors import AirlockError, ConfigError
from airlock_store.image import MANIFEST, Image, encode_image

CONFIG = '# ours\n[vm]\nharden = true\n[env]\nTOKEN = "${TOKEN}"\n[mounts.docs]\nsource = "docs"\n'


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_STATE_HOME", os.fspath(tmp_path / "state"))
    project = tmp_path / "project"
    project.mkdir()
    (project / "airlock.toml").write_text(CONFIG)
    return project


def changes(root: Path) -> list[str]:
    return approval.changes(root, approval.snapshot(root))


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("airlock.toml", CONFIG, []),
        ("airlock.toml", CONFIG.replace("# ours", "# theirs\n\n"), []),
        ("airlock.toml", 'mounts = { docs = { source = "docs" } }\n' + CONFIG.partition("[mounts")[0], []),
        (
            "airlock.toml",
            CONFIG.replace("true", "false"),
            ["- airlock.toml: vm.harden = true", "+ airlock.toml: vm.harden = false"],
        ),
        (
            "airlock.toml",
            CONFIG.replace("${TOKEN}", "${AWS_SECRET}"),
            ['- airlock.toml: env.TOKEN = "${TOKEN}"', '+ airlock.toml: env.TOKEN = "${AWS_SECRET}"'],
        ),
        (
            "airlock.local.toml",
            '[mounts.home]\nsource = "~"\nread_only = false\n',
            [
                "+ airlock.local.toml: mounts.home.read_only = false",
                '+ airlock.local.toml: mounts.home.source = "~"',
            ],
        ),
        (
            "airlock.local.yaml",
            "mounts:\n  a: {source: /}\n",
            ['+ airlock.local.yaml: mounts.a.source = "/"'],
        ),
        (
            "airlock.local.toml",
            '[env]\n"a\\u001b[31m\\nb" = "\\u001b]0;x\\u0007\\n- nothing"\n',
            ['+ airlock.local.toml: env."a\\u001b[31m\\nb" = "\\u001b]0;x\\u0007\\n- nothing"'],
        ),
        ("other.toml", "[vm]\nharden = false\n", []),
    ],
)
def test_what_counts_as_a_change(root: Path, name: str, text: str, expected: list[str]) -> None:
    approval.begin(root, approval.snapshot(root))
    (root / name).write_text(text)
    assert changes(root) == expected
    assert approval.end(root) == bool(expected)
    # A record is left where there was a change, and only there.
    assert changes(root) == expected
    (root / "airlock.toml").write_text("[vm]\nmemory = '1 GB'\n")
    assert bool(changes(root)) == bool(expected)


def test_edits_between_runs_are_the_users_own(root: Path) -> None:
    approval.begin(root, approval.snapshot(root))
    assert not approval.end(root)
    (root / "airlock.toml").write_text("[vm]\nharden = false\n")
    assert approval.require(root) == approval.snapshot(root)


def test_a_killed_session_leaves_its_record(root: Path) -> None:
    approval.begin(root, approval.snapshot(root))
    assert approval.require(root) == approval.snapshot(root)
    (root / "airlock.toml").write_text("[vm]\nharden = false\n")
    with pytest.raises(ConfigError, match=r"vm\.harden = false") as refusal:
        approval.require(root)
    assert refusal.value.hint is not None
    assert "airlock config approve" in refusal.value.hint
    approval.approve(root, approval.snapshot(root))
    approval.require(root)


def test_agreeing_while_it_runs_is_for_what_it_said_then(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    approval.begin(root, approval.snapshot(root))
    monkeypatch.setattr(Project, "running_pid", lambda _self: 1)
    (root / "airlock.toml").write_text("[vm]\ncpus = 1\n")
    approval.approve(root, approval.snapshot(root))
    assert changes(root) == []
    (root / "airlock.toml").write_text("[vm]\ncpus = 2\n")
    assert changes(root) == ["- airlock.toml: vm.cpus = 1", "+ airlock.toml: vm.cpus = 2"]


def test_files_of_the_project_that_are_booted_count(root: Path) -> None:
    for name in ("image.toml", "bzImage", "initrd"):
        (root / name).write_text("one")
    (root / "airlock.toml").write_text(
        '[vm]\nimage = "./image.toml"\nkernel = "bzImage"\ninitrd = "./initrd"\n'
    )
    before = approval.snapshot(root)
    approval.begin(root, before)
    (root / "initrd").write_text("two")
    assert [line.partition(" = ")[0] for line in changes(root)] == [
        "- content of vm.initrd",
        "+ content of vm.initrd",
    ]
    assert sum(key.startswith("content of") for key in before) == 3


@pytest.mark.parametrize("where", ["airlock.local.toml", "{home}/.airlock.toml"])
def test_whoever_names_what_is_booted_it_counts(
    root: Path, tmp_path: Path, where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also the user's own config, also in a mount that is not the project, and however it is spelled."""
    monkeypatch.setenv("HOME", os.fspath(tmp_path))
    (tmp_path / "shared").mkdir()
    (tmp_path / "way").symlink_to("shared")
    (root / "airlock.toml").write_text('[mounts.s]\nsource = "~/shared"\n')
    (root / where.format(home=tmp_path)).write_text('[vm]\nkernel = "~/way/vmlinux"\n')
    kernel = tmp_path / "shared" / "vmlinux"
    kernel.write_text("one")
    approval.begin(root, approval.snapshot(root))
    kernel.write_text("two")
    assert [line[:24] for line in changes(root)] == ["- content of vm.kernel =", "+ content of vm.kernel ="]


@pytest.mark.parametrize(("image", "counts"), [("base", False), ("base.toml", True), ("./base", True)])
def test_the_name_of_a_recipe_is_no_file(root: Path, image: str, counts: bool) -> None:
    (root / "base").mkdir()
    (root / "base.toml").touch()
    (root / "airlock.toml").write_text(f'[vm]\nimage = "{image}"\n')
    assert ("content of vm.image" in approval.snapshot(root)) is counts


def test_a_huge_file_is_not_read(root: Path) -> None:
    """Whoever makes a sparse one would hold up the end of its session for hours."""
    (root / "airlock.toml").write_text('[vm]\nkernel = "vmlinux"\n')
    with (root / "vmlinux").open("wb") as file:
        file.truncate(1 << 42)
        approval.begin(root, approval.snapshot(root))
        assert not changes(root)
        os.pwrite(file.fileno(), b"x", 1 << 41)
        os.utime(root / "vmlinux", ns=(1, 1))
    assert changes(root)
    (root / "vmlinux").unlink()
    os.mkfifo(root / "vmlinux")
    assert changes(root)


def test_each_file_of_an_image_in_the_project_counts(root: Path) -> None:
    (root / "img").mkdir()
    files = {name: root / "img" / name for name in ("kernel", "initrd", "rootfs")}
    for path in files.values():
        path.write_text("one")
    image = Image(
        root / "img", key="0" * 32, name="i", summary="", arch="x86_64", kernel_release="6", rootfs_format="ext4",
        rootfs_key="1" * 32, features=(), **files,
    )  # fmt: skip
    (root / "img" / MANIFEST).write_bytes(encode_image(image))
    (root / "airlock.toml").write_text('[vm]\nimage = "./img"\n')
    for name in sorted(os.listdir(root / "img")):
        approval.begin(root, approval.snapshot(root))
        assert not changes(root)
        path = root / "img" / name
        path.write_bytes(path.read_bytes() + b"\n")
        assert [line[:23] for line in changes(root)] == ["- content of vm.image =", "+ content of vm.image ="]


def test_a_mask_whose_place_another_directory_takes_is_asked_about(root: Path) -> None:
    """What is masked cannot be moved; what is above it can, and would be seen at the next start."""
    (root / "airlock.toml").write_text('[mask.secrets]\npaths = ["deploy/keys/id", ".env"]\n')
    approval.begin(root, approval.snapshot(root))
    # By the mask itself.
    (root / "deploy/keys").mkdir(parents=True)
    assert not changes(root)
    approval.begin(root, approval.snapshot(root))
    (root / ".env").write_text("of an editor that replaces files")
    assert not changes(root)
    (root / "deploy").rename(root / "elsewhere")
    (root / "deploy/keys").mkdir(parents=True)
    assert [line.partition(" = ")[0] for line in changes(root)] == [
        "- directory above mask deploy/keys/id: deploy",
        "+ directory above mask deploy/keys/id: deploy",
        "- directory above mask deploy/keys/id: deploy/keys",
        "+ directory above mask deploy/keys/id: deploy/keys",
    ]


def test_a_record_that_cannot_be_read_is_told_as_such(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuses(_path: Path) -> Path:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(Path, "read_text", refuses)
    with pytest.raises(AirlockError, match=r"cannot be read: Permission denied"):
        approval.changes(root, {})


def test_of_a_list_only_what_differs_is_shown(root: Path) -> None:
    rules = "[network.rules.r]\nallow = {}\n"
    before = [f"host{number}.example.com" for number in range(30)]
    (root / "airlock.toml").write_text(rules.format(json.dumps(before)))
    approval.begin(root, approval.snapshot(root))
    (root / "airlock.toml").write_text(rules.format(json.dumps([*before[1:], "10.0.0.0/8"])))
    assert changes(root) == [
        '- airlock.toml: network.rules.r.allow with "host0.example.com"',
        '+ airlock.toml: network.rules.r.allow with "10.0.0.0/8"',
    ]
    (root / "airlock.toml").write_text(rules.format(json.dumps(before[::-1])))
    assert [line[:40] for line in changes(root)] == [
        f"{sign} airlock.toml: network.rules.r.allow = " for sign in "-+"
    ]


@pytest.mark.parametrize(
    "config",
    ["[env]\n" + "".join(f"A{n} = 'x'\n" for n in range(30)), f"[env]\nA = '{'x' * 1000}'\n"],
    ids=["lines", "characters"],
)
def test_what_does_not_fit_is_not_agreed_to_at_a_prompt(
    root: Path, config: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "isatty", lambda _fd: True)
    approval.begin(root, approval.snapshot(root))
    text = f"{config}[mounts.all]\nsource = '/'\ntarget = '/host'\n"
    (root / "airlock.local.toml").write_text(text)
    with pytest.raises(ConfigError, match=r"and \d+ (more|characters more)") as refusal:
        approval.require(root)
    assert "shows all of it" in str(refusal.value.hint)
    # What gives most is not what is left out.
    assert str(refusal.value).splitlines()[1].endswith('mounts.all.source = "/"')
    assert all(text.split(" = ")[0] in "\n".join(changes(root)) for text in config.splitlines()[1:])


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '{"settings": 7}'])
def test_a_broken_record_agrees_to_nothing(root: Path, text: str) -> None:
    approval.begin(root, approval.snapshot(root))
    approval._record(root).write_text(text)
    assert changes(root)


def test_a_config_that_cannot_be_read_is_a_change(root: Path) -> None:
    approval.begin(root, approval.snapshot(root))
    (root / "airlock.toml").write_text("[vm\n")
    assert approval.end(root)
    (root / "airlock.toml").write_text(CONFIG)
    assert changes(root) == []


def test_another_directory_at_the_place_is_not_asked_about(root: Path) -> None:
    approval.begin(root, approval.snapshot(root))
    root.rename(root.with_name("moved"))
    root.mkdir()
    (root / "airlock.toml").write_text("[vm]\nharden = false\n")
    assert changes(root) == []


def test_records_are_for_their_owner_only(root: Path) -> None:
    approval.begin(root, approval.snapshot(root))
    record = approval._record(root)
    assert record.stat().st_mode & 0o777 == 0o600
    assert record.parent.stat().st_mode & 0o777 == 0o700
    assert json.loads(record.read_text())["root"] == os.fspath(root)


_scalars = (
    st.none()
    | st.booleans()
    | st.integers(-9, 9)
    | st.text(max_size=5)
    | st.lists(st.integers(0, 3), max_size=2)
)
_tables = st.dictionaries(
    st.text(max_size=4),
    st.recursive(_scalars, lambda each: st.dictionaries(st.text(max_size=4), each, max_size=3)),
    max_size=3,
)


@given(_tables, _tables)
def test_what_differs_never_looks_the_same(first: dict[str, object], second: dict[str, object]) -> None:
    flat = [
        {place: json.dumps(value) for place, value in approval._leaves(each, ())} for each in (first, second)
    ]
    assert (flat[0] == flat[1]) == (json.dumps(first, sort_keys=True) == json.dumps(second, sort_keys=True))
