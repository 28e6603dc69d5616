"""A recipe's own `[kernel.options]`: what they may say, so that a kernel's build runs and reads nothing on the host.

Kconfig copies a string unquoted into include/config/auto.conf, which make reads: `$(shell …)` in it would run, and so
would what the shell makes of it in a rule. Some strings are names of files that the build puts into the kernel.
Called by the recipe, which knows lines, and by the step `kernel-config`, which has the kernel's own Makefiles.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from airlock_builder.kernel.dotconfig import PREFIX, canonical
from airlock_store.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from airlock_builder.kernel.wanted import Override

READ_BY_BUILD = frozenset(
    {
        "ACPI_CUSTOM_DSDT_FILE",
        "BOOT_CONFIG_EMBED_FILE",
        "BUILTIN_DTB_NAME",
        "BUILTIN_DTB_SOURCE",
        "CC_VERSION_TEXT",
        "CFG80211_EXTRA_REGDB_KEYDIR",
        "EXTRA_FIRMWARE",
        "EXTRA_FIRMWARE_DIR",
        "INITRAMFS_SOURCE",
        "IPE_BOOT_POLICY",
        "MODULE_SIG_HASH",
        "MODULE_SIG_KEY",
        "SYSTEM_BLACKLIST_HASH_LIST",
        "SYSTEM_REVOCATION_KEYS",
        "SYSTEM_TRUSTED_KEYS",
        "UNUSED_KSYMS_WHITELIST",
    }
)
"""Strings that Makefiles of Linux 6.1 or 6.12 take for files, or put into rules. `check_against` finds later ones."""

_NAME = re.compile(r"(?!CONFIG_)[A-Z0-9][A-Za-z0-9_]{0,99}")
_TEXT = re.compile(r'"[A-Za-z0-9 _.,:=/+@-]{0,2000}"')
_LOCAL_VERSION = re.compile(r'"[A-Za-z0-9_.+-]{0,40}"')
_EMPTY = '""'


def check_option(name: str, setting: str | int) -> None:
    """Raises ValueError or ConfigError for what no recipe may ask of an option. The schema adds the place."""
    if not _NAME.fullmatch(name):
        raise ValueError(f"{name!r} is not the name of an option, without {PREFIX}")
    try:
        value = canonical(str(setting))
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error
    if value == "m":
        raise ValueError(
            f"{name}: airlock's kernels have no modules: write \"y\", which Debian's modules satisfy"
        )
    if not value.startswith('"') or value == _EMPTY:
        return
    if name in READ_BY_BUILD:
        raise _read(name)
    if not _TEXT.fullmatch(value):
        raise ConfigError(
            f"{name}: a string has letters, digits, blanks and _.,:=/+@- only, and at most 2000 of them",
            hint="The kernel's build hands it to make and the shell, which would act upon anything else.",
        )
    if name == "LOCALVERSION" and not _LOCAL_VERSION.fullmatch(value):
        raise ValueError(f"{name}: it becomes part of the release: at most 40 letters, digits and _.+-")


def check_against(options: Mapping[str, Override], tree: Path) -> None:
    """Refuse strings that the Makefiles or scripts of the kernel in `tree` use. Raises ConfigError with the places.

    This holds for kernels of which READ_BY_BUILD knows nothing yet.
    """
    texts = {
        name
        for name, override in options.items()
        # Its form is safe in a rule, see check_option.
        if override.value.startswith('"') and override.value != _EMPTY and name != "LOCALVERSION"
    }
    if not texts:
        return
    if used := texts & _used_by_build(tree):
        raise ConfigError.of([_read(name, options[name]) for name in sorted(used)])


def _read(name: str, override: Override | None = None) -> ConfigError:
    return ConfigError(
        f"{PREFIX}{name} tells the kernel's build which files to read, or how to run: a recipe cannot set it",
        hint="Leave it out. [rootfs.files] puts files into the image.",
        at=override.at if override else None,
    )


def _used_by_build(tree: Path) -> set[str]:
    """The options that Makefiles, Kbuild files and scripts name; not those of the kernel's own tests."""
    files = {path for pattern in ("Makefile*", "Kbuild*") for path in tree.rglob(pattern)}
    files -= set((tree / "tools/testing").rglob("*"))
    files.update((tree / "scripts").rglob("*"))
    return {
        name.decode()
        for path in files
        if path.is_file()
        for name in re.findall(rb"\bCONFIG_([A-Za-z0-9_]+)", path.read_bytes())
    }
