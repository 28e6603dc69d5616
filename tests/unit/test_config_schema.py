"""The JSON Schema of config files says what decoding does, and the manual's reference is made of it."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jsonschema
from hypothesis import given
from hypothesis import strategies as st

from airlock.cli import run
from airlock_runner.config.model import ProjectConfig
from airlock_runner.config.reference import fill, table_names
from airlock_runner.config.schema import json_schema
from airlock_store.document import Document
from airlock_store.schema import check
from airlock_store.sizes import SIZE_PATTERN, parse_size

if TYPE_CHECKING:
    import pytest

MANUAL = Path(__file__).parents[2] / "docs" / "configuration.md"


def accepts(data: dict[str, Any]) -> bool:
    return bool(jsonschema.Draft202012Validator(json_schema()).is_valid(data))


def test_the_schema_is_one(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["config", "schema"]) == 0
    schema = json.loads(capsys.readouterr().out)
    jsonschema.Draft202012Validator.check_schema(schema)
    assert schema == json_schema()


WORDS = st.sampled_from(
    ["base", "", "1 GB", "2G", "512", "x", "300 MB", 1, 0, 256, 2.5, True, ["a"], [1], {}, {"A": "b"}]
)
TABLE = st.dictionaries(st.sampled_from(["image", "cpus", "memory", "harden", "size", "A", "nothing"]), WORDS)
CONFIGS = st.dictionaries(st.sampled_from(["vm", "env", "disk", "presets", "other"]), TABLE | WORDS)


@given(CONFIGS)
def test_the_schema_refuses_nothing_that_is_accepted(data: dict[str, Any]) -> None:
    if not check(Document(data, Path("x")), ProjectConfig):
        assert accepts(data)


@given(CONFIGS)
def test_what_the_schema_accepts_is_refused_for_values_only(data: dict[str, Any]) -> None:
    if accepts(data):
        said = [problem.message for problem in check(Document(data, Path("x")), ProjectConfig)]
        assert not [text for text in said if "unknown key" in text or "expected a" in text]


@given(st.from_regex(SIZE_PATTERN, fullmatch=True) | st.text(st.sampled_from("1.0 KMGTiBb\t"), max_size=8))
def test_the_pattern_of_sizes_is_what_is_read(text: str) -> None:
    schema = {"type": "string", "pattern": SIZE_PATTERN}
    try:
        parse_size(text)
    except ValueError as error:
        if "more than anything here" not in str(error):
            assert not jsonschema.Draft202012Validator(schema).is_valid(text)
    else:
        assert jsonschema.Draft202012Validator(schema).is_valid(text)


def test_the_manuals_reference_is_current() -> None:
    text = MANUAL.read_text()
    assert fill(text) == text, "run scripts/config-reference"
    for name in table_names():
        assert f"<!-- reference {name} -->" in text, f"docs/configuration.md has no table of [{name}]"


def test_the_manuals_example_is_valid() -> None:
    example = MANUAL.read_text().partition("```toml\n")[2].partition("```")[0]
    data = tomllib.loads(example)
    assert accepts(data)
    assert check(Document(data, MANUAL), ProjectConfig) == []
