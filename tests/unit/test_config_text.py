"""Config files in JSON and YAML: what they say, where each thing is, and what is refused at its place."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from airlock_runner.config.files import read_config
from airlock_runner.config.json_text import parse_json
from airlock_runner.config.yaml_text import parse_yaml
from airlock_store.document import MAX_DEPTH, Place
from airlock_store.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable

    from airlock_store.document import Document

HERE = Path("some.file")

TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=6)
SCALARS = st.none() | st.booleans() | st.integers(-(10**9), 10**9) | TEXTS
VALUES = st.recursive(
    SCALARS, lambda each: st.lists(each, max_size=3) | st.dictionaries(TEXTS, each, max_size=3), max_leaves=12
)
TABLES = st.dictionaries(TEXTS, VALUES, max_size=4)
BLANKS = st.sampled_from(["", " ", "\n", "\n\t ", "\r\n"])


def write(
    value: Any, place: Place, blank: Callable[[], str], out: list[str], where: dict[Place, int]
) -> None:
    """`value` as JSON with whatever blanks, and the offset of every key and element."""
    if not isinstance(value, dict | list):
        out.append(json.dumps(value))
        return
    out.append("{" if isinstance(value, dict) else "[")
    pairs = value.items() if isinstance(value, dict) else enumerate(value)
    for number, (key, child) in enumerate(pairs):
        out.append("," * (number > 0) + blank())
        where[(*place, key)] = sum(map(len, out))
        if isinstance(value, dict):
            out.append(json.dumps(key) + blank() + ":" + blank())
        write(child, (*place, key), blank, out, where)
        out.append(blank())
    out.append("}" if isinstance(value, dict) else "]")


@given(TABLES, st.data())
def test_json_says_what_json_says_and_knows_where(table: dict[str, Any], data: st.DataObject) -> None:
    out: list[str] = []
    where: dict[Place, int] = {}
    write(table, (), lambda: data.draw(BLANKS), out, where)
    text = "".join(out)
    document = parse_json(text, HERE)
    assert document.data == table == json.loads(text)
    assert set(document.where) == set(where)
    for place, offset in where.items():
        before = text[:offset]
        expected = (before.count("\n") + 1, offset - (before.rfind("\n") + 1) + 1)
        assert (document.where[place].line, document.where[place].column) == expected


@given(TABLES, st.booleans())
def test_yaml_says_what_was_dumped_and_has_a_place_for_everything(table: dict[str, Any], flow: bool) -> None:
    class Plain(yaml.SafeDumper):
        """Aliases for equal objects are no part of what a config may be."""

        def ignore_aliases(self, data: object) -> bool:
            return True

    # PyYAML writes version 1.1, in which 0E0 needs no quotes.
    Plain.add_representer(
        str, lambda dumper, text: dumper.represent_scalar("tag:yaml.org,2002:str", text, style='"')
    )
    text = yaml.dump(table, Dumper=Plain, default_flow_style=flow)
    document = parse_yaml(text, HERE)
    assert document.data == table
    lines = text.split("\n")
    for place, at in document.where.items():
        assert place[0] in table
        assert 1 <= at.line <= len(lines)


def test_yaml_places_are_those_of_keys_and_elements() -> None:
    document = parse_yaml("# x\nvm:\n  cpus: 2\n  'memory': 1 GB\nlist:\n- a\n- {é: 1, b: [c]}\n", HERE)
    assert {place: (at.line, at.column) for place, at in document.where.items()} == {
        ("vm",): (2, 1),
        ("vm", "cpus"): (3, 3),
        ("vm", "memory"): (4, 3),
        ("list",): (5, 1),
        ("list", 0): (6, 3),
        ("list", 1): (7, 3),
        ("list", 1, "é"): (7, 4),
        ("list", 1, "b"): (7, 10),
        ("list", 1, "b", 0): (7, 14),
    }


@pytest.mark.parametrize(
    ("word", "value"),
    [
        ("no", "no"), ("on", "on"), ("true", True), ("False", False), ("~", None), ("", None), ("null", None),
        ("12", 12), ("-3", -3), ("0755", 755), ("0x1F", 31), ("0o17", 15), ("1_000", "1_000"), ("1:30", "1:30"),
        ("1.5", 1.5), (".5", 0.5), ("1e3", 1000.0), ("-.inf", float("-inf")), ("2G", "2G"), ("'12'", "12"),
        ('"true"', "true"), ("2020-01-01", "2020-01-01"), ("1.2.3", "1.2.3"), ("=", "="), ("9" * 400, "9" * 400),
    ],
)  # fmt: skip
def test_a_yaml_scalar_is_what_version_1_2_says(word: str, value: object) -> None:
    found = parse_yaml(f"a: {word}\n", HERE).data["a"]
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize("text", ["", "# only a remark\n", "---\n", "{}", "null\n"])
def test_an_empty_yaml_is_an_empty_table(text: str) -> None:
    assert parse_yaml(text, HERE).data == {}


@pytest.mark.parametrize(
    ("parse", "text", "said"),
    [
        (parse_json, "", "some.file:1:1: not valid JSON: expecting value"),
        (parse_json, '{"a": 1,\n "b" 2}', "some.file:2:6: not valid JSON: expecting ':' delimiter"),
        (parse_json, '{"a": 1} x', "some.file:1:10: not valid JSON: extra data"),
        (parse_json, '{"a": NaN}', "some.file: not valid JSON: NaN is not a number in JSON"),
        (parse_json, "[1]", "some.file:1:1: expected an object"),
        (parse_json, '{"a": 1,\n"\\u0061": 2}', "some.file:2:1: the key 'a' is here twice"),
        (parse_json, '{"a": "\\ud800"}', "some.file:1:7: half of a surrogate pair"),
        (parse_json, '{"a": ' + "[" * 99_999, "some.file: not valid JSON: "),
        (parse_json, '{"a":' * 40 + "1" + "}" * 40, f"nested more than {MAX_DEPTH} deep"),
        (parse_yaml, "a: [", "some.file:1:5: not valid YAML: "),
        (parse_yaml, "a: 1\n\tb: 2", "some.file:2:1: not valid YAML: "),
        (parse_yaml, "b: 1\na: \x01", "some.file:2:4: not valid YAML: special characters are not allowed"),
        (parse_yaml, "- 1", "some.file:1:1: expected a mapping"),
        (parse_yaml, "a: 1\n---\nb: 2", "some.file:2:1: more than one document"),
        (parse_yaml, "a: 1\nb: 2\na: 3", "some.file:3:1: the key 'a' is here twice"),
        (parse_yaml, "a: &x 1\nb: *x", "some.file:1:4: anchors and aliases"),
        (parse_yaml, "b: *x", "some.file:1:4: anchors and aliases"),
        (parse_yaml, "a: !!python/object:os.system x", "some.file:1:4: tags are not for config files"),
        (parse_yaml, "? [a]\n: 1", "some.file:1:3: expected a plain key"),
        (parse_yaml, 'a: "\\uD800"', "some.file:1:4: half of a surrogate pair"),
        (parse_yaml, "a: " + "[" * 9_999, f"nested more than {MAX_DEPTH} deep"),
    ],
)
def test_what_is_wrong_is_refused_at_its_place(
    parse: Callable[[str, Path], Document], text: str, said: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        parse(text, HERE)
    assert said in str(caught.value)


@given(st.text(max_size=40))
def test_any_text_is_read_or_refused(text: str) -> None:
    for parse in (parse_json, parse_yaml):
        try:
            document = parse(text, HERE)
        except ConfigError:
            continue
        assert isinstance(document.data, dict)


@pytest.mark.parametrize(("suffix", "text"), [("json", '{"env": 1}'), ("yaml", "env: 1")])
def test_a_byte_order_mark_counts_for_no_column(tmp_path: Path, suffix: str, text: str) -> None:
    path = tmp_path / f"x.{suffix}"
    path.write_text(f"\ufeff{text}")
    document = read_config(path)
    assert document.data == {"env": 1}
    assert str(document.at(("env",))) == f"{path}:1:{text.index('env') + 1 - (suffix == 'json')}"
