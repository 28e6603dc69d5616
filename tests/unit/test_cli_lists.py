"""What commands list and show of recipes, of the store and of sandboxes."""

from __future__ import annotations

import json
import tomllib
from functools import partial
from typing import TYPE_CHECKING

import pytest

from airlock.cli import run
from airlock_runner.project import Project
from airlock_runner.state import State
from airlock_store.gc import add_project_root
from airlock_store.image import Image, encode_image
from airlock_store.store import Store

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.usefixtures("elsewhere")


def test_recipe_show_prints_what_is_merged_as_toml_that_reads_back(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    packages = [f"package-{number}" for number in range(12)]
    (tmp_path / "parent.toml").write_text(f"[recipe]\nname = 'parent'\n[rootfs]\npackages = {packages}\n")
    (tmp_path / "child.toml").write_text(
        "[recipe]\nname = 'child'\nextends = './parent.toml'\n[rootfs]\npackages = ['\u0062ash']\n"
        '[env]\nA = "\\u001b[2J"\n'
    )
    assert run(["recipe", "show", "./child.toml"]) == 0
    out = capsys.readouterr().out
    assert out.startswith(f"# {tmp_path / 'parent.toml'}\n# {tmp_path / 'child.toml'}\n")
    assert "\x1b" not in out
    shown = tomllib.loads(out)
    assert shown["rootfs"]["packages"] == [*packages, "bash"]
    assert shown["env"] == {"A": "\x1b[2J"}
    assert '\n    "package-0",\n' in out
    assert run(["recipe", "show", "./child.toml", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["recipe"] == shown


def test_recipe_list_finds_mine_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "base.toml").write_text("[recipe]\nname = 'base'\nsummary = \"Mine\\u001b[2J\"\n")
    monkeypatch.setenv("AIRLOCK_RECIPES", str(tmp_path))
    assert run(["recipe", "list"]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert lines[0] == ["NAME", "SUMMARY", "PATH"]
    assert ["base", "Mine\\x1b[2J", str(tmp_path / "base.toml")] in lines


def test_a_broken_path_hides_no_other(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = Store(tmp_path / "store")
    for number in range(3):
        path = store.realise(f"{number}" * 32, f"image-{number}", partial(write_image, f"image-{number}"))
        if number == 1:
            (path / "manifest.json").chmod(0o644)
            (path / "manifest.json").write_text("{")
            (path / "store.json").unlink()
    assert run(["image", "list", "--json"]) == 1
    out, err = capsys.readouterr()
    assert [image["name"] for image in json.loads(out)] == ["image-0", "image-2"]
    assert f"{'1' * 32}-image-1 is not an image" in err
    assert run(["store", "verify"]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert [line.endswith("good") for line in lines] == [True, False, True]
    assert "image-1: not a store path" in lines[1]
    assert run(["store", "verify", "--json"]) == 1
    verified = json.loads(capsys.readouterr().out)
    assert [each["path"].rpartition("-")[2] for each in verified] == ["0", "1", "2"]
    assert [len(each["problems"]) for each in verified] == [0, 1, 0]
    assert run(["store", "verify", "--json", verified[0]["path"]]) == 0
    assert json.loads(capsys.readouterr().out) == verified[:1]


def write_image(name: str, output: Path) -> None:
    for file in ("kernel", "initrd", "rootfs"):
        (output / file).touch()
    texts = {"summary": "", "kernel_release": "6", "rootfs_format": "ext4", "rootfs_key": "0" * 32}
    files = {"kernel": output / "kernel", "initrd": output / "initrd", "rootfs": output / "rootfs"}
    image = Image(path=output, key="0" * 32, name=name, arch="x86_64", **texts, **files)
    (output / "manifest.json").write_bytes(encode_image(image))


def test_an_empty_store_lists_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["store", "path"]) == 0
    assert capsys.readouterr().out == f"{tmp_path / 'store'}\n"
    assert run(["image", "list", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == []
    assert run(["list", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == []
    assert run(["store", "gc"]) == 0
    assert capsys.readouterr().out == "0 paths removed, 0 B freed\n"
    assert run(["store", "verify"]) == 0


def test_a_sandbox_of_which_little_is_known_is_not_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("a", "b"):
        project = Project(tmp_path / name)
        project.root.mkdir()
        project.prepare()
        project.write_state(State("base"))
        add_project_root(Store.open(), project.directory / "image", tmp_path)
    state = tmp_path / "a/.airlock/sandbox/state.json"
    state.write_text("{")
    told = f"{state} is broken: the next start writes it anew, and keeps the disk"
    assert run(["list"]) == 1
    out, err = capsys.readouterr()
    assert [line.split()[:2] for line in out.splitlines()[1:]] == [
        [str(tmp_path / "a"), "broken"], [str(tmp_path / "b"), "stopped"],
    ]  # fmt: skip
    assert err == f"airlock: {told}\n"
    assert run(["list", "--json"]) == 1
    assert [each["trouble"] for each in json.loads(capsys.readouterr().out)] == [told, ""]
    monkeypatch.chdir(tmp_path / "a")
    assert run(["show"]) == 1
    assert f"trouble   {told}\n" in capsys.readouterr().out
    assert run(["show", "--json"]) == 1
    assert json.loads(capsys.readouterr().out)["status"] == "broken"


@pytest.mark.parametrize("words", ["show", "rm", "rm --force"])
def test_a_file_where_the_sandbox_would_be_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], words: str
) -> None:
    (tmp_path / "below").mkdir()
    (tmp_path / "airlock.toml").touch()
    (tmp_path / ".airlock").touch()
    for directory in (tmp_path, tmp_path / "below"):
        monkeypatch.chdir(directory)
        assert run(words.split()) == 1
        assert f"Error: {tmp_path}/.airlock is not a directory\n  hint: remove it" in capsys.readouterr().err
    # What lies above and is no project's is nobody's business.
    (tmp_path / "airlock.toml").unlink()
    assert run(words.split()) == 1
    assert "No project data" in capsys.readouterr().err
