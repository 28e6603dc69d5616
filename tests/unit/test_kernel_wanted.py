"""Fragments and what becomes of them: each option knows its line, and lines that disagree are found."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airlock_builder.kernel.fragments import render
from airlock_builder.kernel.wanted import Asked, KernelRequest, Override, wanted_options
from airlock_store.errors import ConfigError, Location

VARIABLES: dict[str, object] = {
    "arch": "x86_64",
    "version": (6, 12),
    "features": frozenset({"sandbox"}),
    "provider": "compiled",
}
TEMPLATE = """\
{# What it is for,
   in two lines. #}
# A comment of the config
CONFIG_A=y
{% if version >= (6, 17) %}
CONFIG_NEW=y
{% else %}

CONFIG_OLD=y
{% endif %}
{% for name in ["P",
                "Q"] %}
CONFIG_{{ name }}=y
{% endfor %}
{% if "docker" in features or arch == "aarch64" %}
CONFIG_NO=y
{% endif %}
  {% set size = 64 %}
CONFIG_SIZE={{ size }}
# CONFIG_B is not set
CONFIG_TEXT="{{ provider }}\""""


def lines(source: str, **variables: object) -> list[tuple[str, str, int]]:
    return [
        (line.option, line.value, line.number) for line in render("test", source, {**VARIABLES, **variables})
    ]


def test_every_option_knows_its_line() -> None:
    expected = [
        ("A", "y", 4),
        ("OLD", "y", 9),
        ("P", "y", 13),
        ("Q", "y", 13),
        ("SIZE", "64", 19),
        ("B", "n", 20),
        ("TEXT", '"compiled"', 21),
    ]
    assert lines(TEMPLATE) == expected
    assert ("NEW", "y", 6) in lines(TEMPLATE, version=(6, 18))
    assert ("NO", "y", 16) in lines(TEMPLATE, features=frozenset({"docker"}))
    assert render("test", TEMPLATE, VARIABLES)[0].place == "test.config.j2:4"


@given(
    st.lists(
        st.sampled_from(
            ["CONFIG_X{}=y", "# CONFIG_X{} is not set", "# text", "", "{{% if true %}}{{% endif %}}"]
        )
    )
)
def test_lines_are_counted_right(templates: list[str]) -> None:
    source = "\n".join(template.format(number) for number, template in enumerate(templates, 1))
    assert [(option, number) for option, _, number in lines(source)] == [
        (f"X{number}", number) for number, template in enumerate(templates, 1) if "CONFIG" in template
    ]


@pytest.mark.parametrize(
    ("source", "line", "message"),
    [
        ("\nCONFIG_A={{ nobody }}", 2, "'nobody' is undefined"),
        ("\n\n{% if versoin > (6, 1) %}{% endif %}", 3, "'versoin' is undefined"),
        ("\n{% if %}", 2, "not a template"),
        ("CONFIG_A=y\n{% endfor %}", 2, "not a template"),
        ("\n{{ version + 1 }}", 2, "the template fails"),
        ("\n\nFOO=y", 3, "'FOO=y' is not an option"),
        ("\nCONFIG_A=yes", 2, "'yes' is not a value"),
        ("CONFIG_A=y\nCONFIG_B=m", 2, "have no modules"),
        ("CONFIG_A=y\x1f7", 0, "0x1f"),
    ],
)
def test_what_is_wrong_in_a_fragment(source: str, line: int, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        render("test", source, VARIABLES)
    assert caught.value.at is not None
    assert (caught.value.at.path, caught.value.at.line) == (Path("test.config.j2"), line)


def request(features: dict[str, tuple[str, ...]], sources: dict[str, str], **options: str) -> KernelRequest:
    overrides = {
        name: Override(value, Location(Path("dir/mine.toml"), 7, 3)) for name, value in options.items()
    }
    return KernelRequest("compiled", "x86_64", (6, 12), features, sources, overrides)


SOURCES = {"one": "CONFIG_A=y\nCONFIG_B=y\n", "two": "\nCONFIG_A=y\n# CONFIG_B is not set\n"}


def test_who_asked() -> None:
    wanted = wanted_options(request({"f": ("one",), "g": ("one",)}, {"one": SOURCES["one"]}, C="42"))
    assert list(wanted) == ["A", "B", "C"]
    assert wanted["A"].asked == (Asked("y", "f", "one.config.j2:1"), Asked("y", "g", "one.config.j2:1"))
    assert str(wanted["A"].by) == "g (one.config.j2:1)"
    assert (wanted["C"].value, str(wanted["C"].by)) == ("42", "the recipe (mine.toml:7)")


def test_lines_that_disagree_are_both_named() -> None:
    with pytest.raises(ConfigError) as caught:
        wanted_options(request({"f": ("one",), "g": ("two",)}, SOURCES))
    message = caught.value.message
    assert message == "CONFIG_B: f (one.config.j2:2) asks for y, g (two.config.j2:3) for n"
    assert caught.value.hint == 'Decide in the recipe: [kernel.options] B = "y"'


@pytest.mark.parametrize("value", ["y", "n"])
def test_the_recipe_decides(value: str) -> None:
    wanted = wanted_options(request({"f": ("one",), "g": ("two",)}, SOURCES, B=value))["B"]
    assert wanted.value == value
    assert str(wanted.by) == "the recipe (mine.toml:7)"
    assert {asked.value for asked in wanted.asked} == {"y", "n"}
    assert wanted.asked[0].value != value


def test_one_fragment_that_disagrees_with_itself() -> None:
    with pytest.raises(ConfigError, match=r"f \(a.config.j2:1\) asks for y, f \(a.config.j2:2\) for n"):
        wanted_options(request({"f": ("a",)}, {"a": "CONFIG_A=y\n# CONFIG_A is not set"}))


@pytest.mark.parametrize(
    "change",
    [
        {"provider": "debian"},
        {"arch": "aarch64"},
        {"version": (6, 13)},
        {"features": {"g": ("one",)}},
        {"features": {"f": ("one", "one")}},
        {"sources": {"one": "CONFIG_A=n"}},
        {"options": {"A": Override("y", Location(Path("x")))}},
        {"modules": "[modules]\nA = []"},
        {"waivers": "x"},
    ],
)
def test_what_counts_in_a_key(change: dict[str, Any]) -> None:
    from dataclasses import replace

    one = request({"f": ("one",)}, {"one": SOURCES["one"]})
    assert replace(one, **change).parameters() != one.parameters()


def test_where_it_is_written_does_not_count_in_a_key() -> None:
    one = request({"f": ("one",)}, {"one": ""}, A="y")
    moved = KernelRequest(
        one.provider,
        one.arch,
        one.version,
        one.features,
        one.sources,
        {"A": Override("y", Location(Path("b"), 9, 1))},
    )
    assert moved.parameters() == one.parameters()
