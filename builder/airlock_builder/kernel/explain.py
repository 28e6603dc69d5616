"""Why the kernel's Kconfig did not keep options: an unmet dependency, what selects it, no such option.

Called by the step `kernel-config` when something is lost, because it reads all of the kernel's Kconfig files once more.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from airlock_builder import tools
from airlock_builder.kernel.toolchain import TARGETS, cross_prefix

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

_SCRIPT = Path(__file__).with_name("kconfig_reasons.py")


def explain(
    tree: Path, arch: str, lost: Mapping[str, str], declared: frozenset[str], log: Callable[[str], None]
) -> dict[str, str]:
    """A reason for each option of `lost` (option → value asked for), empty where none was found.

    `tree` is configured; `declared` are all options of its Kconfig files.
    """
    unknown = {option: _unknown(option, declared) for option in lost if option not in declared}
    known = {option: value for option, value in lost.items() if option in declared}
    return unknown | (_reasons(tree, arch, known, log) if known else {})


def _unknown(option: str, declared: frozenset[str]) -> str:
    import difflib

    close = difflib.get_close_matches(option, declared, n=1)
    return "no option of this kernel has this name" + (f"; the nearest is {close[0]}" if close else "")


def _reasons(tree: Path, arch: str, wanted: Mapping[str, str], log: Callable[[str], None]) -> dict[str, str]:
    target, prefix = TARGETS[arch], cross_prefix(arch)
    env = tools.environment(
        srctree=".",
        ARCH=target.arch,
        SRCARCH=target.srcarch,
        KERNELVERSION="",
        CC=f"{prefix}gcc",
        LD=f"{prefix}ld",
        AR=f"{prefix}ar",
        NM=f"{prefix}nm",
        OBJCOPY=f"{prefix}objcopy",
    )
    done = subprocess.run(
        [sys.executable, "-I", _SCRIPT],
        input=json.dumps(dict(wanted)), cwd=tree, env=env, capture_output=True, encoding="utf-8", check=False,
    )  # fmt: skip
    if done.returncode:
        # A kernel whose Kconfig kconfiglib cannot read: the options are lost all the same.
        log(done.stderr.strip().rpartition("\n")[2])
        return dict.fromkeys(wanted, "kconfiglib cannot read this kernel's Kconfig to say why")
    reasons: dict[str, str] = json.loads(done.stdout)
    return reasons
