"""The config's schema as JSON Schema (2020-12), made of the dataclasses in model.py.

`airlock config schema` prints it for editors; the reference in the manual is made of it.
"""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Mapping
from typing import Any, Literal, Union

from airlock_runner.config.model import ProjectConfig
from airlock_store.settings import NAMES_SCHEMA

DIALECT = "https://json-schema.org/draft/2020-12/schema"
_TYPES = {str: "string", int: "integer", float: "number", bool: "boolean"}


def json_schema() -> dict[str, Any]:
    """The schema of a config file, as one of several layers: so nothing is required that another may say."""
    return {"$schema": DIALECT, "title": "airlock.toml", **_nullable_keys(tables())}


def tables() -> dict[str, Any]:
    """The same without its head, and without a word of null, which stands for a key that is left out."""
    return _table(ProjectConfig)


def _nullable_keys(schema: dict[str, Any]) -> dict[str, Any]:
    changed = dict(schema)
    if "properties" in schema:
        changed["properties"] = {key: _or_null(each) for key, each in schema["properties"].items()}
    if isinstance(schema.get("additionalProperties"), dict):
        changed["additionalProperties"] = _or_null(schema["additionalProperties"])
    return changed


def _or_null(schema: dict[str, Any]) -> dict[str, Any]:
    changed = _nullable_keys(schema)
    if "anyOf" in schema:
        changed["anyOf"] = [*schema["anyOf"], {"type": "null"}]
    if "type" in schema:
        changed["type"] = [schema["type"], "null"]
    if "enum" in schema:
        changed["enum"] = [*schema["enum"], None]
    if "oneOf" in schema:
        changed["oneOf"] = [*schema["oneOf"], {"type": "null"}]
    return changed


def _table(cls: type) -> dict[str, Any]:
    hints = typing.get_type_hints(cls, localns={"Mapping": Mapping})
    return {
        "type": "object",
        "description": (cls.__doc__ or "").partition("\n")[0],
        "additionalProperties": False,
        "properties": {
            each.metadata.get("key", each.name): _property(each, hints[each.name])
            for each in dataclasses.fields(cls)
            if each.init
        },
    }


def _property(each: dataclasses.Field[Any], hint: Any) -> dict[str, Any]:
    schema = {**(each.metadata.get("schema") or _value(hint)), **each.metadata.get("also", {})}
    if "names" in each.metadata:
        schema["propertyNames"] = NAMES_SCHEMA
    doc, unset = each.metadata.get("doc"), each.metadata.get("unset")
    if doc:
        schema["description"] = doc
    if unset:
        # A word for people: what holds by default is often the image's to say, or the host's.
        schema["$comment"] = unset
    return schema


def _value(hint: Any) -> dict[str, Any]:
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    schema: dict[str, Any]
    if origin in (Union, types.UnionType):
        arms = [_value(arm) for arm in args if arm is not types.NoneType]
        schema = arms[0] if len(arms) == 1 else {"anyOf": arms}
    elif dataclasses.is_dataclass(hint):
        schema = _table(typing.cast("type", hint))
    elif origin is Mapping:
        schema = {"type": "object", "additionalProperties": _value(args[1])}
    elif origin is tuple:
        schema = {"type": "array", "items": _value(args[0])}
    elif origin is Literal:
        schema = {"enum": list(args)}
    else:
        schema = {"type": _TYPES[hint]}
    return schema
