"""Text that came from a guest, made safe to print."""

from __future__ import annotations

import re


def printable(text: str, limit: int = 2000) -> str:
    """`text` with control characters shown as escapes (newlines and tabs stay), cut to `limit` characters."""
    cut = text[:limit]
    return "".join(
        character
        if character.isprintable() or character in "\n\t"
        else character.encode("unicode_escape").decode("ascii")
        for character in cut
    )


def one_line(text: str, limit: int = 500) -> str:
    """`text` as it can stand in a line of ours, without a line break that would make another one of it."""
    return printable(" ".join(text[: 4 * limit].split()), limit)


def panic_reason(console: str) -> str | None:
    """Why the guest's kernel panicked, by its console, safe to print; None where it did not."""
    match = re.search(r"Kernel panic - not syncing: (.*)", console)
    if match is None:
        return None
    fault = kernel_fault(console)
    return printable(match[1].strip(), 200) + (f" ({fault})" if fault is not None else "")


def kernel_fault(console: str) -> str | None:
    """The exception that Linux itself ran into first, by its console, safe to print; None where there was none."""
    match = re.search(r"^(?:\[[ \d.]+\] )?(.*) \[#1\]", console, re.MULTILINE)
    return printable(match[1].strip(), 200) if match else None


def last_lines(console: str, count: int = 12) -> str:
    """The last `count` lines of a console that say anything, safe to print, each indented."""
    lines = [line.rstrip() for line in console.replace("\r", "\n").split("\n") if line.strip()]
    return "\n".join(f"    {printable(line, 400)}" for line in lines[-count:])
