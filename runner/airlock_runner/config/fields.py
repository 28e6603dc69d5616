"""What the dataclasses of the config's schema are made with. model.py and network_model.py use it."""

from __future__ import annotations

import re
from dataclasses import field
from typing import Any

NAME_PATTERN = "[A-Za-z0-9][A-Za-z0-9_-]{0,63}"


def setting(doc: str, *, unset: str, default: Any = None, **metadata: Any) -> Any:
    """A key of the config: `doc` says in a few words what it is, `unset` what holds where it is left out.

    `metadata` is for `airlock_store.schema` (`parse`, `each`), and for what `parse` reads `schema`: JSON Schema.
    """
    return field(default=default, metadata={"doc": doc, "unset": unset, **metadata})


def enabled() -> Any:
    """The key by which a named entry is switched off."""
    return setting("false switches the entry off, also one of a weaker layer", default=True, unset="true")


def check_name(name: str, _entry: object) -> None:
    """Raise ValueError unless `name` can be that of a mount, a mask, a cache and the like."""
    if not re.fullmatch(NAME_PATTERN, name):
        raise ValueError(f"{name!r} is not a name: letters, digits, '-' and '_', at most 64")


def parse_path(value: object) -> str:
    """A path on the host, as it is written. Raises ValueError."""
    if not isinstance(value, str) or not value or "\0" in value:
        raise ValueError("expected a path")
    if value.startswith("~") and value != "~" and not value.startswith("~/"):
        raise ValueError(f"{value!r}: only one's own home is known, '~/'")
    return value
