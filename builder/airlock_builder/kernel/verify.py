"""The proof that a kernel has what was asked for, option by option. Called by the kernel's steps and `airlock kernel`.

Pure. It never passes for want of something to compare: no options wanted or none in the config is an error.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

from airlock_store.errors import BuildError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from airlock_builder.kernel.versions import Version
    from airlock_builder.kernel.waivers import Waiver
    from airlock_builder.kernel.wanted import Wanted

State = Literal["ok", "waived", "lost"]


@dataclass(frozen=True, slots=True)
class Verdict:
    """What became of an option: `found` is its value in the config. `reason` is why it is waived or lost, if known."""

    wanted: Wanted
    found: str
    state: State
    reason: str = ""

    def __str__(self) -> str:
        wanted = self.wanted
        text = f"CONFIG_{wanted.option} should be {wanted.value} and is {self.found}, for {wanted.by}"
        return f"{text}: {self.reason}" if self.reason else text

    def because(self, reason: str) -> Verdict:
        """This verdict with a reason."""
        return replace(self, reason=reason)

    def missing(self) -> Verdict:
        """The verdict on an option that the kernel does not know: lost, even if it was to be n, unless waived."""
        return self if self.state == "waived" else replace(self, state="lost")


class OptionsLostError(BuildError):
    """A kernel's config lacks what was asked for. `verdicts` are those on all options, good ones too."""

    def __init__(self, message: str, verdicts: Sequence[Verdict], *, hint: str | None = None) -> None:
        lines = [f"  {verdict}" for verdict in verdicts if verdict.state == "lost"]
        super().__init__("\n".join([message, *lines]), hint=hint)
        self.verdicts = tuple(verdicts)


def verify(
    wanted: Mapping[str, Wanted],
    config: Mapping[str, str],
    *,
    version: Version,
    arch: str,
    waivers: Sequence[Waiver] = (),
    modules: bool = False,
) -> list[Verdict]:
    """A verdict on every option wanted. It is kept only if the config has exactly the value that was asked for.

    With `modules`, m counts as y. What a config does not mention is n. Raises BuildError when there is nothing to
    compare.
    """
    if not wanted:
        raise BuildError("no kernel options are wanted, so nothing can be proven")
    if not any(value != "n" for value in config.values()):
        raise BuildError("the kernel's config is empty, so nothing can be proven")
    waived = {
        waiver.option: waiver.reason
        for waiver in waivers
        if waiver.since <= version < waiver.below and waiver.arch in {"", arch}
    }
    return [_judge(each, config.get(option, "n"), waived, modules) for option, each in wanted.items()]


def _judge(wanted: Wanted, found: str, waived: Mapping[str, str], modules: bool) -> Verdict:
    if found == wanted.value or (modules and (wanted.value, found) == ("y", "m")):
        return Verdict(wanted, found, "ok")
    if wanted.option in waived:
        return Verdict(wanted, found, "waived", waived[wanted.option])
    return Verdict(wanted, found, "lost")


def lost(verdicts: Sequence[Verdict]) -> list[Verdict]:
    """Those that are neither kept nor waived."""
    return [verdict for verdict in verdicts if verdict.state == "lost"]


def promised(verdicts: Sequence[Verdict]) -> dict[str, str]:
    """What an image can promise: the options that were kept, with the values found."""
    return {verdict.wanted.option: verdict.found for verdict in verdicts if verdict.state == "ok"}
