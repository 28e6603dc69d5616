"""What airlockd found of the kernel's promises, judged by what the image promises. The session asks at READY.

airlockd says it before anything of a project runs; all the same, what it says is read as from a stranger.
"""

from __future__ import annotations

import zlib
from typing import TYPE_CHECKING, Any

from airlock_runner.text import one_line
from airlock_store.image import encode_promises

if TYPE_CHECKING:
    from collections.abc import Mapping

    from airlock_store.image import Image

SHOWN = 10
"""Lost options that are named to the user."""


def broken(image: Image, ready: Mapping[str, Any]) -> str | None:
    """What is wrong with the kernel that said `ready` (the event of airlockd), for people; None where all is proven.

    An image without promises has none to break.
    """
    if not image.kernel_options:
        return None
    report = ready.get("promises")
    if not isinstance(report, dict):
        return "airlockd did not compare its options with those that the image promises"
    if report.get("problem") is not None:
        return f"its options could not be compared: {one_line(str(report['problem']), 200)}"
    if report.get("promises") != zlib.crc32(encode_promises(image.kernel_options)):
        return "its options were compared with other promises than those of the image"
    count, first = report.get("lost"), report.get("first")
    if count == 0 and not first:
        return None
    named = [_line(each) for each in first[:SHOWN]] if isinstance(first, list) else []
    more = [f"  and {count - len(named)} more"] if isinstance(count, int) and count > len(named) else []
    return "\n".join(["it lacks options that its image promises:", *named, *more])


def _line(lost: object) -> str:
    match lost:
        case [option, wanted, found]:
            option, wanted, found = (one_line(str(each), 100) for each in (option, wanted, found))
            return f"  CONFIG_{option} should be {wanted} and is {found}"
    return f"  {one_line(str(lost), 100)}"
