"""Step `kernel-config`: the options asked for, resolved by the kernel's own Kconfig, every one of them proven.

config  release  promised.json
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from airlock_builder.kernel import toolchain
from airlock_builder.kernel.dotconfig import format_config, parse_config
from airlock_builder.kernel.output import write_proof
from airlock_builder.kernel.overrides import check_against
from airlock_builder.kernel.source import declared_options, unpack, version_of
from airlock_builder.kernel.verify import OptionsLostError, lost, verify
from airlock_builder.kernel.versions import format_version
from airlock_builder.kernel.waivers import parse_waivers
from airlock_builder.kernel.wanted import KernelRequest, wanted_options
from airlock_store.errors import BuildError

if TYPE_CHECKING:
    from collections.abc import Callable

    from airlock_builder.kernel.verify import Verdict
    from airlock_builder.step import Work


def build(work: Work) -> None:
    """Resolve the config. Raises OptionsLostError, with reasons, when Kconfig does not keep all that was asked for."""
    request: KernelRequest = work.step.payload["request"]
    toolchain.find_all(request.arch)
    work.progress(None, "unpacking the source")
    tree, _ = unpack(work.inputs["source"].path, work.scratch, work.log, whole=False)
    work.progress(None, "resolving the options")
    config, verdicts = resolve(tree, request, work.log)
    write_proof(work.output, config, release_of(tree, request.arch, work.log), verdicts)


def resolve(tree: Path, request: KernelRequest, log: Callable[[str], None]) -> tuple[str, list[Verdict]]:
    """The config that the kernel in `tree` makes of `request`, and verdicts on all its options; none is lost.

    Nothing is on but what was asked for and what that selects (allnoconfig). Raises OptionsLostError and what
    `wanted_options` and `check_against` raise. The tree is left configured.
    """
    if (version := version_of(tree)) != request.version:
        raise BuildError(
            f"the source is that of Linux {format_version(version)}, not {format_version(request.version)}"
        )
    check_against(request.options, tree)
    wanted = wanted_options(request)
    asked = tree / ".airlock.config"
    asked.write_text(format_config({option: each.value for option, each in wanted.items()}), encoding="utf-8")
    toolchain.make(tree, request.arch, ["allnoconfig"], log, KCONFIG_ALLCONFIG=asked.name)
    config = (tree / ".config").read_text(encoding="utf-8")
    declared = declared_options(tree)
    verdicts = [
        verdict if verdict.wanted.option in declared else verdict.missing()
        for verdict in verify(
            wanted,
            parse_config(config, Path("config")),
            version=request.version,
            arch=request.arch,
            waivers=parse_waivers(request.waivers, Path("waivers.toml")),
        )
    ]
    if lost(verdicts):
        raise OptionsLostError(
            f"Linux {format_version(version)} for {request.arch} does not keep what was asked for:",
            _explained(tree, request, verdicts, declared, log),
            hint="Ask for what is missing in [kernel.options] or in a fragment, or ask for less.",
        )
    return config, verdicts


def release_of(tree: Path, arch: str, log: Callable[[str], None]) -> str:
    """What uname will say of a kernel configured in `tree`."""
    toolchain.make(tree, arch, ["include/config/kernel.release"], log)
    return (tree / "include/config/kernel.release").read_text(encoding="utf-8").strip()


def _explained(
    tree: Path,
    request: KernelRequest,
    verdicts: list[Verdict],
    declared: frozenset[str],
    log: Callable[[str], None],
) -> list[Verdict]:
    from airlock_builder.kernel.explain import explain

    asked = {verdict.wanted.option: verdict.wanted.value for verdict in lost(verdicts)}
    reasons = explain(tree, request.arch, asked, declared, log)
    return [verdict.because(reasons.get(verdict.wanted.option, verdict.reason)) for verdict in verdicts]
