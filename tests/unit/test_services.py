"""What an image brings: from its recipe into its manifest, and under a project's config."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airlock_builder.recipe import load_recipe
from airlock_runner.config import configured_image, load_config
from airlock_runner.config.layers import image_layer
from airlock_runner.daemons import asked
from airlock_runner.mounts import settle
from airlock_store.document import Document
from airlock_store.errors import ConfigError
from airlock_store.services import brought, lay

if TYPE_CHECKING:
    from airlock_runner.config import ProjectConfig

EXAMPLE = Path(__file__).parents[2] / "examples" / "docker"
MANIFEST = Path("/store/image/manifest.json")
BRINGS: dict[str, Any] = {
    "daemons": {
        "dockerd": {
            "command": ["dockerd", "-D"],
            "harden": False,
            "timeout": 60,
            "env": {"PRICE": "${HOME} $5"},
            "ready": {"command": ["docker", "info"]},
        }
    },
    "disk": {"bind": {"docker": {"path": "/var/lib/docker"}}},
}


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project, of a user without a config."""
    monkeypatch.setenv("HOME", os.fspath(tmp_path / "home"))
    (tmp_path / "project").mkdir()
    return tmp_path / "project"


def load(root: Path, text: str, brings: dict[str, Any] = BRINGS) -> ProjectConfig:
    (root / "airlock.toml").write_text(text)
    return load_config(root, {}.get, under=image_layer(brings, MANIFEST))


def test_a_project_that_says_nothing_has_what_the_image_brings(root: Path) -> None:
    config = load(root, "")
    (daemon,) = asked(config.daemons)
    assert (daemon["command"], daemon["harden"], daemon["timeout"]) == (("dockerd", "-D"), False, 60.0)
    assert daemon["ready"] == ("command", ("docker", "info"))
    # The image's word, not a reference to something of the host.
    assert daemon["env"] == {"PRICE": "${HOME} $5"}
    assert settle(config, root).places[-1] == {
        "kind": "bind",
        "target": "/var/lib/docker",
        "directory": "docker",
    }


def test_the_project_has_the_last_word_key_by_key(root: Path) -> None:
    text = """
        [daemons.dockerd]
        harden = true
        command = ["/bin/other"]
        ready = { tcp = 80 }
        env = { MORE = "1" }
        [daemons.web]
        command = ["web"]
        after = ["dockerd"]
        [disk.bind.docker]
        path = "/data"
        """
    config = load(root, text)
    dockerd, web = asked(config.daemons)
    assert (dockerd["command"], dockerd["harden"], dockerd["timeout"]) == (("/bin/other",), True, 60.0)
    assert dockerd["ready"] == ("tcp", 80)
    assert dockerd["env"] == {"PRICE": "${HOME} $5", "MORE": "1"}
    assert web["after"] == ("dockerd",)
    assert config.disk.bind["docker"].path == "/data"


def test_what_the_image_brings_can_be_switched_off(root: Path) -> None:
    config = load(root, "[daemons.dockerd]\nenabled = false\n[disk.bind.docker]\nenabled = false\n")
    assert (config.daemons, config.disk.bind) == ({}, {})


def test_an_image_brings_nothing_else(root: Path) -> None:
    brings = {
        **BRINGS,
        "mounts": {"home": {"source": "/", "target": "/host"}},
        "vm": {"harden": False},
        "env": {"A": "${SECRET}"},
        "disk": {"size": "1 TB", "cache": {"c": {"paths": ["/x"]}}},
    }
    assert load(root, "", brings) == replace(load(root, ""), disk=replace(load(root, "").disk, bind={}))


@pytest.mark.parametrize(
    ("brings", "message"),
    [
        ({"daemons": {"a": {}}}, "missing key 'command' in [daemons.a]"),
        ({"daemons": {"a": {"command": ["x"], "sorry": 1}}}, "unknown key 'sorry'"),
        ({"daemons": []}, "'daemons': expected a table"),
        ({"daemons": {"../a": {"command": ["x"]}}}, "is not a name"),
        ({"disk": {"bind": {"a": {"path": "/proc/x"}}}}, "nothing can be mounted at '/proc/x'"),
        ({"disk": {"bind": {"..": {"path": "/x"}}}}, "is not a name"),
    ],
)
def test_a_bad_image_is_told_by_its_manifest(root: Path, brings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load(root, "", brings)
    assert str(caught.value).startswith(f"{MANIFEST}: ")
    assert message in caught.value.message


ANY = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=10,
)
KEYS = st.sampled_from(["daemons", "disk", "bind", "a", "command", "env", "ready", "path"])


@given(st.dictionaries(KEYS, st.dictionaries(KEYS, st.dictionaries(KEYS, ANY) | ANY) | ANY))
def test_whatever_a_manifest_says_is_a_config_or_an_error(
    tmp_path_factory: pytest.TempPathFactory, brings: dict[str, Any]
) -> None:
    empty = tmp_path_factory.getbasetemp()
    try:
        load_config(empty, {}.get, under=image_layer(brings, MANIFEST))
    except ConfigError as error:
        assert str(error).startswith((f"{MANIFEST}", f"{empty}"))


def test_the_image_that_a_project_asks_for(root: Path) -> None:
    assert configured_image(root) is None
    (root / "airlock.toml").write_text('[vm]\nimage = "mine"\n[daemons.dockerd]\nharden = true\n')
    assert configured_image(root) == "mine"
    # By itself, the config lacks what the image has to say.
    with pytest.raises(ConfigError, match="missing key 'command'"):
        load_config(root)


def test_recipes_hand_it_on(tmp_path: Path) -> None:
    (tmp_path / "one.toml").write_text(
        """
        [recipe]
        name = "one"
        [disk.bind.docker]
        path = "/var/lib/docker"
        [daemons.dockerd]
        command = ["dockerd", "-D"]
        ready = { socket = "/run/docker.sock" }
        after = ["containerd"]
        [daemons.containerd]
        command = ["containerd"]
        """
    )
    (tmp_path / "two.toml").write_text(
        """
        [recipe]
        name = "two"
        extends = "./one.toml"
        [daemons.dockerd]
        command = ["other"]
        ready = { command = ["docker", "info"] }
        after = ["more"]
        """
    )
    loaded = load_recipe("./two.toml", tmp_path)
    assert loaded.recipe.daemons["dockerd"].command == ("other",)
    assert brought(loaded.document) == {
        "disk": {"bind": {"docker": {"path": "/var/lib/docker"}}},
        "daemons": {
            "dockerd": {
                "command": ["other"],
                "ready": {"command": ["docker", "info"]},
                "after": ["containerd", "more"],
            },
            "containerd": {"command": ["containerd"]},
        },
    }


def test_the_example_of_docker_has_the_shipped_daemon_and_what_its_images_are_made_of(root: Path) -> None:
    text = (EXAMPLE / "airlock.toml").read_text()
    (root / "airlock.toml").write_text(text)
    image = configured_image(root)
    assert image is not None
    loaded = load_recipe(image, EXAMPLE)
    assert {"docker.io", "docker-compose", "docker-buildx", "busybox-static"} <= set(
        loaded.recipe.rootfs.packages
    )
    config = load(root, text, brought(loaded.document))
    assert (config.daemons["dockerd"].harden, config.disk.bind["docker"].path) == (False, "/var/lib/docker")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[daemons.a]\n", "missing key 'command' in [daemons.a]"),
        ("[daemons.a]\ncommand = ['x']\nready = {}\n", "exactly one of command, socket, tcp and log"),
        ("[disk.bind.a]\npath = 'x'\n", "neither absolute"),
        ("[disk.bind.'a b']\npath = '/x'\n", "is not a name"),
        ("[disk]\nsize = '1 GB'\n", "unknown key 'size'"),
    ],
)
def test_a_recipe_is_checked_when_it_is_read(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "bad.toml").write_text(f'[recipe]\nname = "bad"\n{text}')
    with pytest.raises(ConfigError) as caught:
        load_recipe("./bad.toml", tmp_path)
    assert message in str(caught.value)
    assert "bad.toml:" in str(caught.value)


def test_laying_changes_neither_document() -> None:
    base = Document({"daemons": {"a": {"command": ["x"]}}}, Path("base"))
    over = Document({"daemons": {"a": {"command": ["y"]}}}, Path("over"))
    assert lay(base, over).data == {"daemons": {"a": {"command": ["y"]}}}
    assert base.data == {"daemons": {"a": {"command": ["x"]}}}
    assert brought(Document({"daemons": {}, "disk": {"bind": {}}}, Path("none"))) == {}
