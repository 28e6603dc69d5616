"""Typed TOML: a document becomes a frozen dataclass, or one error with every problem in the file and its place.

A recipe and airlock.toml are each one dataclass whose fields, types and defaults are the whole schema.
"""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Callable, Mapping
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeVar, Union

from airlock_store.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from airlock_store.document import Document, Place

T = TypeVar("T")

# What annotations may name although their module imports it for type checkers only.
_NAMES = {"Mapping": Mapping, "Callable": Callable, "Path": Path, "Any": Any, "Literal": Literal}


def check(document: Document, cls: type) -> list[ConfigError]:
    """What is wrong in one `document` of several that are merged: everything but what another may still add."""
    decoder = _Decoder(document, partial=True)
    decoder.table(document.data, cls, ())
    return sorted(decoder.problems, key=_by_place)


def decode(document: Document, cls: type[T]) -> T:
    """The whole `document` as an instance of the dataclass `cls`.

    Fields may be str, int, float, bool, a StrEnum or Literal of strings, tuple[X, ...], Mapping[str, X], another
    dataclass, X | None, a union of types that TOML can tell apart, or Any. A field's metadata may have `key` (the
    name in the file when it differs), `doc` (one line for people) and `parse`: a function from the plain value to
    the field's, whose ValueError or ConfigError is reported at the value's place; for a Mapping `names` is called
    with every key, and `each` with every key and value, and may raise in the same way, as may a dataclass's own
    __post_init__. `elements` makes an array of what such a function gives for each element, and reports each at its
    own place. `whole` is a table that only one layer says: what it lacks is a problem of that one. A field without a
    default is required. A key that is null (None, which JSON and YAML have) counts as left out.

    Raises one ConfigError with all problems in the order of their places.
    """
    decoder = _Decoder(document)
    result = decoder.table(document.data, cls, ())
    if decoder.problems:
        raise ConfigError.of(sorted(decoder.problems, key=_by_place))
    return typing.cast("T", result)


class Elements(NamedTuple):
    """An array of `least` to `most` elements, each read by `parse`, for a field's metadata."""

    parse: Callable[[Any], object]
    least: int = 0
    most: int = 10_000


class _Bad:
    """Stands in for a value whose problem has been noted."""


_BAD = _Bad()


class _Decoder:
    def __init__(self, document: Document, *, partial: bool = False) -> None:
        self.problems: list[ConfigError] = []
        self._document = document
        self._partial = partial

    def table(self, table: Mapping[str, Any], cls: type, place: Place) -> object:
        """An instance of the dataclass `cls`, or _BAD."""
        hints = typing.get_type_hints(cls, localns=_NAMES)
        fields = {
            field.metadata.get("key", field.name): field for field in dataclasses.fields(cls) if field.init
        }
        for key in table:
            if key not in fields:
                message = f"unknown key {key!r} {_where(place)}"
                self._problem((*place, key), message, _suggest(key, fields, "valid keys"))
        values: dict[str, object] = {}
        for key, field in fields.items():
            if table.get(key) is not None:
                values[field.name] = self._field(table[key], field, hints[field.name], (*place, key))
            elif field.default is field.default_factory is dataclasses.MISSING and not self._partial:
                values[field.name] = self._problem(place, f"missing key {key!r} {_where(place)}")
        if self._partial or _any_bad(values.values()):
            return _BAD
        return self._call(lambda: cls(**values), place, "")

    def _field(self, value: object, field: dataclasses.Field[Any], hint: object, place: Place) -> object:
        elements = field.metadata.get("elements")
        if elements is not None:
            return self._elements(value, elements, place)
        parse = field.metadata.get("parse")
        if parse is not None:
            return self._call(lambda: parse(value), place, f"{_name(place)}: ")
        if typing.get_origin(hint) is Mapping and isinstance(value, dict):
            return self._mapping(value, typing.get_args(hint)[1], place, field.metadata)
        before = self._partial
        self._partial = before and not field.metadata.get("whole")
        result = self._value(value, hint, place)
        self._partial = before
        return result

    def _mapping(
        self, value: Mapping[str, Any], hint: object, place: Place, checks: Mapping[str, Any]
    ) -> object:
        """A table whose keys are names. A null is no entry, but its name is one."""
        names, each = checks.get("names"), checks.get("each")
        table: dict[str, object] = {}
        for key, item in value.items():
            here = (*place, key)
            if names is not None:
                self._call(partial(names, key), here, "")
            if item is not None:
                table[key] = self._value(item, hint, here)
                if each is not None and table[key] is not _BAD:
                    self._call(partial(each, key, table[key]), here, "")
        return _BAD if _any_bad(table.values()) else table

    def _elements(self, value: object, elements: Elements, place: Place) -> object:
        if not isinstance(value, list):
            return self._problem(place, f"{_name(place)}: expected an array, found {kind(value)}")
        if not elements.least <= len(value) <= elements.most:
            wanted = f"expected an array of {elements.least} to {elements.most} elements"
            return self._problem(place, f"{_name(place)}: {wanted}, found {len(value)}")
        items = tuple(
            self._call(partial(elements.parse, each), (*place, index), f"{_name(place)}: ")
            for index, each in enumerate(value)
        )
        return _BAD if _any_bad(items) else items

    def _call(self, make: Callable[[], object], place: Place, prefix: str) -> object:
        try:
            return make()
        except ConfigError as error:
            return self._problem(place, f"{prefix}{error.message}", error.hint)
        except ValueError as error:
            return self._problem(place, f"{prefix}{error}")

    def _value(self, value: object, hint: Any, place: Place) -> object:
        arms = _arms(hint)
        for arm in arms:
            if arm is Any or _kind_of_type(arm) == kind(value):
                return self._arm(value, arm, place)
        wanted = " or ".join(dict.fromkeys(_kind_of_type(arm) for arm in arms))
        return self._problem(place, f"{_name(place)}: expected {wanted}, found {kind(value)}")

    def _arm(self, value: Any, arm: Any, place: Place) -> object:
        """`value`, which is of the TOML type that `arm` wants."""
        result: object = value
        origin, args = typing.get_origin(arm), typing.get_args(arm)
        if dataclasses.is_dataclass(arm):
            result = self.table(value, typing.cast("type", arm), place)
        elif origin is tuple:
            items = tuple(self._value(each, args[0], (*place, index)) for index, each in enumerate(value))
            result = _BAD if _any_bad(items) else items
        elif origin in (Mapping, dict):
            result = self._mapping(value, args[1], place, {})
        elif origin is Literal or (isinstance(arm, type) and issubclass(arm, StrEnum)):
            choices = [str(each) for each in (args or arm)]
            if value not in choices:
                message = f"{_name(place)}: expected one of {', '.join(map(repr, choices))}, found {value!r}"
                return self._problem(place, message, _suggest(value, choices, None))
            result = value if args else arm(value)
        return result

    def _problem(self, place: Place, message: str, hint: str | None = None) -> _Bad:
        self.problems.append(ConfigError(message, hint=hint, at=self._document.at(place)))
        return _BAD


def _any_bad(values: Iterable[object]) -> bool:
    return any(value is _BAD for value in values)


def _arms(hint: Any) -> Sequence[Any]:
    if typing.get_origin(hint) in (Union, types.UnionType):
        return [arm for arm in typing.get_args(hint) if arm is not types.NoneType]
    return [hint]


def _kind_of_type(arm: Any) -> str:
    """The TOML type that a field of type `arm` is read from, with its article."""
    origin = typing.get_origin(arm)
    if dataclasses.is_dataclass(arm) or origin in (Mapping, dict):
        return "a table"
    if origin is tuple:
        return "an array"
    if origin is Literal or (isinstance(arm, type) and issubclass(arm, str)):
        return "a string"
    return _KINDS[arm]


_KINDS: dict[type, str] = {
    bool: "a boolean",
    int: "an integer",
    float: "a float",
    str: "a string",
    list: "an array",
    dict: "a table",
    type(None): "null",
}


def kind(value: object) -> str:
    """The TOML type of a plain value, with its article."""
    # By exact type: True is an int to Python and not to anybody who writes TOML.
    return _KINDS.get(type(value), "a date or time")


def _name(place: Place) -> str:
    """The last key on the way: an element of an array is told apart by its column."""
    return repr(next(step for step in reversed(place) if isinstance(step, str)))


def _where(place: Place) -> str:
    if not place:
        return "at the top level"
    table = ".".join(step for step in place if isinstance(step, str))
    return f"in [[{table}]]" if isinstance(place[-1], int) else f"in [{table}]"


def _suggest(word: str, valid: Iterable[str], otherwise: str | None) -> str | None:
    names = list(valid)
    import difflib

    close = difflib.get_close_matches(word.lower(), names, n=1)
    if close:
        return f"did you mean {close[0]!r}?"
    return f"{otherwise}: {', '.join(names)}" if otherwise and names else None


def _by_place(problem: ConfigError) -> tuple[str, int, int]:
    return (str(problem.at.path), problem.at.line, problem.at.column) if problem.at else ("", 0, 0)
