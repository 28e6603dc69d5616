"""Text from a guest never reaches the terminal with its control characters."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airlock_runner.text import last_lines, panic_reason, printable


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("plain", "plain"),
        ("caf\u00e9", "caf\u00e9"),
        ("\x1b]0;owned\x07", "\\x1b]0;owned\\x07"),
        ("a\tb\nc", "a\tb\nc"),
        ("\x9b31m", "\\x9b31m"),
        ("\u202eevil", "\\u202eevil"),
    ],
)
def test_printable(text: str, expected: str) -> None:
    assert printable(text) == expected


@given(st.text(max_size=200))
def test_nothing_that_a_terminal_obeys_is_left(text: str) -> None:
    assert all(character.isprintable() or character in "\n\t" for character in printable(text))


@pytest.mark.parametrize(
    ("console", "reason"),
    [
        ("[    1.0] all is well\n", None),
        (
            "[    2.5] Kernel panic - not syncing: sysrq triggered crash\r\n[  2.6] CPU: 0",
            "sysrq triggered crash",
        ),
        ("Kernel panic - not syncing: \x1b[31mred", "\\x1b[31mred"),
        (
            "[    2.4] Oops: int3: 0000 [#1] PREEMPT SMP\r\n[    2.4] Oops: 0000 [#2] SMP\r\n"
            "[    2.5] Kernel panic - not syncing: Fatal exception in interrupt\r\n",
            "Fatal exception in interrupt (Oops: int3: 0000)",
        ),
        (
            "int3: 0000 [#1] SMP\nKernel panic - not syncing: Attempted to kill init!",
            "Attempted to kill init! (int3: 0000)",
        ),
        ("[    2.4] Oops: int3: 0000 [#1] PREEMPT SMP\n", None),
        ("\x1b[2J [#1]\nKernel panic - not syncing: no", "no (\\x1b[2J)"),
    ],
)
def test_panic_reason(console: str, reason: str | None) -> None:
    assert panic_reason(console) == reason


def test_last_lines_are_the_last_that_say_something() -> None:
    console = "one\r\n\r\ntwo\rthree\n   \nfour\x1b[2J\n"
    assert last_lines(console, 3) == "    two\n    three\n    four\\x1b[2J"
