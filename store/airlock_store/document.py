"""TOML with the line and column of every key and element, so that an error can say where it is.

Recipes, lock files and airlock.toml are read here and turned into dataclasses by `airlock_store.schema`.
"""

from __future__ import annotations

import codecs
import os
import re
import stat
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from airlock_store.errors import ConfigError, Location

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

Place = tuple[str | int, ...]
"""The way to a value: table keys and array indices from the top of the document."""

MAX_BYTES = 1 << 20
MAX_DEPTH = 32


@dataclass(frozen=True, slots=True)
class Document:
    """A TOML document: `data` holds plain Python values, `where` the place of every key and array element.

    A table's place is where its key is first mentioned; an element of an array of tables has its header's.
    """

    data: dict[str, Any]
    path: Path
    where: Mapping[Place, Location] = field(default_factory=dict)

    def at(self, place: Place) -> Location:
        """Where `place` is written, or the nearest known thing around it, or else the file."""
        for end in range(len(place), 0, -1):
            found = self.where.get(place[:end])
            if found is not None:
                return found
        return Location(self.path)


def read_toml(path: Path) -> Document:
    """The document in the regular file `path`. Raises ConfigError when it is missing, over 1 MiB or not TOML."""
    return parse_toml(read_text(path), path)


def read_text(path: Path) -> str:
    """What the regular file `path` says. Raises ConfigError when it is missing, over 1 MiB or not UTF-8.

    A byte order mark at its start is left out and counts for no column: editors put one there, and show none. YAML has
    it, RFC 8259 lets readers of JSON ignore it, and TOML 1.0 takes any document in UTF-8 (toml-lang/toml issue 437).
    """
    try:
        # A sandbox can put a FIFO where a file was, at any moment: nobody waits for its other end.
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            if not stat.S_ISREG(os.fstat(fd).st_mode):
                raise ConfigError("not a regular file", at=Location(path))
            with open(fd, "rb", closefd=False) as file:
                raw = file.read(MAX_BYTES + 1)
        finally:
            os.close(fd)
    except OSError as error:
        reason = error.strerror or str(error)
        raise ConfigError(f"cannot read this file: {reason}", at=Location(path)) from error
    if len(raw) > MAX_BYTES:
        raise ConfigError(f"larger than {MAX_BYTES} bytes", at=Location(path))
    raw = raw.removeprefix(codecs.BOM_UTF8)
    try:
        return raw.decode()
    except UnicodeDecodeError as error:
        before = raw[: error.start].decode()
        at = Lines(before, path).location(len(before))
        raise ConfigError("this is not UTF-8", at=at) from error


def parse_toml(text: str, path: Path) -> Document:
    """The document in `text`; `path` only names it. Raises ConfigError with the place of a syntax error."""
    import tomllib

    lines = Lines(text, path)
    scanner = _Scanner(text, lines)
    lost = scanner.scan()
    try:
        data = tomllib.loads(text)
    except (ValueError, RecursionError) as error:
        raise (
            _syntax_error(error, lines, text)
            or lost
            or ConfigError(f"not valid TOML: {error}", at=Location(path))
        ) from error
    if lost:
        raise lost
    document = Document(data, path, scanner.where)
    for place in _too_large(data, ()):
        raise ConfigError("an integer has 64 bits at most", at=document.at(place))
    return document


def _too_large(value: object, place: Place) -> Iterator[Place]:
    """Places of integers that TOML 1.0 does not promise to keep. Python reads them, and then cannot write some."""
    if isinstance(value, int) and not -(1 << 63) <= value < 1 << 63:
        yield place
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, each in items:
        yield from _too_large(each, (*place, key))


class Lines:
    """Offsets of a text as lines and columns, both from 1, columns in characters."""

    def __init__(self, text: str, path: Path) -> None:
        self._starts = [0, *(match.end() for match in re.finditer("\n", text))]
        self._path = path

    def location(self, offset: int) -> Location:
        from bisect import bisect_right

        line = bisect_right(self._starts, offset)
        return Location(self._path, line, offset - self._starts[line - 1] + 1)

    def offset(self, at: Location) -> int:
        """The other way round."""
        return self._starts[at.line - 1] + at.column - 1


def merge(base: Document, over: Document) -> Document:
    """`over` on top of `base`: tables merge, arrays append, everything else overrides, null (None) never does.

    Places come along.
    """
    where = dict(base.where)
    data = _merge_tables(base.data, over.data, (), where, over.where)
    return Document(data, over.path, where)


def _merge_tables(
    base: dict[str, Any],
    over: dict[str, Any],
    place: Place,
    where: dict[Place, Location],
    over_where: Mapping[Place, Location],
) -> dict[str, Any]:
    merged = dict(base)
    for key, value in over.items():
        here = (*place, key)
        old = base.get(key)
        if value is None and old is not None:
            continue
        if isinstance(old, dict) and isinstance(value, dict):
            _carry(here, here, where, over_where)
            merged[key] = _merge_tables(old, value, here, where, over_where)
        elif isinstance(old, list) and isinstance(value, list):
            _carry(here, here, where, over_where)
            for index, element in enumerate(value):
                _carry_all(element, (*here, index), (*here, index + len(old)), where, over_where)
            merged[key] = [*old, *value]
        else:
            _forget_all(old, here, where)
            _carry_all(value, here, here, where, over_where)
            merged[key] = value
    return merged


def _children(value: object) -> list[tuple[str | int, object]]:
    if isinstance(value, dict):
        return list(value.items())
    return list(enumerate(value)) if isinstance(value, list) else []


def _carry(
    old: Place, new: Place, where: dict[Place, Location], over_where: Mapping[Place, Location]
) -> None:
    if old in over_where:
        where[new] = over_where[old]


def _carry_all(
    value: object, old: Place, new: Place, where: dict[Place, Location], over_where: Mapping[Place, Location]
) -> None:
    _carry(old, new, where, over_where)
    for key, child in _children(value):
        _carry_all(child, (*old, key), (*new, key), where, over_where)


def _forget_all(value: object, place: Place, where: dict[Place, Location]) -> None:
    where.pop(place, None)
    for key, child in _children(value):
        _forget_all(child, (*place, key), where)


def _syntax_error(error: Exception, lines: Lines, text: str) -> ConfigError | None:
    """What tomllib found and where, if it says where."""
    import tomllib

    if not isinstance(error, tomllib.TOMLDecodeError):
        return None
    message, _, place = str(error).rpartition(" (at ")
    numbers = re.fullmatch(r"line (\d+), column (\d+)\)", place)
    end = lines.location(len(text))
    at = Location(end.path, int(numbers[1]), int(numbers[2])) if numbers else end
    hint = None
    if text.startswith(_BOM, lines.offset(at)):
        hint = "there is a byte order mark (U+FEFF), which editors do not show and only the start of a file can have"
    return ConfigError(f"not valid TOML: {message}", hint=hint, at=at)


_BOM = "\ufeff"
_BLANK = re.compile(r"(?:[ \t\r\n]|#[^\n]*)*")
_SPACE = re.compile(r"[ \t]*")
_KEY = re.compile(r"""([A-Za-z0-9_-]+)|"((?:[^"\\\n]|\\[^\n])*)"|'([^'\n]*)'""")
_STRING = re.compile(
    r'"""(?:\\.|[^\\])*?"{3,5}|' r"\'\'\'.*?'{3,5}|" r'"(?:[^"\\\n]|\\[^\n])*"|' r"'[^'\n]*'", re.DOTALL
)
_SCALAR = re.compile(r"[^,\]}#\r\n]+")
_ESCAPE = re.compile(r"\\(?:x([0-9A-Fa-f]{2})|u([0-9A-Fa-f]{4})|U([0-9A-Fa-f]{8})|(.))", re.DOTALL)
_ESCAPES = {"b": "\b", "t": "\t", "n": "\n", "f": "\f", "r": "\r", "e": "\x1b"}


class _LostError(Exception):
    """The text is not TOML at `offset`."""

    def __init__(self, offset: int) -> None:
        super().__init__(offset)
        self.offset = offset


class _Scanner:
    """Notes where keys and elements are. tomllib decides what is TOML; this only has to be right about what is."""

    def __init__(self, text: str, lines: Lines) -> None:
        self.where: dict[Place, Location] = {}
        self._text = text
        self._lines = lines
        self._offset = 0
        self._counts: dict[Place, int] = {}  # arrays of tables: how many tables so far

    def scan(self) -> ConfigError | None:
        """Fill `where`. Returns the place where the text stops making sense; raises ConfigError on deep nesting."""
        table: Place = ()
        try:
            while self._peek(_BLANK):
                if self._accept("[["):
                    table = self._header("]]")
                elif self._accept("["):
                    table = self._header("]")
                else:
                    self._pair(table)
        except _LostError as lost:
            return ConfigError("not valid TOML", at=self._lines.location(lost.offset))
        return None

    def _header(self, close: str) -> Place:
        place: Place = ()
        keys = self._keys()
        for key, offset in keys:
            if place in self._counts:
                place = (*place, self._counts[place] - 1)
            place = self._note((*place, key), offset)
        if close == "]]":
            count = self._counts.get(place, 0)
            self._counts[place] = count + 1
            place = self._note((*place, count), keys[-1][1])
        self._expect(close)
        return place

    def _pair(self, table: Place) -> None:
        place = table
        for key, offset in self._keys():
            place = self._note((*place, key), offset)
        self._expect("=")
        self._peek(_SPACE)
        self._value(place)

    def _keys(self) -> list[tuple[str, int]]:
        """The keys of a dotted key and the offset of each."""
        found: list[tuple[str, int]] = []
        while True:
            self._peek(_SPACE)
            offset = self._offset
            bare, basic, literal = self._match(_KEY).groups()
            key = bare or literal or "" if basic is None else _ESCAPE.sub(_unescape, basic)
            found.append((key, offset))
            self._peek(_SPACE)
            if not self._accept("."):
                return found

    def _value(self, place: Place) -> None:
        if self._accept("["):
            index = 0
            while self._peek(_BLANK) and not self._accept("]"):
                self._value(self._note((*place, index), self._offset))
                index += 1
                self._separator("]")
        elif self._accept("{"):
            while self._peek(_BLANK) and not self._accept("}"):
                self._pair(place)
                self._separator("}")
        elif self._text.startswith(("'", '"'), self._offset):
            self._match(_STRING)
        else:
            self._match(_SCALAR)

    def _separator(self, close: str) -> None:
        self._peek(_BLANK)
        if not self._accept(",") and not self._text.startswith(close, self._offset):
            raise _LostError(self._offset)

    def _note(self, place: Place, offset: int) -> Place:
        if len(place) > MAX_DEPTH:
            raise ConfigError(f"nested more than {MAX_DEPTH} deep", at=self._lines.location(offset))
        if place not in self.where:
            self.where[place] = self._lines.location(offset)
        return place

    def _peek(self, skip: re.Pattern[str]) -> str:
        """The character after what `skip` matches; empty at the end."""
        self._match(skip)
        return self._text[self._offset : self._offset + 1]

    def _match(self, pattern: re.Pattern[str]) -> re.Match[str]:
        found = pattern.match(self._text, self._offset)
        if found is None:
            raise _LostError(self._offset)
        self._offset = found.end()
        return found

    def _accept(self, literal: str) -> bool:
        if not self._text.startswith(literal, self._offset):
            return False
        self._offset += len(literal)
        return True

    def _expect(self, literal: str) -> None:
        self._peek(_SPACE)
        if not self._accept(literal):
            raise _LostError(self._offset)


def _unescape(match: re.Match[str]) -> str:
    two, four, eight, single = match.groups()
    number = two or four or eight
    if number is None:
        return _ESCAPES.get(single, single)
    code = int(number, 16)
    return chr(code) if code < 0x110000 else ""
