"""Sizes of memory and disks as people write them ("512 MB", "2G", "1.5 GiB"), and back.

Recipes and airlock.toml are decoded with `parse_size`; tables and messages are printed with `format_size`.
"""

from __future__ import annotations

import re

KIB, MIB, GIB, TIB = 1 << 10, 1 << 20, 1 << 30, 1 << 40

_FACTORS = {"B": 1, "K": KIB, "M": MIB, "G": GIB, "T": TIB}
SIZE_PATTERN = r"^\s*[0-9]{1,12}(\.[0-9]{1,6})?[ \t]*([KMGTkmgt]([Ii]?[Bb])?|[Bb])\s*$"
"""What `parse_size` reads, as JSON Schema takes patterns."""
_SIZE = re.compile(r"([0-9]{1,12})(?:\.([0-9]{1,6}))?[ \t]*(?:([KMGT])(?:I?B)?|B)", re.IGNORECASE | re.ASCII)
_MAX = 1 << 60


def parse_size(value: object, least: int = 0) -> int:
    """Bytes in `value`, a number with a unit: B, K, KB, KiB, M, MB, MiB … T, TB, TiB, in either case.

    Every unit counts in powers of 1024, whatever its spelling: memory and virtual disks come in such sizes, and
    QEMU and Docker read them so. Fractions are rounded down to whole bytes. Raises ValueError for everything
    else; a bare number too, because nobody can tell what it counts. At `least` so many bytes is what it then suggests:
    whether a size is enough is for the caller to say.
    """
    if isinstance(value, int) and not isinstance(value, bool):
        example = max(value, 1, -(-least // MIB))
        raise ValueError(f'expected a size with a unit, such as "{example} MB", found {value}')
    if not isinstance(value, str):
        raise ValueError('expected a size with a unit, such as "512 MB"')
    match = _SIZE.fullmatch(value.strip())
    if match is None:
        raise ValueError(f'expected a size with a unit, such as "512 MB", found {value[:40]!r}')
    whole, fraction, unit = match.groups()
    digits = whole + (fraction or "")
    size = int(digits) * _FACTORS[(unit or "B").upper()] // int(10 ** len(fraction or ""))
    if size > _MAX:
        raise ValueError(f"{value.strip()} is more than anything here can hold")
    return size


def exact_size(size: int) -> str:
    """`size` bytes to the last of them, in the largest unit that does it."""
    unit = next(unit for unit in "TGMKB" if size % _FACTORS[unit] == 0)
    return f"{size // _FACTORS[unit]} {unit.rstrip('B')}B"


def format_size(size: int) -> str:
    """`size` bytes for people: "512 MB", "1.5 GB", "0 B". At most one decimal, counted in powers of 1024."""
    factor, name = 1, "B"
    for unit in "KMGT":
        # Half of the last decimal below the next unit would print as "1024 KB".
        if size < _FACTORS[unit] - factor // 20:
            break
        factor, name = _FACTORS[unit], f"{unit}B"
    tenths = (size * 10 + factor // 2) // factor
    return f"{tenths // 10}.{tenths % 10} {name}" if tenths % 10 else f"{tenths // 10} {name}"
