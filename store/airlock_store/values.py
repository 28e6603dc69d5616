"""`dataclass` as the standard library has it, for a tenth of what it costs to define a class.

What `airlock start` imports defines nearly eighty of them, and the standard library compiles six methods for
each: that was a third of all imports. Here methods are closures, which takes longer when a value is made, and nobody
makes many. Type checkers see the original, and what is out of the ordinary is left to it.
"""

from __future__ import annotations

import dataclasses
import operator
from dataclasses import MISSING, Field, FrozenInstanceError
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, NoReturn, cast

if TYPE_CHECKING:
    from collections.abc import Callable
    from dataclasses import dataclass as dataclass  # noqa: PLC0414
else:

    def dataclass(*, frozen: bool = False, slots: bool) -> Callable[[type], type]:
        """A class with slots whose values are equal if their fields are; if `frozen`, hashable and never changed."""
        standard = dataclasses.dataclass(frozen=frozen, slots=slots)

        def make(cls: type) -> type:
            return (_make(cls, frozen) if slots else None) or standard(cls)

        return make


# What dataclasses.fields() and replace() know a field by. If a Python has no such thing, all is left to it.
_FIELD = getattr(dataclasses, "_FIELD", None)
_OWN = {"__init__", "__eq__", "__hash__", "__repr__", "__slots__", "__setattr__", "__delattr__"}
_UNUSUAL = ("ClassVar", "InitVar", "typing.", "dataclasses.")


def _make(cls: type, frozen: bool) -> type | None:
    """`cls` as a dataclass with slots, or None if there is something in it that is not done here."""
    content = dict(cls.__dict__)
    annotations = content.get("__annotations__")
    bases = cls.__mro__[-2:0:-1]
    if _FIELD is None or annotations is None or content.keys() & _OWN:
        return None
    if not all(hasattr(base, "__dataclass_fields__") and "__slots__" in vars(base) for base in bases):
        return None
    fields: dict[str, Field[Any]] = {}
    for base in bases:
        fields |= base.__dataclass_fields__  # type: ignore[attr-defined]
    inherited, named_only = set(fields), False
    for name, kind in annotations.items():
        if kind == "KW_ONLY":
            named_only = True
            continue
        found = _field(name, kind, content.pop(name, MISSING), named_only)
        if found is None:
            return None
        fields[name] = found
    for name in ("__dict__", "__weakref__"):
        content.pop(name, None)
    content |= {
        **_methods(fields, frozen, hasattr(cls, "__post_init__")),
        "__slots__": tuple(name for name in fields if name not in inherited),
        "__match_args__": tuple(each.name for each in fields.values() if not each.kw_only),
        "__dataclass_fields__": fields,
        # The standard library asks it of a base.
        "__dataclass_params__": SimpleNamespace(frozen=frozen),
    }
    made = type(cls)(cls.__name__, cls.__bases__, content)
    made.__qualname__ = cls.__qualname__
    return made


def _field(name: str, kind: object, value: object, named_only: bool) -> Field[Any] | None:
    if not isinstance(kind, str) or kind.startswith(_UNUSUAL):
        return None
    if isinstance(value, Field):
        found = value
        if not (found.init and found.repr and found.compare and found.hash is None) or (
            found.kw_only is not MISSING
        ):
            return None
    else:
        found = dataclasses.field(default=cast("Any", value))
    if type(found.default).__hash__ is None:
        raise ValueError(f"a default that can change, {type(found.default)}, for field {name}")
    found.name, found.type, found.kw_only = name, kind, named_only
    setattr(found, "_field_type", _FIELD)  # noqa: B010
    return found


def _methods(fields: dict[str, Field[Any]], frozen: bool, has_more: bool) -> dict[str, Any]:
    names = tuple(fields)
    positional = tuple(each.name for each in fields.values() if not each.kw_only)
    values = _values(names)
    put = object.__setattr__

    def __init__(self: Any, /, *args: Any, **named: Any) -> None:  # noqa: N807
        if len(args) > len(positional):
            raise TypeError(
                f"{type(self).__qualname__} takes {len(positional)} values, {len(args)} were given"
            )
        for name, value in zip(positional, args, strict=False):
            if name in named:
                raise TypeError(f"{type(self).__qualname__} got two values for {name}")
            named[name] = value
        for name, each in fields.items():
            if name in named:
                value = named.pop(name)
            elif each.default is not MISSING:
                value = each.default
            elif each.default_factory is not MISSING:
                value = each.default_factory()
            else:
                raise TypeError(f"{type(self).__qualname__} lacks a value for {name}")
            put(self, name, value)
        if named:
            raise TypeError(f"{type(self).__qualname__} has no field {next(iter(named))}")
        if has_more:
            self.__post_init__()

    def __repr__(self: Any) -> str:  # noqa: N807
        said = ", ".join(f"{name}={getattr(self, name)!r}" for name in names)
        return f"{type(self).__qualname__}({said})"

    def __eq__(self: Any, other: object) -> Any:  # noqa: N807
        return values(self) == values(other) if type(other) is type(self) else NotImplemented

    methods: dict[str, Any] = {"__init__": __init__, "__repr__": __repr__, "__eq__": __eq__, "__hash__": None}
    if frozen:

        def __hash__(self: Any) -> int:  # noqa: N807
            return hash(values(self))

        def __getstate__(self: Any) -> list[Any]:  # noqa: N807
            return [getattr(self, name) for name in names]

        def __setstate__(self: Any, state: list[Any]) -> None:  # noqa: N807
            for name, value in zip(names, state, strict=True):
                put(self, name, value)

        methods |= {
            "__hash__": __hash__, "__getstate__": __getstate__, "__setstate__": __setstate__,
            "__setattr__": _refuse_to_set, "__delattr__": _refuse_to_delete,
        }  # fmt: skip
    return methods


def _values(names: tuple[str, ...]) -> Callable[[Any], Any]:
    return operator.attrgetter(*names) if names else lambda _value: ()


def _refuse_to_set(_self: object, name: str, _value: object) -> NoReturn:
    raise FrozenInstanceError(f"cannot assign to field {name!r}")


def _refuse_to_delete(_self: object, name: str) -> NoReturn:
    raise FrozenInstanceError(f"cannot delete field {name!r}")
