"""airlock.toml: what it may say, what it means when it says nothing, and what is refused."""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Mapping
from typing import TYPE_CHECKING

import pytest

from airlock_runner.config import DiskConfig, ProjectConfig, VmConfig, find_config, load_config
from airlock_runner.config.layers import ENTRIES
from airlock_runner.config.model import host_memory, parse_memory
from airlock_runner.config.network_model import (
    NetworkConfig,
    PortPair,
    PortsConfig,
    RuleConfig,
    SocketConfig,
    SocketPair,
)
from airlock_store.errors import ConfigError
from airlock_store.settings import MAX_ENV, check_env
from airlock_store.sizes import GIB, MIB

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture(autouse=True)
def _no_layers_of_the_user(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path_factory.mktemp("home")))


def load(root: Path, text: str) -> ProjectConfig:
    (root / "airlock.toml").write_text(text)
    return load_config(root)


def test_a_full_config(tmp_path: Path) -> None:
    vm = '[vm]\nimage = "base"\ncpus = 3\nmemory = "300 MB"\nharden = false\n'
    text = vm + '[env]\nA = "b=c"\n[disk]\nsize = "1 GB"\n'
    assert load(tmp_path, text) == ProjectConfig(
        vm=VmConfig(image="base", cpus=3, memory=300 * MIB, harden=False),
        env={"A": "b=c"},
        disk=DiskConfig(GIB),
    )


def test_an_empty_config_leaves_everything_to_the_image(tmp_path: Path) -> None:
    config = load(tmp_path, "")
    assert config.vm == VmConfig(image=None, cpus=None, memory=None, harden=None)
    assert config.disk.size == 10 * GIB
    assert config.env == {}


@pytest.mark.parametrize(
    ("text", "place", "said"),
    [
        ("[vm]\nmemory = '255 MB'", "2:1", "'memory': 255 MB is too little for a VM, it needs 256 MB"),
        ("[vm]\nmemory = 1", "2:1", "'memory': expected a size with a unit, such as \"256 MB\", found 1"),
        ("[disk]\nsize = 1", "2:1", "'size': expected a size with a unit, such as \"64 MB\", found 1"),
        ("[vm]\nmemory = '900000 GB'", "2:1", "more than this host has"),
        ("[vm]\ncpus = 0", "2:1", "'cpus': a VM has 1 to 255 CPUs, found 0"),
        ("[vm]\ncpus = true", "2:1", "'cpus': expected an integer, found a boolean"),
        ("[vm]\nimage = ''", "2:1", "'image': expected the name of a recipe"),
        ("[vm]\nhardn = true", "2:1", "unknown key 'hardn' in [vm]"),
        ("[disk]\nsize = '1 MB'", "2:1", "'size': a disk has 64 MB to 16 TB"),
        ("[env]\nA = ''\n'B=C' = ''", "3:1", "'B=C' cannot be the name"),
        ("[env]\n'' = ''", "2:1", "'' cannot be the name"),
        ('[env]\nA = "\\u0000"', "2:1", "the value of 'A' has a NUL"),
        ("[env]\nA = 1", "2:1", "'A': expected a string, found an integer"),
    ],
)
def test_a_wrong_config_is_refused_with_its_place(tmp_path: Path, text: str, place: str, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, text)
    assert str(caught.value).startswith(f"{tmp_path / 'airlock.toml'}:{place}: ")
    assert said in caught.value.message


def test_memory_up_to_what_the_host_has_is_allowed() -> None:
    assert parse_memory(f"{host_memory()} B") == host_memory()
    with pytest.raises(ValueError, match="more than this host"):
        parse_memory(f"{host_memory() + 1} B")


def test_an_environment_variable_fits_into_execve() -> None:
    check_env("A", "x" * (MAX_ENV - 3))
    with pytest.raises(ValueError, match="too long"):
        check_env("A", "x" * (MAX_ENV - 2))


def test_a_config_is_found_even_when_it_cannot_be_read(tmp_path: Path) -> None:
    assert find_config(tmp_path) is None
    (tmp_path / "airlock.toml").symlink_to("nowhere")
    assert find_config(tmp_path) == tmp_path / "airlock.toml"
    with pytest.raises(ConfigError, match="No such file"):
        load_config(tmp_path)


def test_a_network(tmp_path: Path) -> None:
    text = (
        '[network]\npolicy = "deny-by-default"\ndenied_names = "nxdomain"\n'
        '[network.rules.web]\nallow = ["*.example.com:443"]\ndeny = ["10.0.0.0/8"]\n'
        "[network.rules.off]\nenabled = false\n"
        '[network.hosts]\na = "10.0.0.1"\nb = ["::1", "1.2.3.4"]\n'
        '[network.ports.db]\nhost = [5432, "9000:3000"]\nguest = ["5000:4000"]\n'
        '[network.sockets.docker]\nhost = "~/docker.sock:/run/docker.sock"\n'
        '[network.sockets.x]\nhost = "/run/x"\n'
    )
    assert load(tmp_path, text).network == NetworkConfig(
        policy="deny-by-default",
        denied_names="nxdomain",
        rules={"web": RuleConfig(("*.example.com:443",), ("10.0.0.0/8",))},
        hosts={"a": "10.0.0.1", "b": ("::1", "1.2.3.4")},
        ports={"db": PortsConfig((PortPair(5432, 5432), PortPair(9000, 3000)), (PortPair(5000, 4000),))},
        sockets={
            "docker": SocketConfig(SocketPair("~/docker.sock", "/run/docker.sock")),
            "x": SocketConfig(SocketPair("/run/x", "/run/x")),
        },
    )


@pytest.mark.parametrize(
    ("text", "place", "said"),
    [
        ("[network]\npolicy = 'allow'", "2:1", "'policy': expected one of 'allow-always'"),
        ("[network]\npolcy = 'x'", "2:1", "unknown key 'polcy' in [network]"),
        ("[network.rules.a]\nalow = []", "2:1", "unknown key 'alow' in [network.rules.a]"),
        ("[network.rules.a]\nallow = ['a*']", "2:10", "'allow': 'a*': '*' stands alone"),
        ("[network.rules.a]\nallow = 'a'", "2:1", "'allow': expected an array"),
        ("[network.rules.a]\nallow = [1]", "2:10", "'allow': expected a string"),
        ("[network.rules.'a b']\nallow = []", "1:16", "'a b' is not a name"),
        ("[network.hosts]\na = '1.2.3'", "2:1", "'1.2.3' does not appear to be"),
        ("[network.hosts]\na = []", "2:1", "'a' has no address"),
        ("[network.hosts]\na = 1", "2:1", "'a': expected a string or an array, found an integer"),
        ("[network.hosts]\n'a b' = '1.2.3.4'", "2:1", "'a b' is not a host name"),
        ("[network.hosts]\n'1.2.3.4' = '1.2.3.4'", "2:1", "'1.2.3.4' is an address"),
        ("[network.hosts]\n'::1' = '1.2.3.4'", "2:1", "'::1' is an address"),
        ("[network.ports.a]\nhost = [0]", "2:9", "'host': 0 is not a port"),
        ("[network.ports.a]\nhost = ['1:70000']", "2:9", "'host': 70000 is not a port"),
        ("[network.ports.a]\nguest = ['1-2']", "2:10", "two ports are written"),
        ("[network.ports.a]\nguest = [true]", "2:10", "'guest': expected a port"),
        ("[network.sockets.a]\n", "1:18", "missing key 'host'"),
        ("[network.sockets.a]\nhost = 'x.sock'", "2:1", "'x.sock' is not the path of a socket"),
        ("[network.sockets.a]\nhost = '/a:'", "2:1", "expected a path"),
        ("[network.sockets.a]\nhost = '/a:/b/../c'", "2:1", "without '..'"),
        ("[network.sockets.a]\nhost = '~bob/a'", "2:1", "only one's own home"),
        ("[network.sockets.a]\nhost = '/a:b'", "2:1", "'b' is not the path of a socket"),
        (
            "[network.sockets.a]\nhost = '/a:/./proc//a'",
            "2:1",
            "no socket can be at '/./proc//a' in the sandbox",
        ),
        ("[network.sockets.a]\nhost = '/sys/a'", "2:1", "no socket can be at '/sys/a' in the sandbox"),
        ("[network.sockets.a]\nhost = '/a:/airlock/disk/a'", "2:1", "no socket can be at '/airlock/disk/a'"),
        ("[network.sockets.a]\nhost = '/a:/.'", "2:1", "no socket can be at '/.' in the sandbox"),
        ("[network.sockets.a]\nhost = '/a:~/.'", "2:1", "no socket can be at '~/.' in the sandbox"),
        (f"[network.sockets.a]\nhost = '/a:/{'é' * 53}x'", "2:1", "has at most 107 bytes, this has 108"),
        (f"[network.sockets.a]\nhost = '/a:~/{'x' * 107}'", "2:1", "has at most 107 bytes, this has 108"),
        (f"[network.sockets.a]\nhost = '/{'x' * 107}'", "2:1", 'as in "HOST:/run/NAME.sock"'),
    ],
)
def test_a_wrong_network_is_refused_with_its_place(tmp_path: Path, text: str, place: str, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, text)
    assert str(caught.value).startswith(f"{tmp_path / 'airlock.toml'}:{place}: ")
    assert said in caught.value.message


def named_tables(cls: type, place: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], type]]:
    """The tables of the schema whose keys are names and whose entries are tables."""
    for field, hint in typing.get_type_hints(cls, localns={"Mapping": Mapping}).items():
        here = (*place, field)
        if dataclasses.is_dataclass(hint):
            yield from named_tables(typing.cast("type", hint), here)
        elif typing.get_origin(hint) is Mapping and dataclasses.is_dataclass(typing.get_args(hint)[1]):
            yield here, typing.get_args(hint)[1]


def test_every_named_entry_can_be_switched_off(tmp_path: Path) -> None:
    tables = dict(named_tables(ProjectConfig))
    assert set(tables) == set(ENTRIES)
    for place, entry in tables.items():
        (switch,) = [field for field in dataclasses.fields(entry) if field.name == "enabled"]
        assert switch.default is True
        header = ".".join((*place, "x"))
        # What one lacks that is off is no error.
        config = load(tmp_path, f"[{header}]\nenabled = false\n")
        for key in place:
            config = getattr(config, key)
        assert config == {}
