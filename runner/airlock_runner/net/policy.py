"""Whether a connection may be made: policy, rules, destination → verdict, with what decided. Pure.

It is asked twice: before a name is resolved, so that what is denied for its name is never looked up, and for each
address that is about to be dialled.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Literal

from airlock_runner.net.addresses import internal

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from airlock_runner.net.addresses import Address
    from airlock_runner.net.patterns import Pattern

Mode = Literal["allow-always", "deny-always", "allow-by-default", "deny-by-default"]
MODES: tuple[Mode, ...] = ("allow-always", "deny-always", "allow-by-default", "deny-by-default")
LIVE = "airlock net"
"""The name of the rule that `airlock net allow` and `deny` make."""


@dataclass(frozen=True, slots=True)
class Rule:
    """A named set of patterns."""

    name: str
    allow: tuple[Pattern, ...] = ()
    deny: tuple[Pattern, ...] = ()


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether it may be, and by which rule: text for the log."""

    allowed: bool
    rule: str


@dataclass(frozen=True, slots=True)
class Policy:
    """What holds now. `hosts` maps names, in their one form, to the addresses that they are given."""

    mode: Mode = "allow-by-default"
    rules: tuple[Rule, ...] = ()
    hosts: Mapping[str, tuple[Address, ...]] = field(default_factory=dict)


def judge_name(policy: Policy, name: str, port: int | None) -> Verdict | None:
    """What the name alone decides: a denial, or None where it depends on the address. Port None: on whatever port."""
    if policy.mode == "deny-always":
        return Verdict(False, "policy deny-always")
    if policy.mode == "allow-always":
        return None
    denied = _first(
        (rule, pattern)
        for rule, pattern in _patterns(policy, "deny")
        if pattern.matches_name(name) and _about(pattern, port)
    )
    if denied is not None:
        return Verdict(False, _said(*denied, "deny"))
    if policy.mode == "deny-by-default":
        given = policy.hosts.get(name, ())
        for _, pattern in _patterns(policy, "allow"):
            matches = pattern.matches_name(name) or any(pattern.matches_address(each) for each in given)
            if matches and (port is None or pattern.takes_port(port)):
                return None
        # An allowed network is no reason to look up whatever name a guest makes up: that would be a way out.
        return Verdict(False, "policy deny-by-default")
    return None


def judge(
    policy: Policy, name: str | None, address: Address, port: int, own: Callable[[Address], bool]
) -> Verdict:
    """Whether this address may be dialled for a guest that asked for `name`, or for the address itself.

    `own` tells the host's own addresses. The address must be plain (no IPv4 in IPv6).
    """
    if policy.mode == "deny-always":
        return Verdict(False, "policy deny-always")

    def matches(pattern: Pattern) -> bool:
        by_name = name is not None and pattern.matches_name(name)
        return pattern.takes_port(port) and (by_name or pattern.matches_address(address))

    if policy.mode != "allow-always":
        denied = _first(each for each in _patterns(policy, "deny") if matches(each[1]))
        if denied is not None:
            return Verdict(False, _said(*denied, "deny"))
    allowing = [each for each in _patterns(policy, "allow") if matches(each[1])]
    kind = internal(address) or ("the host's own" if own(address) else None)
    if kind is not None:
        naming = [each for each in allowing if each[1].explicit]
        if not naming and not _given(policy, name, address):
            return Verdict(False, f"internal address ({kind})")
        allowing = naming or allowing
        if not allowing and policy.mode != "deny-by-default":
            return Verdict(True, "hosts")
    if allowing:
        return Verdict(True, _said(*allowing[0], "allow"))
    return Verdict(policy.mode != "deny-by-default", f"policy {policy.mode}")


def denied_names(policy: Policy, port: int) -> Iterator[tuple[str, str]]:
    """Names whose addresses are denied along with them, each with the rule: those that rules name, and of `hosts`."""
    if policy.mode in ("deny-always", "allow-always"):
        return
    for rule, pattern in _patterns(policy, "deny"):
        if not pattern.takes_port(port):
            continue
        if pattern.name is not None:
            yield pattern.name, _said(rule, pattern, "deny")
        elif pattern.suffix is not None:
            for name in policy.hosts:
                if pattern.matches_name(name):
                    yield name, _said(rule, pattern, "deny")


def with_live(policy: Policy, verb: Literal["allow", "deny"], pattern: Pattern) -> Policy:
    """The policy with one more pattern in its live rule; the same pattern with the other verb is taken out of it."""
    live = next((rule for rule in policy.rules if rule.name == LIVE), Rule(LIVE))
    others = tuple(rule for rule in policy.rules if rule.name != LIVE)
    key = _key(pattern)
    allow = tuple(each for each in live.allow if _key(each) != key)
    deny = tuple(each for each in live.deny if _key(each) != key)
    if verb == "allow":
        allow = (*allow, pattern)
    else:
        deny = (*deny, pattern)
    return replace(policy, rules=(*others, Rule(LIVE, allow, deny)))


def without_effect(policy: Policy, verb: Literal["allow", "deny"], pattern: Pattern) -> str | None:
    """What decides about all that `pattern` is about, whatever a live rule with this verb says, or None."""
    if policy.mode == ("deny-always" if verb == "allow" else "allow-always"):
        return f"policy {policy.mode}"
    if policy.mode == "allow-always" or verb == "deny":
        return None
    stronger = _first(each for each in _patterns(policy, "deny") if _covers(each[1], pattern))
    return _said(*stronger, "deny") if stronger is not None else None


def _covers(wide: Pattern, pattern: Pattern) -> bool:
    """Whether `wide` is about everything that `pattern` is about."""
    if wide.port not in (None, pattern.port):
        return False
    if (inner := pattern.network) is not None and (outer := wide.network) is not None:
        return wide.matches_address(inner.network_address) and outer.prefixlen <= inner.prefixlen
    if pattern.name is not None:
        return wide.matches_name(pattern.name)
    if pattern.suffix is not None:
        return wide.matches_name(pattern.suffix) and wide.name is None
    return wide.name is None and wide.suffix is None and wide.network is None


def _patterns(policy: Policy, verb: Literal["allow", "deny"]) -> Iterator[tuple[Rule, Pattern]]:
    for rule in policy.rules:
        for pattern in rule.allow if verb == "allow" else rule.deny:
            yield rule, pattern


def _about(pattern: Pattern, port: int | None) -> bool:
    return pattern.port is None if port is None else pattern.takes_port(port)


def _given(policy: Policy, name: str | None, address: Address) -> bool:
    return name is not None and address in policy.hosts.get(name, ())


def _first(found: Iterator[tuple[Rule, Pattern]]) -> tuple[Rule, Pattern] | None:
    return next(found, None)


def _said(rule: Rule, pattern: Pattern, verb: str) -> str:
    return f"{rule.name}: {verb} {pattern.text}"


def _key(pattern: Pattern) -> Pattern:
    return replace(pattern, text="")
