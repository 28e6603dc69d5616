"""A program of its own: why Kconfig did not keep options. `explain` runs it, with the kernel's tree as directory.

It reads {option: value asked for} from its input and writes {option: reason}, both JSON. Apart, because kconfiglib
takes everything that Kconfig files refer to from the environment of the process.
"""

from __future__ import annotations

import io
import json
import re
import sys
from typing import Any

import kconfiglib

MAX_NAMES = 6
_N = 0


class Tree(kconfiglib.Kconfig):  # type: ignore[misc]
    """The options of a kernel. What Kconfig has learned since kconfiglib's last release is put into older words."""

    def _open(self, filename: str, mode: str) -> Any:
        file = super()._open(filename, mode)
        if not filename.endswith("Kconfig") or mode != "r":
            return file
        with file:
            return io.StringIO("".join(map(_older, file)))


def _older(line: str) -> str:
    if line.strip() == "modules":
        return "\toption modules\n"
    if line.strip() == "transitional":
        return "\n"
    if match := re.match(r"(\s+depends on) ([^#]+) if ([^#\n]+)", line):
        return f"{match[1]} ({match[2]}) || !({match[3]})\n"
    return line


def main() -> None:
    """Answer for all options of the input."""
    wanted: dict[str, str] = json.load(sys.stdin)
    tree = Tree("Kconfig", warn=False)
    tree.load_config(".config")
    json.dump({option: reason(tree, option, value) for option, value in wanted.items()}, sys.stdout)


def reason(tree: Any, option: str, wanted: str) -> str:
    """Why `option` does not have the value `wanted` in the loaded config; empty where that cannot be told."""
    symbol = tree.syms.get(option)
    if symbol is None or not symbol.nodes:
        return "this architecture has no such option"
    for why in (
        _unmet(symbol, wanted),
        _forced(symbol, wanted),
        _chosen(symbol),
        _range(symbol),
        _unsettable(symbol),
    ):
        if why:
            return why
    return ""


def _unmet(symbol: Any, wanted: str) -> str:
    if wanted == "n" or kconfiglib.expr_value(symbol.direct_dep) != _N:
        return ""
    terms = kconfiglib.split_expr(symbol.direct_dep, kconfiglib.AND)
    unmet = [_text(term) for term in terms if kconfiglib.expr_value(term) == _N]
    return f"it depends on {' and '.join(dict.fromkeys(unmet))}"


def _forced(symbol: Any, wanted: str) -> str:
    if wanted != "n":
        return ""
    selecting = kconfiglib.split_expr(symbol.rev_dep, kconfiglib.OR)
    names = [_text(term) for term in selecting if kconfiglib.expr_value(term) != _N]
    return f"it is selected by {_some(names)}" if names else ""


def _chosen(symbol: Any) -> str:
    choice = symbol.choice
    if choice is None or choice.selection is symbol or choice.selection is None:
        return ""
    return f"of one choice, {choice.selection.name} is taken"


def _range(symbol: Any) -> str:
    for low, high, condition in symbol.ranges:
        if kconfiglib.expr_value(condition) != _N:
            return f"allowed is {low.str_value} to {high.str_value}"
    return ""


def _unsettable(symbol: Any) -> str:
    prompts = [node.prompt[1] for node in symbol.nodes if node.prompt]
    if any(kconfiglib.expr_value(condition) != _N for condition in prompts):
        return ""
    if prompts:
        conditions = " or ".join(dict.fromkeys(_text(condition) for condition in prompts))
        return f"it can be set only with {conditions}"
    selecting = kconfiglib.split_expr(symbol.rev_dep, kconfiglib.OR)
    names = [_text(term) for term in selecting if term is not symbol.kconfig.n]
    return "it cannot be set; " + (f"it is selected by {_some(names)}" if names else "its default decides")


def _some(names: list[str]) -> str:
    more = len(names) - MAX_NAMES
    return ", ".join(names[:MAX_NAMES]) + (f" and {more} more" if more > 0 else "")


def _text(expression: Any) -> str:
    """An expression with the value of each option in it."""

    def name(item: Any) -> str:
        text = str(kconfiglib.standard_sc_expr_str(item))
        constant = isinstance(item, kconfiglib.Symbol) and item.is_constant
        return text if constant else f"{text} (={item.str_value})"

    return str(kconfiglib.expr_str(expression, name))


if __name__ == "__main__":
    main()
