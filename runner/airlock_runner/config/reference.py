"""The reference in docs/configuration.md: one Markdown table for each table of the schema, put in its place.

scripts/config-reference calls `fill`; a unit test holds the manual to it.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from airlock_runner.config.schema import tables

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

_BLOCK = re.compile(r"<!-- reference (\S+) -->\n.*?<!-- end -->", re.DOTALL)
_HEAD = "| key | type | left out | meaning |\n| --- | --- | --- | --- |\n"
TOP = "top"


def fill(manual: str) -> str:
    """`manual` with what stands between `<!-- reference TABLE -->` and `<!-- end -->` made anew.

    Raises KeyError for a table that the schema does not have.
    """
    found = dict(_tables(tables(), ""))
    return _BLOCK.sub(lambda match: f"<!-- reference {match[1]} -->\n{found[match[1]]}<!-- end -->", manual)


def table_names() -> list[str]:
    """The tables of the schema that have keys of their own, as headings name them."""
    return [name for name, _ in _tables(tables(), "")]


def _tables(schema: Mapping[str, Any], name: str) -> Iterator[tuple[str, str]]:
    keys = schema.get("properties") or {"NAME": schema["additionalProperties"]}
    rows = [_row(key, each) for key, each in keys.items() if each.get("type") != "object"]
    if rows:
        yield name or TOP, _HEAD + "".join(rows)
    for key, each in keys.items():
        if each.get("type") == "object":
            yield from _tables(each, f"{name}.{key}" if name else key)


def _row(key: str, schema: Mapping[str, Any]) -> str:
    meaning, unset = schema.get("description", ""), schema.get("$comment", "")
    return f"| `{key}` | {_type(schema)} | {unset} | {meaning} |\n"


def _type(schema: Mapping[str, Any]) -> str:
    if "title" in schema and ("anyOf" in schema or schema.get("type") == "array"):
        return str(schema["title"])
    if "anyOf" in schema:
        return " or ".join(_type(arm) for arm in schema["anyOf"])
    if "enum" in schema:
        return ", ".join(f'`"{choice}"`' for choice in schema["enum"])
    if schema.get("type") == "array":
        return f"array of {_type(schema['items'])}s"
    name = str(schema.get("title") or schema["type"])
    if "minimum" in schema and "maximum" in schema:
        return f"{name}, {schema['minimum']} to {schema['maximum']}"
    return name
