"""The last proof of the kernel's options: the running kernel's own config against what its image promises.

The supervisor calls `report` for READY, so that a saved machine has it behind it. The builder put the promises into
the initrd; the host compares which they were with the image's manifest.
"""

from __future__ import annotations

import os
import zlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

OWN = Path("/proc/config.gz")
"""What a kernel with IKCONFIG_PROC says of itself."""
COPIES = Path("/lib/modules")
"""Where the initrd has a copy, `config-RELEASE.gz`, for Debian's kernels, which say nothing."""
PROMISES = Path("/lib/modules/promises")
"""The options that the image promises, a line of `NAME=value` each."""
SHOWN = 20
"""Lost options that a report names; it becomes part of a saved state's small manifest."""

_LIMIT = 4 << 20
_GZIP = 31


def report() -> dict[str, Any]:
    """For READY. `promises`: the CRC-32 of the promises compared, by which the host knows them. `lost`: how many
    options are not as promised, and `first` the first of them as `lost` gives them. `problem`: why nothing could be
    compared, None where all was.
    """
    try:
        raw = PROMISES.read_bytes()
        missing = lost(dict(line.split("=", 1) for line in raw.decode().splitlines()))
    except (OSError, ValueError) as error:
        return {"promises": 0, "lost": 0, "first": [], "problem": str(error)}
    return {"promises": zlib.crc32(raw), "lost": len(missing), "first": missing[:SHOWN], "problem": None}


def lost(promised: Mapping[str, str], config: str | None = None) -> list[tuple[str, str, str]]:
    """Option, promised value and value found of each option (without CONFIG_) that is not as promised.

    `config` is the running kernel's by default. Raises OSError where the guest has none of this kernel, ValueError
    for one that is empty, and for no promises at all: then nothing would be proven.
    """
    if not promised:
        raise ValueError("the image promises no kernel options")
    text = "\n" + (running_config() if config is None else config)
    if "\nCONFIG_" not in text:
        raise ValueError("the kernel's config is empty")
    # Ten thousand lines taken apart would be felt in a boot under emulation: only what seems to differ is.
    lines = set(text.splitlines())
    suspects = {
        option
        for option, value in promised.items()
        if (f"\nCONFIG_{option}=" in text if value == "n" else f"CONFIG_{option}={value}" not in lines)
    }
    found = _options(text, suspects)
    return [
        (option, value, found.get(option, "n"))
        for option, value in promised.items()
        if option in suspects and found.get(option, "n") != value
    ]


def running_config() -> str:
    """The text of the running kernel's config. Raises OSError, or ValueError when it is cut short or too large.

    A copy counts for the very release that it was made for: the header within tells the version alone, which kernels of
    other flavours share.
    """
    copy = COPIES / f"config-{os.uname().release}.gz"
    return _unpack((OWN if OWN.exists() else copy).read_bytes())


def _unpack(packed: bytes) -> str:
    unpacker = zlib.decompressobj(_GZIP)
    try:
        raw = unpacker.decompress(packed, _LIMIT)
    except zlib.error as error:
        raise ValueError(f"the kernel's config cannot be unpacked: {error}") from error
    if not unpacker.eof:
        raise ValueError("the kernel's config is cut short or too large")
    return raw.decode()


def _options(config: str, wanted: set[str]) -> dict[str, str]:
    if not wanted:
        return {}
    return {
        line[7:end]: _number(line[end + 1 :])
        for line in config.splitlines()
        if line.startswith("CONFIG_") and (end := line.find("=")) > 0 and line[7:end] in wanted
    }


def _number(value: str) -> str:
    """Hex as the builder writes it."""
    return hex(int(value, 16)) if value[:2] in ("0x", "0X") else value
