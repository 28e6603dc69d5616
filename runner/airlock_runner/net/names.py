"""Host names in the one form in which they are compared: lower case, no trailing dot, IDNA. Pure."""

from __future__ import annotations

import re

MAX_NAME = 253
_LABEL = re.compile(r"[a-z0-9_-]{1,63}", re.ASCII)
_DEVIATING = re.compile("[\u00df\u1e9e\u03c2\u200c\u200d]")


def canonical(text: str) -> str:
    """The name in `text` in its one form. Raises ValueError for what cannot be a host name.

    Letters that the two versions of IDNA encode differently (ß, ς, joiners) are refused: write their `xn--` form.
    """
    name = text if text.isascii() else _encoded(text)
    name = name.lower().removesuffix(".")
    if len(name) > MAX_NAME:
        raise ValueError(f"{text!r:.60} is longer than {MAX_NAME} characters")
    for label in name.split("."):
        if not _LABEL.fullmatch(label):
            raise ValueError(f"{text!r:.300} is not a host name")
    return name


def _encoded(text: str) -> str:
    if _DEVIATING.search(text):
        raise ValueError(f"{text!r:.80} has a letter that IDNA encodes in two ways: write its 'xn--' form")
    try:
        return text.encode("idna").decode("ascii")
    except UnicodeError:
        raise ValueError(f"{text!r:.80} is not a host name") from None
