"""JSON with the place of every key and element. Called by `airlock_runner.config.files`."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, NoReturn

from airlock_store.document import MAX_DEPTH, Document, Lines, Place
from airlock_store.errors import ConfigError, Location

if TYPE_CHECKING:
    from pathlib import Path

_BLANK = re.compile(r"[ \t\r\n]*")
_STRING = re.compile(r'"(?:[^"\\]|\\.)*"')
_SCALAR = re.compile(r"[^,\]} \t\r\n]+")


def parse_json(text: str, path: Path) -> Document:
    """The object in `text`; `path` only names it. Raises ConfigError with the place of what is not JSON (RFC 8259),
    of a key that is there twice, and of too deep nesting.
    """
    lines = Lines(text, path)
    try:
        data = json.loads(text, parse_constant=_no_constant)
    except json.JSONDecodeError as error:
        message = f"not valid JSON: {error.msg[:1].lower()}{error.msg[1:]}"
        raise ConfigError(message, at=lines.location(error.pos)) from error
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"not valid JSON: {error}", at=Location(path)) from error
    if not isinstance(data, dict):
        raise ConfigError("expected an object", at=Location(path, 1, 1))
    scanner = _Scanner(text, lines)
    scanner.value(())
    return Document(data, path, scanner.where)


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a number in JSON")


class _Scanner:
    """Notes where keys and elements are. `json` has decided that the text is JSON."""

    def __init__(self, text: str, lines: Lines) -> None:
        self.where: dict[Place, Location] = {}
        self._text, self._lines, self._offset = text, lines, 0

    def value(self, place: Place) -> None:
        match self._peek():
            case "{":
                self._members(place)
            case "[":
                self._elements(place)
            case '"':
                self._string()
            case _:
                self._match(_SCALAR)

    def _members(self, place: Place) -> None:
        self._offset += 1
        while self._peek() != "}":
            offset = self._offset
            here = (*place, self._string())
            if here in self.where:
                raise ConfigError(f"the key {here[-1]!r} is here twice", at=self._lines.location(offset))
            self._note(here, offset)
            self._peek()
            self._offset += 1  # the colon
            self.value(here)
            self._comma()
        self._offset += 1

    def _elements(self, place: Place) -> None:
        self._offset += 1
        index = 0
        while self._peek() != "]":
            here = (*place, index)
            self._note(here, self._offset)
            self.value(here)
            index += 1
            self._comma()
        self._offset += 1

    def _string(self) -> str:
        offset = self._offset
        value: str = json.loads(self._match(_STRING))
        if any("\ud800" <= character <= "\udfff" for character in value):
            raise ConfigError("half of a surrogate pair", at=self._lines.location(offset))
        return value

    def _comma(self) -> None:
        if self._peek() == ",":
            self._offset += 1

    def _note(self, place: Place, offset: int) -> None:
        if len(place) > MAX_DEPTH:
            raise ConfigError(f"nested more than {MAX_DEPTH} deep", at=self._lines.location(offset))
        self.where[place] = self._lines.location(offset)

    def _peek(self) -> str:
        self._match(_BLANK)
        return self._text[self._offset]

    def _match(self, pattern: re.Pattern[str]) -> str:
        found = pattern.match(self._text, self._offset)
        assert found is not None
        self._offset = found.end()
        return found[0]
