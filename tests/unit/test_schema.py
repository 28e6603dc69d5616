"""Decoding a document into dataclasses: what is accepted, and what is said about what is not."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import pytest

from airlock_store.document import Document, merge, parse_toml
from airlock_store.errors import ConfigError
from airlock_store.schema import check, decode
from airlock_store.sizes import GIB, parse_size

if TYPE_CHECKING:
    from collections.abc import Mapping


class Format(StrEnum):
    EXT4 = "ext4"
    EROFS = "erofs"


@dataclass(frozen=True, slots=True)
class Vm:
    memory: int | None = field(default=None, metadata={"parse": parse_size, "doc": "Memory of the VM."})
    cpus: int = 1
    harden: bool = True
    command: tuple[str, ...] = ("bash",)


@dataclass(frozen=True, slots=True)
class File:
    text: str
    mode: int = 0o644

    def __post_init__(self) -> None:
        if self.mode < 0:
            raise ValueError("a mode is not negative")


@dataclass(frozen=True, slots=True)
class Recipe:
    name: str
    vm: Vm = field(default_factory=Vm)
    format: Format = Format.EXT4
    backend: Literal["mmdebstrap", "oci"] = "mmdebstrap"
    env: Mapping[str, str] = field(default_factory=dict)
    files: Mapping[str, str | File] = field(default_factory=dict)
    many: tuple[File, ...] = ()
    kind: str = field(default="", metadata={"key": "type"})
    rest: Any = None


def read(text: str) -> Recipe:
    return decode(parse_toml(text, Path("r.toml")), Recipe)


def problems(text: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        read(text)
    return str(caught.value).splitlines()


def test_every_supported_type_is_decoded() -> None:
    recipe = read(
        """
        name = "base"
        format = "erofs"
        backend = "oci"
        type = "t"
        rest = [1, {a = true}]
        [vm]
        memory = "1.5 GiB"
        cpus = 2
        harden = false
        command = ["sh", "-l"]
        [env]
        A = "1"
        [files]
        "/a" = "inline"
        "/b" = { text = "b", mode = 0o755 }
        [[many]]
        text = "m"
        """
    )
    assert recipe == Recipe(
        name="base",
        vm=Vm(memory=GIB * 3 // 2, cpus=2, harden=False, command=("sh", "-l")),
        format=Format.EROFS,
        backend="oci",
        env={"A": "1"},
        files={"/a": "inline", "/b": File("b", 0o755)},
        many=(File("m"),),
        kind="t",
        rest=[1, {"a": True}],
    )
    assert recipe.format is Format.EROFS


def test_defaults_fill_what_is_left_out() -> None:
    assert read('name = "x"\n') == Recipe("x")


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("[vm]\nmemmory = '1 GB'", "r.toml:3:1: unknown key 'memmory' in [vm]"),
        ("vmm = 1", "r.toml:2:1: unknown key 'vmm' at the top level"),
        ("[[many]]\ntext = ''\nx = 1", "r.toml:4:1: unknown key 'x' in [[many]]"),
        ("vm.cpus = true", "r.toml:2:4: 'cpus': expected an integer, found a boolean"),
        ("vm.harden = 1", "r.toml:2:4: 'harden': expected a boolean, found an integer"),
        ("vm = []", "r.toml:2:1: 'vm': expected a table, found an array"),
        ("vm.command = ['a', 1]", "r.toml:2:20: 'command': expected a string, found an integer"),
        ("vm.command = 'a'", "r.toml:2:4: 'command': expected an array, found a string"),
        ("env.A = 2020-01-01", "r.toml:2:5: 'A': expected a string, found a date or time"),
        ("files.'/a' = 1.5", "r.toml:2:7: '/a': expected a string or a table, found a float"),
        ("format = 'ext'", "r.toml:2:1: 'format': expected one of 'ext4', 'erofs', found 'ext'"),
        ("backend = 'x'", "r.toml:2:1: 'backend': expected one of 'mmdebstrap', 'oci', found 'x'"),
        (
            "vm.memory = 'x'",
            "r.toml:2:4: 'memory': expected a size with a unit, such as \"512 MB\", found 'x'",
        ),
        ("[[many]]", "r.toml:2:3: missing key 'text' in [[many]]"),
        ("many = [{text = '', mode = -1}]", "r.toml:2:9: a mode is not negative"),
        ('"\\n" = 1', "r.toml:2:1: unknown key '\\n' at the top level"),
    ],
)
def test_a_problem_says_what_and_where(line: str, said: str) -> None:
    assert problems(f"name = 'x'\n{line}\n") == [said]


def test_the_nearest_valid_key_is_suggested() -> None:
    with pytest.raises(ConfigError) as caught:
        read("name = 'x'\n[vm]\nMemmory = '1 GB'\n")
    assert caught.value.hint == "did you mean 'memory'?"
    with pytest.raises(ConfigError) as caught:
        read("name = 'x'\n[vm]\nqqq = 1\n")
    assert caught.value.hint == "valid keys: memory, cpus, harden, command"


def test_all_problems_are_told_in_the_order_of_their_places() -> None:
    text = "type = 1\n[vm]\nharden = 'no'\nx = 1\ncpus = []\n[env]\nB = 1\n"
    assert [line.partition(": ")[0] for line in problems(text)] == [
        "r.toml",  # the missing name has no place of its own
        *[f"r.toml:{place}" for place in ("1:1", "3:1", "4:1", "5:1", "7:1")],
    ]


def test_problems_of_merged_documents_name_the_right_file() -> None:
    base = parse_toml("name = 'x'\nvm.command = [1]\n", Path("base.toml"))
    over = parse_toml("vm.command = [2]\n", Path("over.toml"))
    with pytest.raises(ConfigError) as caught:
        decode(merge(base, over), Recipe)
    assert str(caught.value).splitlines() == [
        "base.toml:2:15: 'command': expected a string, found an integer",
        "over.toml:1:15: 'command': expected a string, found an integer",
    ]


def test_names_and_values_of_a_table_are_told_each_though_others_are_wrong() -> None:
    def divide(_name: str, number: int) -> None:
        if not number:
            raise ValueError("zero")

    def name(text: str) -> None:
        if text == "bad":
            raise ValueError(f"{text} is a bad name")

    @dataclass(frozen=True, slots=True)
    class Table:
        entries: Mapping[str, int] = field(default_factory=dict, metadata={"names": name, "each": divide})

    document = Document({"entries": {"a": "x", "b": 0, "bad": None, "c": 1}}, Path("r.toml"))
    said = [problem.message for problem in check(document, Table)]
    assert said == ["'a': expected an integer, found a string", "zero", "bad is a bad name"]
