"""Sizes as people write them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airlock_store.sizes import GIB, KIB, MIB, TIB, exact_size, format_size, parse_size


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("512 MB", 512 * MIB),
        ("512MiB", 512 * MIB),
        ("4 gb", 4 * GIB),
        ("2G", 2 * GIB),
        ("1.5 GiB", 3 * GIB // 2),
        ("0.3 K", 307),
        (" 7 B ", 7),
        ("1T", TIB),
    ],
)
def test_units_count_in_powers_of_1024(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize(
    "value",
    [512, True, 1.5, None, "512", "MB", "-1 MB", "1e3 MB", "1 XB", "1.MB", "١ MB", "1 MB\n2", "9999999 TB"],
)
def test_everything_else_is_refused(value: object) -> None:
    with pytest.raises(ValueError, match=r"size|more than"):
        parse_size(value)


@pytest.mark.parametrize(
    ("value", "example"), [(1, "256 MB"), (256, "256 MB"), (300, "300 MB"), (-5, "256 MB")]
)
def test_what_is_suggested_is_enough(value: int, example: str) -> None:
    with pytest.raises(ValueError, match=f'such as "{example}", found {value}'):
        parse_size(value, 256 * MIB)


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (KIB, "1 KB"),
        (GIB - 1, "1 GB"),
        (3 * GIB // 2, "1.5 GB"),
        (5000 * TIB, "5000 TB"),
    ],
)
def test_sizes_are_printed_short(size: int, text: str) -> None:
    assert format_size(size) == text


@given(st.integers(0, 1 << 55))
def test_what_is_printed_reads_back_to_within_a_twentieth_of_its_unit(size: int) -> None:
    assert abs(parse_size(format_size(size)) - size) <= max(size // 20, 0)


@given(st.integers(0, 10**12 - 1) | st.integers(0, 1 << 30).map(lambda number: number * GIB))
def test_what_is_printed_exactly_reads_back_as_it_was(size: int) -> None:
    assert parse_size(exact_size(size)) == size


def test_exact_sizes_have_the_largest_unit_that_does_it() -> None:
    sizes = [512 * MIB, 3 * GIB // 2, GIB + 1, 2 * TIB]
    assert [exact_size(size) for size in sizes] == ["512 MB", "1536 MB", "1073741825 B", "2 TB"]
