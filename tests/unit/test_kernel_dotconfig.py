"""Kernel configs as text: what is read, and that nothing else is."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airlock_builder.kernel.dotconfig import (
    MAX_CONFIG,
    canonical,
    format_config,
    parse_config,
    parse_line,
)
from airlock_store.errors import ConfigError, Location

PATH = Path("config")
NAMES = st.from_regex(r"[A-Z0-9_]{1,12}", fullmatch=True)
QUOTED = st.text(st.characters(codec="ascii", exclude_categories=["Cc"]), max_size=12).map(
    lambda text: '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'
)
VALUES = (
    st.sampled_from(["y", "m", "n"])
    | st.integers(-(10**18), 10**18).map(str)
    | st.integers(0, 2**64 - 1).map(hex)
    | QUOTED
)
CONFIGS = st.dictionaries(NAMES, VALUES, min_size=1)
# Lines that say nothing. What begins like an option is not among them.
NOISE = st.sampled_from(["", "#", "# Networking support", "# end of Networking support", "  "])


@given(CONFIGS)
def test_what_is_written_is_read_back(options: dict[str, str]) -> None:
    assert parse_config(format_config(options), PATH) == options


@given(CONFIGS, st.lists(NOISE), st.booleans())
def test_comments_and_blank_lines_say_nothing(options: dict[str, str], noise: list[str], crlf: bool) -> None:
    lines = format_config(options).splitlines()
    for number, line in enumerate(noise):
        lines.insert(number * 2, line)
    text = ("\r\n" if crlf else "\n").join(lines)
    assert parse_config(text, PATH) == options


@given(CONFIGS, st.data())
def test_an_option_twice(options: dict[str, str], data: st.DataObject) -> None:
    name = data.draw(st.sampled_from(sorted(options)))
    value = data.draw(VALUES)
    text = format_config(options) + format_config({name: value})
    if value == options[name]:
        assert parse_config(text, PATH) == options
        return
    with pytest.raises(ConfigError, match=f"CONFIG_{name} has two values") as caught:
        parse_config(text, PATH)
    assert caught.value.at == Location(PATH, len(options) + 1, 1)


@given(st.text(max_size=80))
def test_a_line_sets_an_option_or_says_nothing_or_is_refused(line: str) -> None:
    try:
        found = parse_line(line)
    except ValueError:
        return
    if found is None:
        assert "CONFIG_" not in line.partition("#")[0]
        assert not line.strip() or line.startswith("#")
    else:
        assert parse_line(format_config(dict([found])).rstrip("\n")) == found


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("CONFIG_A=y", ("A", "y")),
        ("CONFIG_9P_FS=m", ("9P_FS", "m")),
        ("CONFIG_A=n", ("A", "n")),
        ("# CONFIG_A is not set", ("A", "n")),
        ("CONFIG_A=0X1F", ("A", "0x1f")),
        ("CONFIG_A=007", ("A", "7")),
        ('CONFIG_A="a \\"b\\" # c"', ("A", '"a \\"b\\" # c"')),
        ('CONFIG_A=""', ("A", '""')),
        ("# a comment", None),
    ],
)
def test_lines(line: str, found: tuple[str, str] | None) -> None:
    assert parse_line(line) == found


@pytest.mark.parametrize(
    "line",
    [
        "CONFIG_A", "CONFIG_A=", "CONFIG_A = y", "CONFIG_A=Y", "CONFIG_A=yes", 'CONFIG_A="b', "CONFIG_A=b",
        " CONFIG_A=y", "CONFIG_A=y ", "A=y", "CONFIG_A-B=y", "CONFIG_=y", "# CONFIG_A=y", "#CONFIG_A is not set",
        "# CONFIG_A is not set.", "export CONFIG_A=y", 'CONFIG_A="a"b"', "CONFIG_A=0x",
    ],
)  # fmt: skip
def test_what_only_looks_like_an_option_is_refused(line: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_config(f"CONFIG_B=y\n{line}\n", PATH)
    assert caught.value.at == Location(PATH, 2, 1)


@pytest.mark.parametrize("text", ["", "\n\n", "# nothing\n"])
def test_a_config_without_options(text: str) -> None:
    with pytest.raises(ConfigError, match="has no options"):
        parse_config(text, PATH)


def test_a_config_is_bounded() -> None:
    with pytest.raises(ConfigError, match="larger than"):
        parse_config("CONFIG_A=y\n" + "\n" * MAX_CONFIG, PATH)


@given(VALUES)
def test_a_canonical_value_stays(value: str) -> None:
    assert canonical(value) == value
