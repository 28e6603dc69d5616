"""YAML with the place of every key and element: the plain part of YAML 1.2. Called by `airlock_runner.config.files`.

PyYAML reads the text; what a scalar means is decided here, by YAML 1.2's core schema, in which `no` is a word.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import yaml

from airlock_store.document import MAX_DEPTH, Document, Place
from airlock_store.errors import ConfigError, Location

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_NULL = {"", "~", "null", "Null", "NULL"}
_BOOLEAN = {"true": True, "True": True, "TRUE": True, "false": False, "False": False, "FALSE": False}
_DECIMAL = re.compile(r"[-+]?[0-9]{1,19}")
_BASED = re.compile(r"0o[0-7]{1,21}|0x[0-9a-fA-F]{1,16}")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_SPECIAL = re.compile(r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)")


def parse_yaml(text: str, path: Path) -> Document:
    """The mapping in `text`, empty for an empty text; `path` only names it.

    Raises ConfigError with the place of what is not YAML, of a key that is there twice, of too deep nesting, and of
    what a config file has no use for: anchors and aliases, tags, several documents, keys that are not scalars.
    """
    reader = _Reader(path)
    try:
        events = yaml.parse(text, Loader=yaml.SafeLoader)
        data = reader.document(events)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        at = Location(path, mark.line + 1, mark.column + 1) if mark else Location(path)
        raise ConfigError(f"not valid YAML: {error.problem or error.context}", at=at) from error
    except yaml.reader.ReaderError as error:
        before = text[: error.position]
        at = Location(path, before.count("\n") + 1, error.position - (before.rfind("\n") + 1) + 1)
        raise ConfigError(f"not valid YAML: {error.reason}", at=at) from error
    return Document(data, path, reader.where)


class _Reader:
    """Turns PyYAML's events into plain values and notes where keys and elements are."""

    def __init__(self, path: Path) -> None:
        self.where: dict[Place, Location] = {}
        self._path = path

    def document(self, events: Iterator[yaml.Event]) -> dict[str, Any]:
        data: Any = None
        documents = 0
        for event in events:
            if isinstance(event, yaml.DocumentStartEvent):
                documents += 1
                if documents > 1:
                    raise self._error(event, "more than one document")
                start = next(events)
                data = self._value(start, events, ())
                if data is not None and not isinstance(data, dict):
                    raise self._error(start, "expected a mapping")
        return data or {}

    def _value(self, event: yaml.Event, events: Iterator[yaml.Event], place: Place) -> Any:
        if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None):
            raise self._error(event, "anchors and aliases are not for config files")
        if getattr(event, "tag", None):
            raise self._error(event, "tags are not for config files")
        if isinstance(event, yaml.MappingStartEvent):
            return self._mapping(events, place)
        if isinstance(event, yaml.SequenceStartEvent):
            return self._sequence(events, place)
        assert isinstance(event, yaml.ScalarEvent)
        return self._text(event) if event.style is not None else _plain(event.value)

    def _mapping(self, events: Iterator[yaml.Event], place: Place) -> dict[str, Any]:
        table: dict[str, Any] = {}
        while not isinstance(event := next(events), yaml.MappingEndEvent):
            if not isinstance(event, yaml.ScalarEvent) or event.tag or event.anchor:
                raise self._error(event, "expected a plain key")
            key = self._text(event)
            if key in table:
                raise self._error(event, f"the key {key!r} is here twice")
            here = self._note((*place, key), event)
            table[key] = self._value(next(events), events, here)
        return table

    def _sequence(self, events: Iterator[yaml.Event], place: Place) -> list[Any]:
        array: list[Any] = []
        while not isinstance(event := next(events), yaml.SequenceEndEvent):
            array.append(self._value(event, events, self._note((*place, len(array)), event)))
        return array

    def _text(self, event: yaml.ScalarEvent) -> str:
        value = str(event.value)
        if any("\ud800" <= character <= "\udfff" for character in value):
            raise self._error(event, "half of a surrogate pair")
        return value

    def _note(self, place: Place, event: yaml.Event) -> Place:
        if len(place) > MAX_DEPTH:
            raise self._error(event, f"nested more than {MAX_DEPTH} deep")
        self.where[place] = self._at(event)
        return place

    def _error(self, event: yaml.Event, message: str) -> ConfigError:
        return ConfigError(message, at=self._at(event))

    def _at(self, event: yaml.Event) -> Location:
        mark = event.start_mark
        assert mark is not None
        return Location(self._path, mark.line + 1, mark.column + 1)


def _plain(word: str) -> Any:
    """What an unquoted scalar is (YAML 1.2.2, 10.3.2)."""
    if word in _NULL:
        return None
    if word in _BOOLEAN:
        return _BOOLEAN[word]
    if _DECIMAL.fullmatch(word):
        return int(word)
    if _BASED.fullmatch(word):
        return int(word, 0)
    if _SPECIAL.fullmatch(word):
        return float(word.replace(".", ""))
    # Digits alone are no float, however many: an integer that nothing here could hold stays a word.
    return float(word) if _FLOAT.fullmatch(word) and not word.lstrip("+-").isdigit() else word
