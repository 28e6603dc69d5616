"""airlockd runs on a bare Python in the VM: it may import the standard library and itself, nothing else."""

from __future__ import annotations

import ast
import sys
from pathlib import Path

import airlockd


def imported(path: Path) -> set[str]:
    """The top-level names that a module imports anywhere in it."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names.add(node.module or "")
    return {name.partition(".")[0] for name in names}


def test_airlockd_imports_the_standard_library_and_itself() -> None:
    files = sorted(Path(airlockd.__path__[0]).rglob("*.py"))
    assert files
    foreign = {path.name: imported(path) - sys.stdlib_module_names - {"airlockd"} for path in files}
    assert not {name: names for name, names in foreign.items() if names}
