"""Run by the toolbox's Python, alone: finds what airlockd imports, anywhere in its code, and compiles all of it.

    guest_python.py STDLIB AIRLOCKD OUTPUT LISTING
OUTPUT gets a tree of .pyc without sources, LISTING a JSON array of the extension modules that are needed.
"""

from __future__ import annotations

import json
import py_compile
import sys
from modulefinder import ModuleFinder
from pathlib import Path

# What Python itself loads, or by a name that nobody can find in code: at start, for text, for a fatal exception.
ALWAYS = (
    "encodings",
    "encodings.aliases",
    "encodings.ascii",
    "encodings.latin_1",
    "encodings.utf_8",
    "traceback",
)

# Imported somewhere in the standard library for uses that a supervisor has not: debuggers, doctests, OpenSSL, …
NEVER = (
    "__main__", "_decimal", "_hashlib", "_osx_support", "_pydecimal", "_pyrepl", "_ssl", "argparse",
    "asyncio", "bz2", "concurrent", "csv", "curses", "decimal", "distutils", "doctest", "email",
    "encodings.mbcs", "fractions", "gettext", "gzip", "http", "importlib.metadata", "lzma", "multiprocessing",
    "optparse", "pdb", "pydoc", "setuptools", "site", "ssl", "statistics", "tarfile", "test", "tkinter",
    "unittest", "urllib", "xml", "zipfile",
)  # fmt: skip


def main(stdlib: Path, airlockd: Path, output: Path, listing: Path) -> None:
    """Compile and list; see above."""
    finder = ModuleFinder([str(stdlib), str(stdlib / "lib-dynload"), str(airlockd.parent)], excludes=NEVER)
    for name in (*ALWAYS, *own_modules(airlockd)):
        finder.import_hook(name)
    extensions = []
    for name, module in sorted(finder.modules.items()):
        file: str | None = getattr(module, "__file__", None)
        if file is None:
            continue
        source = Path(file)
        if source.suffix == ".so":
            extensions.append(str(source))
            continue
        relative = source.relative_to(airlockd.parent if name.partition(".")[0] == "airlockd" else stdlib)
        py_compile.compile(
            str(source),
            str(output / relative.with_suffix(".pyc")),
            dfile=f"/usr/lib/{stdlib.name}/{relative}",
            doraise=True,
            invalidation_mode=py_compile.PycInvalidationMode.UNCHECKED_HASH,
        )
    listing.write_text(json.dumps(extensions), encoding="utf-8")


def own_modules(airlockd: Path) -> list[str]:
    """The dotted names of all modules of airlockd."""
    names = []
    for path in sorted(airlockd.rglob("*.py")):
        parts = path.relative_to(airlockd.parent).with_suffix("").parts
        names.append(".".join(parts[:-1] if parts[-1] == "__init__" else parts))
    return names


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
