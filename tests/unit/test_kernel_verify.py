"""The proof of options: exactly the value asked for, and never a pass for want of something to compare."""

from __future__ import annotations

import gzip
import zlib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airlock_builder.kernel import debian
from airlock_builder.kernel.verify import OptionsLostError, Verdict, lost, promised, verify
from airlock_builder.kernel.versions import format_version, parse_version
from airlock_builder.kernel.waivers import parse_waivers
from airlock_builder.kernel.wanted import Asked, Wanted
from airlock_store.errors import BuildError, ConfigError

WAIVERS = Path("waivers.toml")
WAIVER = """
[[waivers]]
option = "A"
reason = "gone, and not missed"
from = "6.10"
below = "6.13"
"""


def wanted(**options: str) -> dict[str, Wanted]:
    return {
        name: Wanted(name, value, (Asked(value, "f", "a.config.j2:1"),)) for name, value in options.items()
    }


def judge(
    options: dict[str, Wanted],
    config: dict[str, str],
    waivers: str = "",
    *,
    version: tuple[int, int] = (6, 12),
    arch: str = "x86_64",
    modules: bool = False,
) -> list[Verdict]:
    parsed = parse_waivers(waivers, WAIVERS)
    return verify(options, config, version=version, arch=arch, waivers=parsed, modules=modules)


@pytest.mark.parametrize(
    ("value", "found", "state"),
    [
        ("y", "y", "ok"),
        ("y", "m", "lost"),
        ("y", "n", "lost"),
        ("n", "n", "ok"),
        ("n", "m", "lost"),
        ("n", "y", "lost"),
        ("64", "64", "ok"),
        ("64", "640", "lost"),
        ("0x40", "64", "lost"),
        ('"a"', '"a"', "ok"),
        ('"a"', '"a b"', "lost"),
        ('""', "n", "lost"),
    ],
)
def test_only_the_value_itself_will_do(value: str, found: str, state: str) -> None:
    (verdict,) = judge(wanted(A=value), {"A": found, "Z": "y"})
    assert (verdict.found, verdict.state) == (found, state)


def test_a_prebuilt_kernel_may_have_modules() -> None:
    verdicts = judge(wanted(A="y", B="y", C="y", D="n"), {"A": "y", "B": "m", "D": "m"}, modules=True)
    assert [verdict.state for verdict in verdicts] == ["ok", "ok", "lost", "lost"]
    assert promised(verdicts) == {"A": "y", "B": "m"}


def test_what_is_not_mentioned_is_n() -> None:
    assert [verdict.state for verdict in judge(wanted(A="n", B="y"), {"Z": "y"})] == ["ok", "lost"]


@given(st.dictionaries(st.sampled_from("ABCDE"), st.sampled_from("yn"), min_size=1))
def test_every_option_gets_a_verdict(options: dict[str, str]) -> None:
    verdicts = judge(wanted(**options), {"A": "y", "C": "y"})
    assert [verdict.wanted.option for verdict in verdicts] == list(options)
    assert {verdict.wanted.option for verdict in lost(verdicts)} == {
        name for name, value in options.items() if (value == "y") != (name in "AC")
    }


def test_nothing_wanted_proves_nothing() -> None:
    with pytest.raises(BuildError, match="no kernel options are wanted"):
        judge({}, {"A": "y"})


@pytest.mark.parametrize("config", [{}, {"A": "n", "B": "n"}])
def test_an_empty_config_proves_nothing(config: dict[str, str]) -> None:
    with pytest.raises(BuildError, match="config is empty"):
        judge(wanted(A="n"), config)


@pytest.mark.parametrize(
    ("version", "state"),
    [((6, 9), "lost"), ((6, 10), "waived"), ((6, 12), "waived"), ((6, 13), "lost"), ((7, 0), "lost")],
)
def test_a_waiver_holds_for_its_versions(version: tuple[int, int], state: str) -> None:
    (verdict,) = judge(wanted(A="y"), {"Z": "y"}, WAIVER, version=version)
    assert verdict.state == state
    assert verdict.reason == ("gone, and not missed" if state == "waived" else "")
    assert promised([verdict]) == {}


def test_a_waiver_of_one_architecture() -> None:
    text = WAIVER + 'arch = "aarch64"\n'
    assert judge(wanted(A="y"), {"Z": "y"}, text)[0].state == "lost"
    assert judge(wanted(A="y"), {"Z": "y"}, text, arch="aarch64")[0].state == "waived"


def test_a_waiver_waives_one_option_and_no_other() -> None:
    states = [verdict.state for verdict in judge(wanted(A="y", AB="y", B="y"), {"Z": "y"}, WAIVER)]
    assert states == ["waived", "lost", "lost"]


def test_a_waived_option_that_is_there_is_promised() -> None:
    assert promised(judge(wanted(A="y"), {"A": "y"}, WAIVER)) == {"A": "y"}


@pytest.mark.parametrize("text", ["", "\n", "\n\n  \n\n", "# nothing\n\n", "waivers = []\n"])
def test_blank_lines_waive_nothing(text: str) -> None:
    assert parse_waivers(text, WAIVERS) == ()
    assert judge(wanted(A="y"), {"Z": "y"}, text)[0].state == "lost"


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('option = "A"', 'option = ""', "not the name of an option"),
        ('option = "A"', 'option = "*"', "not the name of an option"),
        ('option = "A"', 'option = "CONFIG A"', "not the name of an option"),
        ('option = "A"\n', "", "missing key 'option'"),
        ('reason = "gone, and not missed"', 'reason = "  "', "needs a reason"),
        ('reason = "gone, and not missed"\n', "", "missing key 'reason'"),
        ('from = "6.10"\n', "", "missing key 'from'"),
        ('below = "6.13"\n', "", "missing key 'below'"),
        ('below = "6.13"', 'below = "6.10"', "no version is from"),
        ('from = "6.10"', "from = 6.10", "not the version of a kernel"),
        ('from = "6.10"', 'from = ""', "not the version of a kernel"),
    ],
)
def test_a_waiver_that_says_too_little(old: str, new: str, message: str) -> None:
    assert old in WAIVER
    with pytest.raises(ConfigError, match=message):
        parse_waivers(WAIVER.replace(old, new), WAIVERS)


def test_the_error_names_everything() -> None:
    verdicts = [
        verdict.because("it depends on B (=n)") if verdict.state == "lost" else verdict
        for verdict in judge(wanted(A="y", Z="y"), {"Z": "y"})
    ]
    error = OptionsLostError("lost:", verdicts)
    assert error.message == (
        "lost:\n  CONFIG_A should be y and is n, for f (a.config.j2:1): it depends on B (=n)"
    )
    assert error.verdicts == tuple(verdicts)


@given(st.tuples(st.integers(0, 999), st.integers(0, 999)))
def test_versions(version: tuple[int, int]) -> None:
    assert parse_version(format_version(version)) == version


@pytest.mark.parametrize("text", ["", "6", "6.12.1", "6.x", " 6.12", "6.12\n", "v6.12", 6.12, None])
def test_no_versions(text: object) -> None:
    with pytest.raises(ValueError, match="not the version"):
        parse_version(text)


@pytest.mark.parametrize("data", [b"", b"CONFIG_A=y\n" * 10_000])
def test_the_copy_of_a_config_has_the_same_bytes_whatever_python_is(data: bytes) -> None:
    """Those that zlib's own header gives, as Python 3.11 does; 3.13 writes that the system is unknown."""
    packed = debian.compress(data)
    assert packed == zlib.compress(data, 9, wbits=zlib.MAX_WBITS | 16)
    assert packed[:10] == bytes.fromhex("1f8b0800000000000203")
    assert gzip.decompress(packed) == data
