"""A recipe's kernel options: none of them runs or reads anything on the host."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airlock_builder.kernel.dotconfig import canonical, format_option
from airlock_builder.kernel.overrides import READ_BY_BUILD, check_against, check_option
from airlock_builder.kernel.resolve import resolve
from airlock_builder.kernel.wanted import KernelRequest, Override
from airlock_builder.recipe import load_recipe
from airlock_store.errors import ConfigError, Location

AT = Location(Path("mine.toml"), 6, 3)


@pytest.mark.parametrize(
    ("name", "setting"),
    [
        ("FUTEX", "y"),
        ("FUTEX", "n"),
        ("NR_CPUS", 64),
        ("PHYSICAL_START", "0x1000000"),
        ("CMDLINE", '"console=ttyS0 root=/dev/vda quiet"'),
        ("LSM", '"landlock,yama,bpf"'),
        ("LOCALVERSION", '"-mine.1"'),
        ("BUILD_SALT", '"6.12-1@home"'),
        # Empty, it names nothing.
        ("INITRAMFS_SOURCE", '""'),
    ],
)
def test_what_a_recipe_may_set(name: str, setting: str | int) -> None:
    check_option(name, setting)


@pytest.mark.parametrize(
    "text",
    [
        "$(shell touch pwned)",
        "${HOME}",
        "`id`",
        "a;id",
        "a|id",
        "a&id",
        "a>file",
        "a<file",
        "it's",
        "#",
        "a\\\\",
        '\\"; id; \\"',
        "a\tb",
        "%s",
        "~root",
        "*",
        "ü",
        "\x00",
    ],
)
def test_a_string_that_make_or_a_shell_would_act_upon(text: str) -> None:
    with pytest.raises(ConfigError, match="CMDLINE: a string has letters") as caught:
        check_option("CMDLINE", f'"{text}"')
    assert caught.value.hint is not None


@pytest.mark.parametrize("text", ["y\nCONFIG_INITRAMFS_SOURCE=/etc", '"a\nCONFIG_B=y"', '"a\\\nb"', '"a\rb"'])
def test_a_line_break_makes_no_second_option(text: str) -> None:
    with pytest.raises(ValueError, match="is not a value"):
        check_option("CMDLINE", text)
    with pytest.raises(ValueError, match="is not a value"):
        canonical(text)


@given(st.text(max_size=30).map(lambda text: f'"{text}"') | st.text(max_size=30))
def test_what_is_let_through_is_one_harmless_line(setting: str) -> None:
    try:
        check_option("CMDLINE", setting)
    except (ValueError, ConfigError):
        return
    line = format_option("CMDLINE", canonical(setting))
    assert line.splitlines() == [line]
    assert not set(line.removeprefix("# ")) & set("$`\\;|&<>()'#*?[]{}!%~")


@pytest.mark.parametrize("name", sorted(READ_BY_BUILD))
def test_a_string_that_the_build_takes_for_a_file(name: str) -> None:
    with pytest.raises(ConfigError, match=f"CONFIG_{name} tells the kernel's build which files to read"):
        check_option(name, '"/etc/shadow"')


@pytest.mark.parametrize("text", ["a b", "a/b", "a=b", "-" * 41])
def test_the_name_of_a_release_stays_one(text: str) -> None:
    with pytest.raises(ValueError, match="LOCALVERSION: it becomes part of the release"):
        check_option("LOCALVERSION", f'"{text}"')


@pytest.mark.parametrize("name", ["CONFIG_A", "a", "A-B", "A B", "A\nB", "", "A" * 101])
def test_names_of_options(name: str) -> None:
    with pytest.raises(ValueError, match="is not the name of an option"):
        check_option(name, "y")


@pytest.mark.parametrize(
    ("line", "message", "hint"),
    [
        ("""INITRAMFS_SOURCE = '"/etc"'""", "CONFIG_INITRAMFS_SOURCE tells the kernel's build", "[rootfs.files]"),
        ("""CMDLINE = '"$(shell id)"'""", "CMDLINE: a string has letters", "would act upon"),
        ('''CMDLINE = "\\"a\\nCONFIG_B=y\\""''', "CMDLINE: '\"a\\nCONFIG_B=y\"' is not a value", None),
        ("FUTEX = true", "'FUTEX': expected a string or an integer, found a boolean", None),
    ],
)  # fmt: skip
def test_a_recipe_is_refused_with_the_place(
    tmp_path: Path, line: str, message: str, hint: str | None
) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(f'[recipe]\nname = "mine"\n\n[kernel.options]\n# Why.\n  {line}\n')
    with pytest.raises(ConfigError) as caught:
        load_recipe(str(path), tmp_path)
    error = caught.value
    assert error.at == Location(path, 6, 3)
    assert error.message.startswith(message)
    assert hint is None or hint in (error.hint or "")


def source(tree: Path) -> Path:
    """A kernel's source, as far as this looks at it: later ones may use strings that nobody knows yet."""
    (tree / "drivers").mkdir(parents=True)
    (tree / "scripts").mkdir()
    (tree / "Makefile").write_text("VERSION = 6\nPATCHLEVEL = 12\n")
    (tree / "drivers" / "Makefile").write_text(
        "obj-y += $(CONFIG_LATER_FILE)\nobj-$(CONFIG_FUTEX) += futex.o\n"
    )
    (tree / "scripts" / "later.sh").write_text('cat "$CONFIG_LATER_TEXT" # $CONFIG_LOCALVERSION\n')
    return tree


def test_strings_of_a_later_kernel_that_its_build_uses(tmp_path: Path) -> None:
    tree = source(tmp_path / "linux")
    options = {name: Override('"/etc/shadow"', AT) for name in ("LATER_FILE", "LATER_TEXT", "CMDLINE")}
    with pytest.raises(ConfigError) as caught:
        resolve(tree, KernelRequest("compiled", "x86_64", (6, 12), {}, {}, options), print)
    assert [line.partition(" tells")[0] for line in caught.value.message.splitlines()] == [
        f"{AT}: CONFIG_LATER_FILE",
        f"{AT}: CONFIG_LATER_TEXT",
    ]


def test_what_is_no_file_is_not_looked_for(tmp_path: Path) -> None:
    harmless = {"FUTEX": "y", "LATER_FILE": '""', "LOCALVERSION": '"-mine"', "CMDLINE": '"quiet"'}
    check_against({name: Override(value, AT) for name, value in harmless.items()}, source(tmp_path / "linux"))
