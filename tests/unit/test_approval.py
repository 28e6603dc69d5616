"""The config that a sandbox may have changed: what counts as a change, what is remembered, what is shown."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airlock_runner import approval
from airlock_runner.project import Project
from airlock_store.errors import ConfigError

if TYPE_CHECKING:
    from pathlib import Path

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
        "- airlock.toml: content of vm.initrd",
        "+ airlock.toml: content of vm.initrd",
    ]
    assert sum(key.startswith("airlock.toml: content of") for key in before) == 3


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
