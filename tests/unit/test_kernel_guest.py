"""What airlockd says of the running kernel's options."""

from __future__ import annotations

import gzip
import os
import zlib
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airlock_builder.kernel.dotconfig import format_config
from airlockd import kernelcheck

if TYPE_CHECKING:
    from pathlib import Path

VERSION = os.uname().release.partition("-")[0]
CONFIG = f"""\
#
# Automatically generated file; DO NOT EDIT.
# Linux/x86 {VERSION} Kernel Configuration
#
CONFIG_A=y
CONFIG_B=m
# CONFIG_C is not set
CONFIG_TEXT="a = b"
CONFIG_START=0X1F00
"""


def test_what_is_as_promised() -> None:
    promised = {"A": "y", "B": "m", "C": "n", "TEXT": '"a = b"', "START": "0x1f00", "GONE": "n"}
    assert kernelcheck.lost(promised, CONFIG) == []


def test_what_is_not() -> None:
    promised = {"A": "m", "B": "y", "C": "y", "D": "y", "TEXT": '"a"'}
    assert kernelcheck.lost(promised, CONFIG) == [
        ("A", "m", "y"),
        ("B", "y", "m"),
        ("C", "y", "n"),
        ("D", "y", "n"),
        ("TEXT", '"a"', '"a = b"'),
    ]


VALUES = st.sampled_from(["y", "n", "m", "64", "0x40", '"text"'])
OPTIONS = st.dictionaries(st.sampled_from("ABCDEF"), VALUES, min_size=1)


@given(OPTIONS, OPTIONS)
def test_it_agrees_with_the_builder(promised: dict[str, str], there: dict[str, str]) -> None:
    there["Z"] = "y"
    assert kernelcheck.lost(promised, format_config(there)) == [
        (option, value, there.get(option, "n"))
        for option, value in promised.items()
        if there.get(option, "n") != value
    ]


def test_nothing_promised_or_nothing_there_proves_nothing() -> None:
    with pytest.raises(ValueError, match="promises no kernel options"):
        kernelcheck.lost({}, CONFIG)
    for empty in ("", "\n\n", "# CONFIG_A is not set\n"):
        with pytest.raises(ValueError, match="config is empty"):
            kernelcheck.lost({"A": "n"}, empty)


@pytest.fixture
def places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path]:
    own, copy = tmp_path / "own.gz", tmp_path / "copy.gz"
    monkeypatch.setattr(kernelcheck, "OWN", own)
    monkeypatch.setattr(kernelcheck, "COPY", copy)
    return own, copy


def test_the_kernels_own_word_comes_first(places: tuple[Path, Path]) -> None:
    own, copy = places
    with pytest.raises(FileNotFoundError):
        kernelcheck.lost({"A": "y"})
    copy.write_bytes(gzip.compress(CONFIG.replace("CONFIG_A=y", "CONFIG_A=m").encode()))
    assert kernelcheck.lost({"A": "y"}) == [("A", "y", "m")]
    own.write_bytes(gzip.compress(CONFIG.encode()))
    assert kernelcheck.lost({"A": "y"}) == []


@pytest.mark.parametrize("header", ["", "# Linux/x86 1.2.3 Kernel Configuration\n", "# Linux/x86\n"])
def test_the_config_of_another_kernel(places: tuple[Path, Path], header: str) -> None:
    places[1].write_bytes(gzip.compress(f"{header}CONFIG_A=y\n".encode()))
    with pytest.raises(ValueError, match="not that of Linux"):
        kernelcheck.lost({"A": "y"})


def test_a_config_that_is_cut_short_or_endless(places: tuple[Path, Path]) -> None:
    packed = gzip.compress(CONFIG.encode())
    for bad in (packed[:-9], gzip.compress(CONFIG.encode() + bytes(8 << 20)), b"no gzip"):
        places[1].write_bytes(bad)
        with pytest.raises(ValueError, match=r"cut short or too large|cannot be unpacked"):
            kernelcheck.lost({"A": "y"})
    assert zlib.decompress(packed, 31).decode() == CONFIG
