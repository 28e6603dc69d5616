"""What a config comes to, key by key, with the place of each value. `airlock config show` prints it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from airlock_runner.config.schema import tables

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from airlock_store.document import Document, Place
    from airlock_store.errors import Location


@dataclass(frozen=True, slots=True)
class Setting:
    """A key that is no table. Where nobody wrote it, `at` is None and `unset` says what holds.

    `elements` are the places of an array's elements, which may come from several files.
    """

    place: Place
    value: Any
    at: Location | None
    unset: str = ""
    elements: tuple[Location, ...] = ()


def settings(document: Document) -> list[Setting]:
    """All settings of a valid `document`, written or not, in the order of the schema."""
    return list(_walk(tables(), document.data, (), document))


def _walk(
    schema: Mapping[str, Any], table: Mapping[str, Any], place: Place, document: Document
) -> Iterator[Setting]:
    named = schema.get("properties")
    # Of a table whose keys are names, those that are there.
    keys = named or dict.fromkeys(table, schema["additionalProperties"])
    plain = {key: each for key, each in keys.items() if each.get("type") != "object"}
    for key, each in plain.items():
        value, here = table.get(key), (*place, key)
        if value is not None:
            count = len(value) if isinstance(value, list) else 0
            elements = tuple(document.at((*here, index)) for index in range(count))
            yield Setting(here, value, document.at(here), elements=elements)
        elif named and "$comment" in each:
            yield Setting(here, None, None, each["$comment"])
    for key, each in keys.items():
        # A null is no entry.
        if key not in plain and (named or table.get(key) is not None):
            yield from _walk(each, table.get(key) or {}, (*place, key), document)
