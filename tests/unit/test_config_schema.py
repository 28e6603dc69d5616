"""The JSON Schema of config files says what decoding does, and the manual's reference is made of it."""

from __future__ import annotations

import json
import re
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jsonschema
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from airlock.cli import run
from airlock_runner.config.model import PRESET_PATTERN, ProjectConfig
from airlock_runner.config.reference import fill, table_names
from airlock_runner.config.schema import json_schema, tables
from airlock_store.document import Document
from airlock_store.schema import check
from airlock_store.sizes import SIZE_PATTERN, parse_size

if TYPE_CHECKING:
    from collections.abc import Iterator

MANUAL = Path(__file__).parents[2] / "docs" / "configuration.md"


def accepts(data: dict[str, Any]) -> bool:
    return bool(jsonschema.Draft202012Validator(json_schema()).is_valid(data))


def test_the_schema_is_one(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["config", "schema"]) == 0
    schema = json.loads(capsys.readouterr().out)
    jsonschema.Draft202012Validator.check_schema(schema)
    assert schema == json_schema()


STRINGS = [
    "", "a", "base", "1 GB", "300 MB", "512", "~", "~/x", "~x", "~/..", "./~x", "/", "//", "/x", "/./x", "/x/..",
    "x/../y", "..x", "...", ".", "./.", "./a//b/", "/proc", "/./proc/x", "//sys", "/procx", "/dev\n", "/airlock/",
    "a\0", "\0", "/a\0", "/x:/y", "/x:", "/x/:/y", "~/x:~/y", "/..:/y", "/x:/../y", "/x:/a:b", "~a:/b", "80:80", "0:80",
    "00080:00001", "65535:65536", "000080:1", "1:2:3", "5000:", "$", "$$", "${A}", "${A", "${A:b}", "${A:${B}}",
    "${A:$}", "$${", "$$${", "${1}", "$a{", "${A:}", "TERM", "SIGTERM", "STOP", "always", "auto", "fail", "create-file",
    "deny-by-default", "nxdomain", "x" * 64, "x" * 65, "1000", "a b", "a\n", "é", "example.com:443", "x" * 301,
    "/x:/./proc//y", "/x:/airlock/y", "/x:/dev/y", "/x:/.", "/x:~/.", "/x:/y/.", "~/./", "/x/.", "/:x",
]  # fmt: skip
"""Words on this and that side of every border that the schema knows."""
NAMES = ["a", "A-b_1", "x" * 64, "x" * 65, "a b", "", "-a", "a\n", "A=B", "\0", "é", "example.com"]
# None is a whole number with a point, which JSON Schema takes for an integer and TOML does not.
NUMBERS = [-1, 0, 1, 255, 256, 65535, 65536, 86400, 86401, 1_000_000, 1_000_001, -0.5, 1.5, 86400.5]
SCALARS = st.sampled_from([*STRINGS, *NUMBERS, True, False, None])
VALUES = (
    SCALARS | st.lists(SCALARS, max_size=3) | st.dictionaries(st.sampled_from(NAMES), SCALARS, max_size=2)
)


def values(schema: dict[str, Any]) -> st.SearchStrategy[Any]:
    """What may be at the place of `schema`: right or not quite, and now and then something else altogether."""
    inner: st.SearchStrategy[Any] = VALUES
    kind = schema.get("type")
    if "enum" in schema:
        inner = st.sampled_from([*schema["enum"], "other"])
    elif "anyOf" in schema:
        inner = st.one_of(*map(values, schema["anyOf"]))
    elif kind == "array":
        first = [values(each) for each in schema.get("prefixItems", ())]
        rest = st.lists(values(schema["items"]), max_size=3)
        inner = st.tuples(*first, rest).map(lambda each: [*each[:-1], *each[-1]]) | rest
    elif kind == "object":
        inner = (
            st.dictionaries(st.sampled_from(NAMES), values(schema["additionalProperties"]), max_size=2)
            if (schema.get("additionalProperties"))
            else st.fixed_dictionaries(
                {}, optional={key: values(each) for key, each in schema["properties"].items()}
            )
        )
    elif kind == "string":
        inner = st.sampled_from(STRINGS)
        if "pattern" in schema:
            inner |= st.from_regex(as_python(schema["pattern"]))
    elif kind in ("integer", "number"):
        inner = st.sampled_from(NUMBERS)
    elif kind == "boolean":
        inner = st.booleans()
    return st.integers(0, 20).flatmap(lambda luck: inner if luck else VALUES)


def as_python(pattern: str) -> str:
    """A pattern of the schema, in which a dollar is the end, and not also before a last line break."""
    return pattern.replace("$", r"\Z")


def _pattern(
    _validator: object, pattern: str, instance: object, _schema: object
) -> Iterator[jsonschema.ValidationError]:
    if isinstance(instance, str) and not re.search(as_python(pattern), instance):
        yield jsonschema.ValidationError(f"{instance!r} does not match {pattern!r}")


def said_by_reading(data: dict[str, Any]) -> list[str]:
    """What reading a file with this in it finds wrong, without what JSON Schema cannot express."""
    problems = [problem.message for problem in check(Document(data, Path("x")), ProjectConfig)]
    presets = data.get("presets")
    problems += [
        f"there is no preset {name!r}"
        for name in (presets if isinstance(presets, list) else ())
        if isinstance(name, str) and not re.fullmatch(PRESET_PATTERN, name)
    ]
    return [text for text in problems if not re.search(BEYOND, text)]


BEYOND = "|".join(
    [
        # Sizes, in numbers and of this host.
        "is too little for a VM", "is more than this host has", "a disk has", "more than anything here",
        # Names, addresses and what is made of them.
        "^'(allow|deny)': (?!expected|a pattern has)", "is not a host name", "is an address, not a name",
        "does not appear to be an IPv4 or IPv6",
        # Bytes.
        "the path of a socket in the sandbox has at most",
    ]
)  # fmt: skip
Strict = jsonschema.validators.extend(jsonschema.Draft202012Validator, {"pattern": _pattern})


@given(
    st.fixed_dictionaries({}, optional={key: values(each) for key, each in tables()["properties"].items()})
)
@settings(max_examples=300)
def test_the_schema_accepts_what_reading_accepts_and_nothing_else(data: dict[str, Any]) -> None:
    said = said_by_reading(data)
    wrong = [f"{list(error.path)}: {error.message}" for error in Strict(json_schema()).iter_errors(data)]
    assert bool(said) == bool(wrong), (said, wrong)


@pytest.mark.parametrize("table", [name for name in table_names() if name != "top"])
def test_a_key_that_is_not_there_is_refused_everywhere(table: str) -> None:
    data: dict[str, Any] = {"none-such": 1}
    for name in reversed(table.replace("NAME", "n").split(".")):
        data = {name: data}
    if table in ("env", "network.hosts", "daemons.NAME.env"):
        # Their keys are names that people give.
        return
    assert not accepts(data)
    assert [problem.message for problem in check(Document(data, Path("x")), ProjectConfig)]


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
