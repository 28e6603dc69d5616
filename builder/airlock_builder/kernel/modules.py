"""Which modules options stand for, with all that these depend on, in an order that loads. For the kernel step.

Pure but for reading depmod's files: it gets names and gives names.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from airlock_store.errors import BuildError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping


_SIGNATURE_MAGIC = b"~Module signature appended~\n"


@dataclass(frozen=True, slots=True)
class ModuleIndex:
    """A kernel's modules, by name with underscores.

    `files` has the path of each below the modules' directory, `needs` the names that must be loaded before,
    `aliases` the modules behind a name that is not a module's, `builtin` what the kernel has anyway.
    """

    files: Mapping[str, str]
    needs: Mapping[str, tuple[str, ...]]
    aliases: Mapping[str, tuple[str, ...]]
    builtin: frozenset[str]

    def order(self, wanted: Mapping[str, Iterable[str]]) -> list[str]:
        """Modules to load, needed ones first, for the modules that each option stands for.

        Raises BuildError naming option and module for what the kernel does not have.
        """
        chosen: dict[str, None] = {}
        for option, modules in wanted.items():
            for module in modules:
                name = normal(module)
                if name not in self.files and name not in self.builtin:
                    raise BuildError(
                        f"the kernel has no module {module!r}, which CONFIG_{option} stands for",
                        hint="Say in kernel-configs/modules.toml which module it is, or have airlock compile the "
                        'kernel: [kernel] provider = "compiled"',
                    )
                self._visit(name, chosen, ())
        return list(chosen)

    def _visit(self, name: str, chosen: dict[str, None], above: tuple[str, ...]) -> None:
        if name in chosen or name in above:
            return
        if name not in self.files:
            # Nothing to load for what is built in; an alias that leads nowhere is a soft dependency on something
            # that this kernel was built without.
            for module in self.aliases.get(name, ()):
                self._visit(module, chosen, (*above, name))
            return
        for needed in self.needs.get(name, ()):
            self._visit(needed, chosen, (*above, name))
        chosen[name] = None


@dataclass(frozen=True, slots=True)
class ModulesFile:
    """The whole of modules.toml: option → modules. An option that is not in it stands for its name in lower case."""

    modules: Mapping[str, tuple[str, ...]]


def without_signature(module: bytes) -> bytes:
    """A module without the signature that is appended to it (Linux Documentation/admin-guide/module-signing.rst).

    Checking 14 of them costs half a second of a boot under TCG, and proves nothing that the digest of the initrd
    does not. No module is loaded after the boot, because hardening refuses that.
    """
    if not module.endswith(_SIGNATURE_MAGIC):
        return module
    # Before the magic: struct module_signature, 12 bytes, whose last four are the signature's length.
    end = len(module) - len(_SIGNATURE_MAGIC)
    length = int.from_bytes(module[end - 4 : end], "big")
    return module[: end - 12 - length]


def normal(name: str) -> str:
    """The kernel's own spelling of a module's name."""
    return name.replace("-", "_")


def read_index(directory: Path) -> ModuleIndex:
    """The index of the modules in `directory`, where depmod has been run."""
    files: dict[str, str] = {}
    needs: dict[str, list[str]] = {}
    for line in _lines(directory / "modules.dep"):
        path, _, dependencies = line.partition(":")
        name = _name_of(path)
        files[name] = path
        needs[name] = [_name_of(dependency) for dependency in reversed(dependencies.split())]
    for line in _lines(directory / "modules.softdep"):
        match = re.fullmatch(r"softdep (\S+) (?:.*\bpre: )((?:(?!\bpost:).)*).*", line)
        if match:
            needs.setdefault(normal(match[1]), []).extend(normal(name) for name in match[2].split())
    aliases: dict[str, list[str]] = {}
    for line in _lines(directory / "modules.alias"):
        words = line.split()
        if len(words) == 3 and words[0] == "alias" and not set("*?[") & set(words[1]):
            aliases.setdefault(normal(words[1]), []).append(normal(words[2]))
    return ModuleIndex(
        files=files,
        needs={name: tuple(names) for name, names in needs.items()},
        aliases={name: tuple(names) for name, names in aliases.items()},
        builtin=frozenset(_name_of(line) for line in _lines(directory / "modules.builtin")),
    )


def parse_table(text: str, path: Path) -> Mapping[str, tuple[str, ...]]:
    """The modules of options whose names say less, from the text of modules.toml. Raises ConfigError."""
    from airlock_store.document import parse_toml
    from airlock_store.schema import decode

    return decode(parse_toml(text, path), ModulesFile).modules


def _lines(path: Path) -> list[str]:
    return [
        line for line in path.read_text(encoding="utf-8").splitlines() if line and not line.startswith("#")
    ]


def _name_of(path: str) -> str:
    return normal(PurePosixPath(path).name.partition(".ko")[0])
