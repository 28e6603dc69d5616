"""What airlockd says of the running kernel's options."""

from __future__ import annotations

import gzip
import json
import os
import zlib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airlock_builder.kernel.dotconfig import format_config
from airlock_runner.promises import broken
from airlock_store.image import Image, encode_promises
from airlockd import kernelcheck

RELEASE = os.uname().release
CONFIG = """\
#
# Automatically generated file; DO NOT EDIT.
# Linux/x86 6.12.1 Kernel Configuration
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
    own, copy = tmp_path / "own.gz", tmp_path / f"config-{RELEASE}.gz"
    monkeypatch.setattr(kernelcheck, "OWN", own)
    monkeypatch.setattr(kernelcheck, "COPIES", tmp_path)
    return own, copy


def test_the_kernels_own_word_comes_first(places: tuple[Path, Path]) -> None:
    own, copy = places
    with pytest.raises(FileNotFoundError):
        kernelcheck.lost({"A": "y"})
    copy.write_bytes(gzip.compress(CONFIG.replace("CONFIG_A=y", "CONFIG_A=m").encode()))
    assert kernelcheck.lost({"A": "y"}) == [("A", "y", "m")]
    own.write_bytes(gzip.compress(CONFIG.encode()))
    assert kernelcheck.lost({"A": "y"}) == []


@pytest.mark.parametrize("release", [RELEASE[:-1], f"{RELEASE}1", "", f"rt-{RELEASE}"])
def test_the_config_of_another_kernel_is_not_believed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, release: str
) -> None:
    report = reported(tmp_path, monkeypatch, b"A=y\n", release=release)
    text = broken(image(A="y"), {"promises": report})
    assert text is not None
    assert text.startswith("its options could not be compared: ")
    assert f"config-{RELEASE}.gz" in text


def test_a_config_that_is_cut_short_or_endless(places: tuple[Path, Path]) -> None:
    packed = gzip.compress(CONFIG.encode())
    for bad in (packed[:-9], gzip.compress(CONFIG.encode() + bytes(8 << 20)), b"no gzip"):
        places[1].write_bytes(bad)
        with pytest.raises(ValueError, match=r"cut short or too large|cannot be unpacked"):
            kernelcheck.lost({"A": "y"})
    assert zlib.decompress(packed, 31).decode() == CONFIG


# What airlockd reports, and what the host makes of it


def image(**options: str) -> Image:
    files = {name: Path(name) for name in ("path", "kernel", "initrd", "rootfs")}
    texts = dict.fromkeys(
        ("key", "name", "summary", "arch", "kernel_release", "rootfs_format", "rootfs_key"), ""
    )
    return Image(**files, **texts, kernel_options=options)  # type: ignore[arg-type]


def reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, promises: bytes | None, release: str = RELEASE
) -> dict[str, Any]:
    """airlockd's report, as the wire delivers it, with a copy of the config of a kernel of this release, CONFIG."""
    copy, list_ = tmp_path / f"config-{release}.gz", tmp_path / "promises"
    copy.write_bytes(gzip.compress(CONFIG.encode()))
    if promises is not None:
        list_.write_bytes(promises)
    monkeypatch.setattr(kernelcheck, "OWN", tmp_path / "none")
    monkeypatch.setattr(kernelcheck, "COPIES", tmp_path)
    monkeypatch.setattr(kernelcheck, "PROMISES", list_)
    report: dict[str, Any] = json.loads(json.dumps(kernelcheck.report()))
    return report


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"A": "y", "B": "m", "C": "n", "TEXT": '"a = b"', "START": "0x1f00"}, None),
        ({"A": "y", "C": "y"}, "it lacks options that its image promises:\n  CONFIG_C should be y and is n"),
    ],
)
def test_a_report_and_its_verdict(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: dict[str, str], text: str | None
) -> None:
    report = reported(tmp_path, monkeypatch, encode_promises(options))
    assert broken(image(**options), {"promises": report}) == text
    # It is of these promises and no others.
    other = broken(image(**options, MORE="y"), {"promises": report})
    assert other == "its options were compared with other promises than those of the image"


def test_a_report_is_small_however_much_is_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = {f"OPTION_{number}": "y" for number in range(300)}
    report = reported(tmp_path, monkeypatch, encode_promises(options))
    assert (report["lost"], len(report["first"])) == (300, kernelcheck.SHOWN)
    text = broken(image(**options), {"promises": report})
    assert text is not None
    assert text.splitlines()[-1] == "  and 290 more"


@pytest.mark.parametrize(("promises", "why"), [(None, "No such file"), (b"", "promises no kernel options")])
def test_a_report_of_nothing_proves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, promises: bytes | None, why: str
) -> None:
    report = reported(tmp_path, monkeypatch, promises)
    text = broken(image(A="y"), {"promises": report})
    assert text is not None
    assert text.startswith("its options could not be compared: ")
    assert why in text


GOOD = {"promises": zlib.crc32(b"A=y\n"), "lost": 0, "first": [], "problem": None}


@pytest.mark.parametrize(
    ("ready", "good"),
    [
        ({"promises": GOOD}, True),
        ({}, False),
        ({"promises": None}, False),
        ({"promises": {}}, False),
        ({"promises": {**GOOD, "promises": True}}, False),
        ({"promises": {**GOOD, "lost": None}}, False),
        ({"promises": {**GOOD, "lost": -1, "first": 7}}, False),
        ({"promises": {**GOOD, "first": [["A"], {"b": 1}, None]}}, False),
        ({"promises": {**GOOD, "problem": {"\x1b[2J": 1}}}, False),
    ],
)
def test_the_host_believes_a_good_report_only(ready: dict[str, Any], good: bool) -> None:
    text = broken(image(A="y"), ready)
    assert (text is None) == good
    assert "\x1b" not in (text or "")


def test_an_image_without_promises_has_none_to_break() -> None:
    assert broken(image(), {}) is None
