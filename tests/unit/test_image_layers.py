"""What an image brings and suggests, as `airlock config show` and `image inspect` print it."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, Any

import pytest

from airlock.cli import run
from airlock_store.image import Image, VmDefaults, encode_image
from airlock_store.sizes import GIB
from airlock_store.store import Store

if TYPE_CHECKING:
    from pathlib import Path

RECIPE = """\
[recipe]
name = "big"
[vm]
memory = "512 GB"
harden = false
command = ["sh"]
[env]
PRICE = "$5"
[daemons.web]
command = [
    "httpd",
    "-f",
]
env = { A = "${B}" }
[disk.bind.www]
path = "/var/www"
"""
BRINGS: dict[str, Any] = {
    "daemons": {
        "web": {"command": ["httpd", "a b"], "env": {"A": "$B"}},
        "off": {"command": ["x"], "enabled": False},
    },
    "disk": {"bind": {"www": {"path": "/var/www"}}},
}


@pytest.fixture(autouse=True)
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The directory in which airlock runs, of a user without a config."""
    root = tmp_path / "project"
    root.mkdir()
    monkeypatch.chdir(root)
    monkeypatch.setenv("HOME", os.fspath(tmp_path / "home"))
    monkeypatch.setenv("AIRLOCK_STORE", os.fspath(tmp_path / "store"))
    return root


def store_image(tmp_path: Path, brings: dict[str, Any] = BRINGS) -> Path:
    def write(output: Path) -> None:
        for file in ("kernel", "initrd", "rootfs"):
            (output / file).touch()
        image = Image(
            path=output, key="0" * 32, name="it", summary="", arch="x86_64", kernel=output / "kernel",
            kernel_release="6", initrd=output / "initrd", rootfs=output / "rootfs", rootfs_format="ext4",
            rootfs_key="0" * 32, vm=VmDefaults(memory=GIB + 1, cpus=3), env={"PRICE": "$5"}, brings=brings,
        )  # fmt: skip
        (output / "manifest.json").write_bytes(encode_image(image))

    return Store(tmp_path / "store").realise("0" * 32, "it", write).path


def shown(capsys: pytest.CaptureFixture[str]) -> dict[tuple[str, ...], tuple[object, str]]:
    """Each setting of `config show` that has a value, with that and its place."""
    assert run(["config", "show", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["settings"]
    return {
        tuple(each["key"]): (each["value"], "{file}:{line}".format(**each["from"]))
        for each in found
        if each["from"]
    }


def test_show_has_what_a_recipe_brings_and_suggests_with_its_lines(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = project / "big.toml"
    recipe.write_text(RECIPE)
    config = project / "airlock.toml"
    config.write_text("[vm]\nimage = './big.toml'\nharden = true\n[daemons.web]\nrestart = 'on-failure'\n")
    assert shown(capsys) == {
        ("vm", "image"): ("./big.toml", f"{config}:2"),
        ("vm", "memory"): ("512 GB", f"{recipe}:4"),
        ("vm", "harden"): (True, f"{config}:3"),
        ("env", "PRICE"): ("$$5", f"{recipe}:8"),
        ("daemons", "web", "command"): (["httpd", "-f"], f"{recipe}:10"),
        ("daemons", "web", "env", "A"): ("$${B}", f"{recipe}:14"),
        ("daemons", "web", "restart"): ("on-failure", f"{config}:5"),
        ("disk", "bind", "www", "path"): ("/var/www", f"{recipe}:16"),
    }
    assert run(["config", "show"]) == 0
    out = capsys.readouterr().out
    assert 'memory = "512 GB"  # big.toml:4\n' in out
    assert '    "-f",  # big.toml:12\n' in out


def test_show_has_what_an_image_of_the_store_has_in_its_manifest(
    tmp_path: Path, project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    manifest = store_image(tmp_path) / "manifest.json"
    (project / "airlock.toml").write_text(f"[vm]\nimage = '{manifest.parent}'\n")
    lines = manifest.read_text().splitlines()
    found = shown(capsys)
    assert found.pop(("vm", "image"))[0] == str(manifest.parent)
    assert {key: value for key, (value, _) in found.items()} == {
        ("vm", "cpus"): 3,
        ("vm", "memory"): f"{GIB + 1} B",
        ("env", "PRICE"): "$$5",
        ("daemons", "web", "command"): ["httpd", "a b"],
        ("daemons", "web", "env", "A"): "$$B",
        ("daemons", "off", "command"): ["x"],
        ("daemons", "off", "enabled"): False,
        ("disk", "bind", "www", "path"): "/var/www",
    }
    for key, (_, at) in found.items():
        file, _, line = at.rpartition(":")
        assert file == str(manifest)
        assert f'"{key[-1]}": ' in lines[int(line) - 1]


def test_show_does_without_an_image_that_cannot_be_read(
    tmp_path: Path, project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    manifest = store_image(tmp_path, {"daemons": []}) / "manifest.json"
    (project / "airlock.toml").write_text(f"[vm]\nimage = '{manifest.parent}'\n")
    assert list(shown(capsys)) == [("vm", "image")]


def test_inspect_has_daemons_and_binds(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    name = store_image(tmp_path).name
    assert run(["image", "inspect", name]) == 0
    facts = dict(line.split(None, 1) for line in capsys.readouterr().out.splitlines())
    assert facts["daemons"] == "web (httpd 'a b')"
    assert facts["binds"] == "www at /var/www"
    assert run(["image", "inspect", name, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["daemons"] == BRINGS["daemons"]
    assert found["binds"] == BRINGS["disk"]["bind"]


def test_inspect_tells_what_is_wrong_in_what_an_image_brings(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = store_image(tmp_path, {"daemons": {"web": {"command": "httpd"}}})
    assert run(["image", "inspect", path.name]) == 2
    assert f"{path}/manifest.json: 'command': " in capsys.readouterr().err


@pytest.mark.parametrize("brings", [{}, {"daemons": None, "disk": None}, {"disk": {"bind": None}}])
def test_an_image_that_brings_nothing_has_neither(
    tmp_path: Path, brings: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    name = store_image(tmp_path, brings).name
    assert run(["image", "inspect", name]) == 0
    assert "daemons" not in (out := capsys.readouterr().out)
    assert "binds" not in out
    assert run(["image", "inspect", name, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["daemons"], found["binds"]) == ({}, {})
