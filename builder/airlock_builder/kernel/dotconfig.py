"""Kernel configs as text: `CONFIG_FOO=y` and `# CONFIG_FOO is not set`, read strictly. For all checks.

The format: Linux Documentation/kbuild/kconfig.rst, and what scripts/kconfig/confdata.c writes.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from airlock_store.errors import ConfigError, Location

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

PREFIX = "CONFIG_"
MAX_CONFIG = 4 << 20
"""Characters that a config may have. Debian's have a third of a million."""

_NAME = r"[A-Za-z0-9_]{1,100}"
_ASSIGNED = re.compile(rf"CONFIG_({_NAME})=(.*)")
_UNSET = re.compile(rf"# CONFIG_({_NAME}) is not set")
# One line: Kconfig would read what follows a line break as options of their own.
_STRING = re.compile(r'"(?:[^"\\\r\n]|\\[^\r\n])*"')


def parse_config(text: str, path: Path) -> dict[str, str]:
    """The options of a config, names without CONFIG_, values as `canonical` gives them; what is not set is "n".

    `path` only names it. Raises ConfigError with the line for what is no config, for an option with two values, and
    for a config without any option.
    """
    if len(text) > MAX_CONFIG:
        raise ConfigError(f"larger than {MAX_CONFIG} characters", at=Location(path))
    options: dict[str, str] = {}
    for number, line in enumerate(text.split("\n"), 1):
        try:
            found = parse_line(line.rstrip("\r"))
        except ValueError as error:
            raise ConfigError(str(error), at=Location(path, number, 1)) from error
        if found is not None:
            name, value = found
            if options.setdefault(name, value) != value:
                raise ConfigError(f"{PREFIX}{name} has two values", at=Location(path, number, 1))
    if not options:
        raise ConfigError("this config has no options", at=Location(path))
    return options


def parse_line(line: str) -> tuple[str, str] | None:
    """The option and its value that a line sets; None for comments and blank lines. ValueError for anything else."""
    if match := _ASSIGNED.fullmatch(line):
        return match[1], canonical(match[2])
    if match := _UNSET.fullmatch(line):
        return match[1], "n"
    if line.strip() and not line.startswith("#"):
        raise ValueError(f"{line[:60]!r} is not an option of a kernel config")
    if line.startswith(f"# {PREFIX}") or line.startswith(f"#{PREFIX}"):
        # What looks like an option but sets none would be missed without a word.
        raise ValueError(f"{line[:60]!r} is neither an option nor a comment")
    return None


def canonical(value: str) -> str:
    """The one spelling of a value: y, m, n, a number in decimal or lower-case hex, or a string in quotes.

    Raises ValueError for what is none of these.
    """
    if value in {"y", "m", "n"}:
        return value
    if re.fullmatch(r"-?[0-9]{1,20}", value):
        return str(int(value))
    if re.fullmatch(r"0[xX][0-9A-Fa-f]{1,16}", value):
        return hex(int(value, 16))
    if _STRING.fullmatch(value):
        return value
    raise ValueError(f"{value[:60]!r} is not a value: y, m, n, a number, or a string in double quotes")


def format_option(name: str, value: str) -> str:
    """The line that sets an option."""
    return f"# {PREFIX}{name} is not set" if value == "n" else f"{PREFIX}{name}={value}"


def format_config(options: Mapping[str, str]) -> str:
    """A config with these options, a line each."""
    return "".join(f"{format_option(name, value)}\n" for name, value in options.items())
