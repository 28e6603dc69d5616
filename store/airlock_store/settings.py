"""Values of the config that a recipe may have as well: what each may be, and the parsers that say so.

`setting` describes one key for the decoder, JSON Schema and the manual; services.py and the runner's model use it.
"""

from __future__ import annotations

import re
from dataclasses import field
from typing import Any

from airlock_store.schema import kind

NAME_PATTERN = "[A-Za-z0-9][A-Za-z0-9_-]{0,63}"
RESERVED = ("proc", "sys", "dev", "airlock")
USER_PATTERN = "[A-Za-z_][A-Za-z0-9_.-]{0,31}|[0-9]{1,9}"
SIGNALS = ("TERM", "INT", "HUP", "QUIT", "USR1", "USR2", "KILL")
MAX_SECONDS, MAX_COUNT, MAX_TEXT, MAX_CPUS = 86400, 1_000_000, 4096, 255

# What the parsers below read, as JSON Schema; patterns in what ECMA's regular expressions and Python's have in common.
# A dollar is always an anchor.
NO_WAY_UP = r"(?!(?:[^\x00]*/)?\.\.(?:/|$))"
TARGET = rf"(?:~(?:/[^\x00]*)?|/(?:\.?/)*(?!(?:{'|'.join(RESERVED)})(?:/|$))(?!\.?(?:/|$))[^\x00]+)"
_REFERENCE = r"\x24\{[A-Za-z_][A-Za-z0-9_]*(?::(?:[^}\x24\x00]|\x24(?!\{))*)?\}"
NAMES_SCHEMA = {"pattern": f"^{NAME_PATTERN}$"}
PATH_SCHEMA = {"type": "string", "title": "path", "pattern": r"^(?:~|~/[^\x00]*|[^~\x00][^\x00]*)$"}
TARGET_SCHEMA = {"type": "string", "title": "path", "pattern": f"^{NO_WAY_UP}{TARGET}$"}
GUEST_PATH_SCHEMA = {"type": "string", "title": "path", "pattern": r"^/[^\x00]*$"}
USER_SCHEMA = {"type": "string", "pattern": f"^({USER_PATTERN})$"}
SIGNAL_SCHEMA = {"type": "string", "title": "signal", "enum": [*SIGNALS, *(f"SIG{name}" for name in SIGNALS)]}
SECONDS_SCHEMA = {"type": "number", "minimum": 0, "maximum": MAX_SECONDS}
TEXT_SCHEMA = {"type": "string", "minLength": 1, "maxLength": MAX_TEXT}
ARGV_SCHEMA = {
    "type": "array",
    "prefixItems": [{"type": "string", "pattern": r"^[^\x00]+$"}],
    "items": {"type": "string", "pattern": r"^[^\x00]*$"},
    "minItems": 1,
}
ENV_SCHEMA = {
    "type": "object",
    "propertyNames": {"pattern": r"^[^=\x00]+$"},
    "additionalProperties": {
        "type": "string",
        "pattern": rf"^(?:[^\x24\x00]|\x24\x24|{_REFERENCE}|\x24(?![\x24{{]))*$",
        "description": "its value; `${VAR}` is replaced",
    },
}
MAX_ENV = 128 << 10  # bytes of a name and its value: Linux takes no longer string in execve(2)


def setting(doc: str, *, unset: str, default: Any = None, **metadata: Any) -> Any:
    """A key of the config: `doc` says in a few words what it is, `unset` what holds where it is left out.

    `metadata` is for `airlock_store.schema` (`parse`, `each`), and for what `parse` reads `schema`: JSON Schema.
    """
    return field(default=default, metadata={"doc": doc, "unset": unset, **metadata})


def enabled() -> Any:
    """The key `enabled`, which every entry that has a name has."""
    return setting("false switches the entry off, also one of a weaker layer", default=True, unset="true")


def check_env(name: str, value: str) -> None:
    """Raise ValueError unless `name` and `value` make an environment variable that execve(2) can pass on."""
    if not name or "=" in name or "\0" in name:
        raise ValueError(f"{name!r} cannot be the name of an environment variable")
    if "\0" in value:
        raise ValueError(f"the value of {name!r} has a NUL character")
    if len(f"{name}={value}".encode(errors="surrogateescape")) >= MAX_ENV:
        raise ValueError(f"the value of {name[:40]!r} is too long for an environment variable")


def check_name(name: str) -> None:
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


def parse_target(value: object) -> str:
    """A directory of the sandbox, absolute or below `~`, normal. Raises ValueError."""
    path = parse_path(value)
    if not path.startswith(("/", "~")):
        raise ValueError(f"{path!r} is neither absolute nor below '~'")
    parts = [part for part in path.split("/") if part not in ("", ".")]
    if ".." in parts:
        raise ValueError(f"{path!r} has '..' in it")
    if path.startswith("/") and (not parts or parts[0] in RESERVED):
        raise ValueError(f"nothing can be mounted at {path!r}")
    return "/".join(parts) if path.startswith("~") else f"/{'/'.join(parts)}"


def parse_guest_path(value: object) -> str:
    """An absolute path in the sandbox. Raises ValueError."""
    path = parse_path(value)
    if not path.startswith("/"):
        raise ValueError(f"{path!r} is not absolute")
    return path


def parse_cpus(value: object) -> int:
    """A number of virtual CPUs, 1 to 255; more than the host has is allowed. Raises ValueError."""
    if type(value) is not int:
        raise ValueError(f"expected an integer, found {kind(value)}")
    if not 1 <= value <= MAX_CPUS:
        raise ValueError(f"a VM has 1 to {MAX_CPUS} CPUs, found {value}")
    return value


def parse_user(value: object) -> str:
    """The name of a user in the sandbox, or a number of one as a string. Raises ValueError."""
    if not isinstance(value, str) or not re.fullmatch(USER_PATTERN, value):
        raise ValueError('expected the name of a user or a number in quotes, such as "1000"')
    return value


def parse_argv(value: object) -> tuple[str, ...]:
    """A program and its arguments. Raises ValueError."""
    if not isinstance(value, list) or not value or not value[0]:
        raise ValueError("expected an array with a program and its arguments")
    return tuple(_word(word) for word in value)


def parse_text(value: object) -> str:
    """A text of 1 to 4096 characters. Raises ValueError."""
    if not isinstance(value, str) or not 0 < len(value) <= MAX_TEXT:
        raise ValueError(f"expected a text of 1 to {MAX_TEXT} characters")
    return value


def parse_signal(value: object) -> str:
    """The name of a signal, with SIG before it. Raises ValueError."""
    name = value.removeprefix("SIG") if isinstance(value, str) else ""
    if name not in SIGNALS:
        raise ValueError(f"expected one of {', '.join(SIGNALS)}")
    return f"SIG{name}"


def parse_seconds(value: object) -> float:
    """Seconds, a day at most. Raises ValueError."""
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 <= value <= MAX_SECONDS:
        raise ValueError(f"expected a number of seconds from 0 to {MAX_SECONDS}")
    return float(value)


def parse_count(value: object) -> int:
    """How many times. Raises ValueError."""
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= MAX_COUNT:
        raise ValueError(f"expected an integer from 0 to {MAX_COUNT}")
    return value


def parse_port(value: object) -> int:
    """The number of a TCP port. Raises ValueError."""
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= 65535:
        raise ValueError("expected the number of a port, 1 to 65535")
    return value


def _word(value: object) -> str:
    if not isinstance(value, str) or "\0" in value:
        raise ValueError("expected strings without NUL characters")
    return value
