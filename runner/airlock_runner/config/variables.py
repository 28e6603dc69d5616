"""`${VAR}` in values of the config. The check is made when a file is read, the lookup when a sandbox starts.

Where values come from is a function, so that a vault of secrets can stand behind the same notation as the environment.
"""

from __future__ import annotations

import re
from collections.abc import Callable

Lookup = Callable[[str], str | None]
"""The value of a variable, or None where it is not defined."""

_REFERENCE = re.compile(r"\$(?:(\$)|\{([^}:]*)(?::([^}]*))?(\})?)")
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


class UndefinedVariableError(ValueError):
    """A variable without a default that the lookup does not know. `variable` is its name."""

    def __init__(self, variable: str) -> None:
        super().__init__(f"the variable {variable} is not defined")
        self.variable = variable


def check_references(text: str) -> None:
    """Raise ValueError unless every `${` in `text` begins a `${VAR}` or a `${VAR:default}`."""
    expand(text, lambda _name: "")


def escaped(text: str) -> str:
    """What `expand` makes `text` of."""
    return text.replace("$", "$$")


def expand(text: str, lookup: Lookup) -> str:
    """`text` with its references replaced: `${VAR}`, `${VAR:default}` where VAR is not defined, `$$` for a dollar.

    Any other dollar stands for itself. What is put in is not looked at again. Raises UndefinedVariableError, and
    ValueError for a reference that is not one.
    """

    def replace(match: re.Match[str]) -> str:
        dollar, name, default, close = match.groups()
        if dollar:
            return "$"
        if not close:
            raise ValueError("'${' without '}'; a dollar before a brace is written '$$'")
        if not _NAME.fullmatch(name):
            raise ValueError(
                f"'${{{name}}}' does not name a variable; a dollar before a brace is written '$$'"
            )
        if default and "${" in default:
            raise ValueError(f"the default of {name} has a reference of its own")
        value = lookup(name)
        if value is None:
            value = default
        if value is None:
            raise UndefinedVariableError(name)
        return value

    return _REFERENCE.sub(replace, text)
