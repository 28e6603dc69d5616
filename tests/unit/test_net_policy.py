"""What a sandbox may reach: names, addresses, patterns, and the verdict, as tables; and what holds for any input."""

from __future__ import annotations

import ipaddress
import socket
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airlock_runner.net.addresses import internal, number_address, parse_address, parse_network
from airlock_runner.net.names import canonical
from airlock_runner.net.patterns import Pattern, parse_pattern
from airlock_runner.net.policy import (
    LIVE,
    Policy,
    Rule,
    Verdict,
    denied_names,
    judge,
    judge_name,
    with_live,
    without_effect,
)

if TYPE_CHECKING:
    from airlock_runner.net.addresses import Address

# ---- names


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("Example.COM", "example.com"),
        ("example.com.", "example.com"),
        ("a", "a"),
        ("_dmarc.Example.com", "_dmarc.example.com"),
        ("bücher.example", "xn--bcher-kva.example"),
        ("BÜCHER.example", "xn--bcher-kva.example"),
        ("例え。テスト", "xn--r8jz45g.xn--zckzah"),
        ("x" * 63 + ".y", "x" * 63 + ".y"),
    ],
)
def test_a_name_has_one_form(text: str, name: str) -> None:
    assert canonical(text) == name
    assert canonical(name) == name


@pytest.mark.parametrize(
    "text",
    [
        "", ".", "..", "a..b", ".a", "a..", "a b", "a\0b", "a\0", " a", "a\n", "*", "a/b", "a:1", "[::1]", "é" * 300,
        "x" * 64, "x" * 64 + ".y", ".".join(["x" * 50] * 6), "faß.de", "a\u200db.c", "a@b", "a%00b", "\ud800",
    ],
)  # fmt: skip
def test_what_is_no_name_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"name|longer|IDNA"):
        canonical(text)


@given(st.text(max_size=300))
def test_a_name_is_refused_or_comes_to_its_one_form(text: str) -> None:
    try:
        name = canonical(text)
    except ValueError:
        return
    assert canonical(name) == canonical(name.upper()) == canonical(f"{name}.") == name
    assert name.isascii()
    assert len(name) <= 253


# ---- addresses


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("127.0.0.1", "127.0.0.1"), ("2130706433", "127.0.0.1"), ("0x7f000001", "127.0.0.1"), ("0X7F.1", "127.0.0.1"),
        ("017700000001", "127.0.0.1"), ("0177.0.0.1", "127.0.0.1"), ("127.1", "127.0.0.1"), ("1.2.3", "1.2.0.3"),
        ("1.2.65535", "1.2.255.255"), ("0", "0.0.0.0"), ("4294967295", "255.255.255.255"), ("010.8.8.8", "8.8.8.8"),
        ("a.b", None), ("1.example", None), ("0x7f.example", None), ("1e3", None), ("deadbeef", None),
    ],
)  # fmt: skip
def test_a_number_is_the_address_that_a_c_library_makes_of_it(text: str, address: str | None) -> None:
    found = number_address(text)
    assert (str(found) if found is not None else None) == address


@pytest.mark.parametrize(
    "text", ["1.2.3.4.5", "256.1.1.1", "1.2.3.256", "1.2.65536", "4294967296", "08", "a.1", "0x", "1..2", "9" * 40]
)  # fmt: skip
def test_a_name_that_ends_in_a_number_and_is_no_address_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="neither a name nor an address"):
        number_address(text)


@given(
    st.lists(
        st.integers(0, 2**33).map(str)
        | st.integers(0, 2**33).map(hex)
        | st.integers(0, 2**33).map(lambda n: f"0{n:o}"),
        min_size=1, max_size=5,
    ).map(".".join)
)  # fmt: skip
def test_numbers_are_read_as_inet_aton_reads_them(text: str) -> None:
    try:
        expected = socket.inet_ntoa(socket.inet_aton(text))
    except OSError:
        with pytest.raises(ValueError, match="neither"):
            number_address(text)
        return
    assert str(number_address(text)) == expected


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("127.0.0.1", "loopback"), ("127.255.0.9", "loopback"), ("0.0.0.0", "this host"), ("10.2.0.7", "private"),
        ("172.16.0.1", "private"), ("172.31.255.255", "private"), ("172.32.0.1", None), ("192.168.1.1", "private"),
        ("169.254.169.254", "link-local"), ("168.63.129.16", "cloud metadata"), ("100.64.0.1", "carrier-grade NAT"),
        ("100.100.100.200", "carrier-grade NAT"), ("192.0.0.192", "protocol assignment"), ("224.0.0.1", "multicast"),
        ("255.255.255.255", "reserved"), ("198.19.0.1", None), ("203.0.113.9", None), ("2001:db8::1", None),
        ("8.8.8.8", None), ("1.1.1.1", None),
        ("::1", "loopback"), ("::", "this host"), ("fe80::1", "link-local"), ("fd00:ec2::254", "unique local"),
        ("ff02::1", "multicast"), ("::ffff:127.0.0.1", "loopback"), ("::ffff:8.8.8.8", None), ("::7f00:1", "reserved"),
        ("64:ff9b::7f00:1", "IPv4 in IPv6"), ("2002:7f00:1::", "IPv4 in IPv6"), ("2001:0:1::1", "IPv4 in IPv6"),
        ("2606:4700:4700::1111", None), ("4000::1", "reserved"), ("2001:4860:4860::8888", None),
    ],
)  # fmt: skip
def test_which_addresses_are_internal(text: str, kind: str | None) -> None:
    assert internal(ipaddress.ip_address(text)) == kind


@given(st.ip_addresses())
def test_nothing_that_python_calls_private_or_special_is_public(address: Address) -> None:
    examples = (
        "192.0.2.0/24",
        "198.18.0.0/15",
        "198.51.100.0/24",
        "203.0.113.0/24",
        "2001:db8::/32",
        "3fff::/20",
    )
    if internal(address) is None and not any(address in ipaddress.ip_network(each) for each in examples):
        assert address.is_global
        assert not address.is_multicast


@pytest.mark.parametrize(
    "text", ["", "1.2.3", "1.2.3.4.5", "fe80::1%eth0", "a", "1.2.3.4 ", "[::1]", "01.2.3.4"]
)
def test_what_is_no_address_is_refused(text: str) -> None:
    with pytest.raises(ValueError):
        parse_address(text)


def test_an_address_inside_ipv6_is_itself() -> None:
    assert parse_address("::ffff:10.0.0.1") == ipaddress.ip_address("10.0.0.1")
    assert parse_network("::ffff:10.0.0.0/104") == ipaddress.ip_network("10.0.0.0/8")


# ---- patterns


@pytest.mark.parametrize(
    ("pattern", "matches", "misses"),
    [
        (
            "example.com",
            ["example.com:1", "example.com:65535"],
            ["a.example.com:1", "example.org:1", "1.2.3.4:1"],
        ),
        ("Example.COM.:443", ["example.com:443"], ["example.com:80"]),
        ("*.example.com", ["a.example.com:1", "a.b.example.com:1"], ["example.com:1", "badexample.com:1"]),
        ("*.example.com:443", ["a.example.com:443"], ["a.example.com:80"]),
        ("bücher.example", ["xn--bcher-kva.example:1"], ["bcher.example:1"]),
        ("*:22", ["a:22", "1.2.3.4:22", "[::1]:22"], ["a:23", "1.2.3.4:2222"]),
        ("*", ["a:1", "1.2.3.4:9", "[fd00::1]:9"], []),
        ("10.0.0.1", ["10.0.0.1:9", "[::ffff:10.0.0.1]:9"], ["10.0.0.2:9", "a:9"]),
        ("10.0.0.0/8:5432", ["10.255.0.1:5432"], ["10.0.0.1:80", "11.0.0.1:5432", "[fd00::1]:5432"]),
        ("fd00::/8", ["[fd12::1]:1"], ["10.0.0.1:1", "[fe80::1]:1"]),
        ("[fd00::1]:80", ["[fd00::1]:80"], ["[fd00::1]:81", "[fd00::2]:80"]),
        ("[fd00::/8]:80", ["[fd00::1]:80"], ["[fd00::1]:81"]),
        ("::ffff:127.0.0.1", ["127.0.0.1:5"], ["[::1]:5"]),
        ("::/0", ["[::1]:5"], ["127.0.0.1:5"]),
        ("_srv.a-b.c", ["_srv.a-b.c:1"], []),
    ],
)
def test_a_pattern_matches(pattern: str, matches: list[str], misses: list[str]) -> None:
    parsed = parse_pattern(pattern)
    for text, expected in [*((each, True) for each in matches), *((each, False) for each in misses)]:
        host, _, port = text.rpartition(":")
        try:
            address = parse_address(host.strip("[]"))
        except ValueError:
            found = parsed.matches_name(host)
        else:
            found = parsed.matches_address(address)
        assert (found and parsed.takes_port(int(port))) is expected, text


@pytest.mark.parametrize(
    ("pattern", "said"),
    [
        ("", "1 to 300"), ("x" * 301, "1 to 300"), ("a*", "stands alone"), ("*a.b", "stands alone"), ("a.*", "stands"),
        ("*.*", "stands alone|host name"), ("**", "stands alone"), ("a:0", "not a port"), ("a:65536", "not a port"),
        ("a:", "not a port"), ("a:x", "not a port"), ("a:+1", "not a port"), ("a:٣", "not a port"), ("*.", "host name"),
        ("a b", "host name"), ("a\0", "host name"), ("10.0.0.1/8", "10.0.0.0/8"), ("10.0.0.0/33", "10.0.0.0/33"),
        ("1.2.3", "write this address as 1.2.0.3"), ("0x7f.1", "127.0.0.1"), ("*.1.2", "as a network"), (":80", "name"),
        ("fe80::1%eth0", "scope"), ("[::1", r"\[address\]:port"), ("[a]:1", r"\[address\]"),
        ("[::1]80", r"\[address\]"),
        ("http://a", "a"), ("a.1", "neither"),
    ],
)  # fmt: skip
def test_a_wrong_pattern_is_refused(pattern: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        parse_pattern(pattern)


@given(st.text(max_size=40) | st.text("*.:[]/a1f0-", max_size=20))
def test_any_text_is_a_pattern_or_a_value_error(text: str) -> None:
    try:
        pattern = parse_pattern(text)
    except ValueError:
        return
    assert pattern.text == text
    assert len([each for each in (pattern.name, pattern.suffix, pattern.network) if each is not None]) <= 1


NAMES = st.lists(st.text("abz-_09", min_size=1, max_size=4), min_size=1, max_size=4).map(".".join)


def _not_a_number(name: str) -> bool:
    try:
        return number_address(name) is None
    except ValueError:
        return False


@given(NAMES.filter(_not_a_number), NAMES.filter(_not_a_number))
def test_patterns_of_names_against_a_simple_model(name: str, other: str) -> None:
    assert parse_pattern(name).matches_name(other) == (name == other)
    labels, of = other.split("."), name.split(".")
    below = len(labels) > len(of) and labels[-len(of) :] == of
    assert parse_pattern(f"*.{name}").matches_name(other) == below


# ---- verdicts

PUBLIC, OTHER, PRIVATE, OWN = "93.184.216.34", "1.1.1.1", "10.1.2.3", "8.8.4.4"


def policy(mode: Any, allow: str = "", deny: str = "", hosts: dict[str, str] | None = None) -> Policy:
    rule = Rule("r", *(tuple(parse_pattern(each) for each in text.split()) for text in (allow, deny)))
    given_hosts = {name: (parse_address(address),) for name, address in (hosts or {}).items()}
    return Policy(mode, (Rule("empty"), rule), given_hosts)


def verdict(rules: Policy, name: str | None, address: str, port: int = 443) -> Verdict:
    """As a connection is judged: by its name, then by its address."""
    early = judge_name(rules, name, port) if name is not None else None
    return early or judge(rules, name, parse_address(address), port, lambda each: str(each) == OWN)


ALWAYS, NEVER, OPEN, CLOSED = "allow-always", "deny-always", "allow-by-default", "deny-by-default"
# policy, allow, deny, name, address, then: whether, and the rule that decided.
MATRIX: list[tuple[str, str, str, str | None, str, bool, str]] = [
    # No rule at all.
    (ALWAYS, "", "", "a.com", PUBLIC, True, "policy allow-always"),
    (NEVER, "", "", "a.com", PUBLIC, False, "policy deny-always"),
    (OPEN, "", "", "a.com", PUBLIC, True, "policy allow-by-default"),
    (CLOSED, "", "", "a.com", PUBLIC, False, "policy deny-by-default"),
    (ALWAYS, "", "", None, PUBLIC, True, "policy allow-always"),
    (NEVER, "", "", None, PUBLIC, False, "policy deny-always"),
    (OPEN, "", "", None, PUBLIC, True, "policy allow-by-default"),
    (CLOSED, "", "", None, PUBLIC, False, "policy deny-by-default"),
    # Allowed by name, by suffix, by port, by address, all.
    (CLOSED, "a.com", "", "a.com", PUBLIC, True, "r: allow a.com"),
    (CLOSED, "a.com", "", "b.com", PUBLIC, False, "policy deny-by-default"),
    (CLOSED, "a.com:443", "", "a.com", PUBLIC, True, "r: allow a.com:443"),
    (CLOSED, "a.com:80", "", "a.com", PUBLIC, False, "policy deny-by-default"),
    (CLOSED, "*.com", "", "a.com", PUBLIC, True, "r: allow *.com"),
    (CLOSED, "*:443", "", "a.com", PUBLIC, True, "r: allow *:443"),
    (CLOSED, "*", "", None, PUBLIC, True, "r: allow *"),
    (CLOSED, PUBLIC, "", None, PUBLIC, True, f"r: allow {PUBLIC}"),
    (CLOSED, "a.com", "", None, PUBLIC, False, "policy deny-by-default"),
    # A network opens no names: they would have to be looked up.
    (CLOSED, "93.0.0.0/8", "", "a.com", PUBLIC, False, "policy deny-by-default"),
    (CLOSED, "93.0.0.0/8", "", None, PUBLIC, True, "r: allow 93.0.0.0/8"),
    (NEVER, "a.com", "", "a.com", PUBLIC, False, "policy deny-always"),
    # Deny wins, by name and by what a name comes to; not where everything is always allowed.
    (OPEN, "a.com", "a.com", "a.com", PUBLIC, False, "r: deny a.com"),
    (OPEN, "a.com:443", "*.com", "a.com", PUBLIC, False, "r: deny *.com"),
    (OPEN, "a.com", PUBLIC, "a.com", PUBLIC, False, f"r: deny {PUBLIC}"),
    (OPEN, "", "*:443", None, PUBLIC, False, "r: deny *:443"),
    (OPEN, "", "*:80", None, PUBLIC, True, "policy allow-by-default"),
    (CLOSED, "*", "93.0.0.0/8", "a.com", PUBLIC, False, "r: deny 93.0.0.0/8"),
    (ALWAYS, "", "a.com", "a.com", PUBLIC, True, "policy allow-always"),
    # Internal addresses, unless named: `*`, a suffix and the whole internet do not name them.
    (ALWAYS, "", "", "a.com", PRIVATE, False, "internal address (private)"),
    (OPEN, "", "", "a.com", PRIVATE, False, "internal address (private)"),
    (OPEN, "", "", None, "127.0.0.1", False, "internal address (loopback)"),
    (OPEN, "", "", None, "169.254.169.254", False, "internal address (link-local)"),
    (OPEN, "", "", None, "::ffff:127.0.0.1", False, "internal address (loopback)"),
    (OPEN, "", "", None, OWN, False, "internal address (the host's own)"),
    (OPEN, "*", "", "a.com", PRIVATE, False, "internal address (private)"),
    (OPEN, "*:443", "", "a.com", PRIVATE, False, "internal address (private)"),
    (OPEN, "*.com", "", "a.com", PRIVATE, False, "internal address (private)"),
    (OPEN, "0.0.0.0/0", "", None, PRIVATE, False, "internal address (private)"),
    (OPEN, "10.0.0.0/7", "", None, PRIVATE, False, "internal address (private)"),
    (OPEN, "fc00::/7", "", None, "fd00::1", True, "r: allow fc00::/7"),
    (OPEN, "fc00::/6", "", None, "fd00::1", False, "internal address (unique local)"),
    (OPEN, "b.com", "", "a.com", PRIVATE, False, "internal address (private)"),
    (OPEN, "a.com", "", "a.com", PRIVATE, True, "r: allow a.com"),
    (OPEN, "a.com", "", "a.com", OWN, True, "r: allow a.com"),
    (ALWAYS, "10.0.0.0/8", "", None, PRIVATE, True, "r: allow 10.0.0.0/8"),
    (OPEN, PRIVATE, "", "a.com", PRIVATE, True, f"r: allow {PRIVATE}"),
    (OPEN, f"{PRIVATE}:80", "", None, PRIVATE, False, "internal address (private)"),
    (CLOSED, "*", "", None, PRIVATE, False, "internal address (private)"),
    (CLOSED, "* 10.0.0.0/8", "", None, PRIVATE, True, "r: allow 10.0.0.0/8"),
    (OPEN, "10.0.0.0/8", "10.1.0.0/16", None, PRIVATE, False, "r: deny 10.1.0.0/16"),
    # `hosts` names the addresses that it gives, for that name only, and allows nothing that is denied.
    (OPEN, "", "", "in.corp", PRIVATE, True, "hosts"),
    (ALWAYS, "", "", "in.corp", PRIVATE, True, "hosts"),
    (OPEN, "", "", None, PRIVATE, False, "internal address (private)"),
    (OPEN, "", "", "in.corp", "10.9.9.9", False, "internal address (private)"),
    (OPEN, "", "in.corp", "in.corp", PRIVATE, False, "r: deny in.corp"),
    (OPEN, "", "10.0.0.0/8", "in.corp", PRIVATE, False, "r: deny 10.0.0.0/8"),
    (CLOSED, "", "", "in.corp", PRIVATE, False, "policy deny-by-default"),
    (CLOSED, "*.corp", "", "in.corp", PRIVATE, True, "r: allow *.corp"),
    (CLOSED, "10.0.0.0/8", "", "in.corp", PRIVATE, True, "r: allow 10.0.0.0/8"),
]


@pytest.mark.parametrize(("mode", "allow", "deny", "name", "address", "allowed", "rule"), MATRIX)
def test_the_matrix_of_policies(
    *, mode: str, allow: str, deny: str, name: str | None, address: str, allowed: bool, rule: str
) -> None:
    assert verdict(policy(mode, allow, deny, {"in.corp": PRIVATE}), name, address) == Verdict(allowed, rule)


@pytest.mark.parametrize(
    ("mode", "allow", "deny", "denied"),
    [
        (OPEN, "", "", False), (OPEN, "", "a.com", True), (OPEN, "", "a.com:80", False), (OPEN, "", "*", True),
        (CLOSED, "", "", True), (CLOSED, "a.com:443", "", False), (CLOSED, "*:443", "", False), (NEVER, "*", "", True),
        (CLOSED, "a.com", "*.com", True), (ALWAYS, "", "a.com", False), (CLOSED, "10.0.0.0/8", "", True),
    ],
)  # fmt: skip
def test_a_name_is_denied_where_no_port_of_it_could_be_reached(
    mode: str, allow: str, deny: str, denied: bool
) -> None:
    assert (judge_name(policy(mode, allow, deny), "a.com", None) is not None) is denied


def test_addresses_of_denied_names_are_looked_for_among_exact_names_and_hosts() -> None:
    rules = policy(
        OPEN, "c.com", "a.com b.com:80 *.corp 10.0.0.0/8", {"in.corp": PRIVATE, "out.example": PUBLIC}
    )
    assert list(denied_names(rules, 443)) == [("a.com", "r: deny a.com"), ("in.corp", "r: deny *.corp")]
    assert not list(denied_names(replace(rules, mode="allow-always"), 443))


def test_a_live_rule_replaces_its_opposite() -> None:
    rules = with_live(policy(OPEN), "deny", parse_pattern("a.com"))
    assert verdict(rules, "a.com", PUBLIC) == Verdict(False, f"{LIVE}: deny a.com")
    rules = with_live(rules, "allow", parse_pattern("A.com."))
    assert verdict(rules, "a.com", PUBLIC) == Verdict(True, f"{LIVE}: allow A.com.")
    assert [rule.name for rule in rules.rules] == ["empty", "r", LIVE]


@pytest.mark.parametrize(
    ("mode", "deny", "verb", "pattern", "said"),
    [
        (OPEN, "a.com", "allow", "a.com", "r: deny a.com"),
        (OPEN, "a.com", "allow", "A.com.:443", "r: deny a.com"),
        (OPEN, "a.com:80", "allow", "a.com", None),
        (OPEN, "a.com:80", "allow", "a.com:80", "r: deny a.com:80"),
        (OPEN, "a.com:80", "allow", "a.com:443", None),
        (CLOSED, "*.com", "allow", "x.a.com", "r: deny *.com"),
        (CLOSED, "*.com", "allow", "*.a.com", "r: deny *.com"),
        (CLOSED, "*.a.com", "allow", "*.com", None),
        (CLOSED, "a.com", "allow", "*.com", None),
        (CLOSED, "*", "allow", "*.com", "r: deny *"),
        (CLOSED, "*", "allow", "*", "r: deny *"),
        (CLOSED, "*", "allow", "10.0.0.0/8", "r: deny *"),
        (CLOSED, "10.0.0.0/8", "allow", "10.1.0.0/16", "r: deny 10.0.0.0/8"),
        (CLOSED, "10.0.0.0/8", "allow", "0.0.0.0/0", None),
        (CLOSED, "10.0.0.0/8", "allow", "11.0.0.0/16", None),
        (CLOSED, "::/0", "allow", "10.0.0.1", None),
        (CLOSED, "10.0.0.0/8", "allow", "a.com", None),
        (CLOSED, "10.0.0.0/8", "allow", "*", None),
        (NEVER, "", "allow", "a.com", "policy deny-always"),
        (NEVER, "", "deny", "a.com", None),
        (ALWAYS, "", "deny", "a.com", "policy allow-always"),
        (ALWAYS, "a.com", "allow", "a.com", None),
        (OPEN, "a.com", "deny", "a.com", None),
    ],
)
def test_what_decides_whatever_a_live_rule_says(
    mode: str, deny: str, verb: Literal["allow", "deny"], pattern: str, said: str | None
) -> None:
    assert without_effect(policy(mode, "", deny), verb, parse_pattern(pattern)) == said


PATTERNS = st.lists(
    st.sampled_from(["*", "*:443", "a.com", "*.com", "b.com:80", "10.0.0.0/8", "0.0.0.0/0", PUBLIC]), max_size=4
).map(" ".join)  # fmt: skip


@given(
    mode=st.sampled_from([ALWAYS, NEVER, OPEN, CLOSED]), allow=PATTERNS, deny=PATTERNS,
    name=st.sampled_from([None, "a.com", "b.com", "x.a.com"]), address=st.ip_addresses(v=4).map(str),
    port=st.sampled_from([80, 443]),
)  # fmt: skip
def test_whatever_the_rules(
    *, mode: str, allow: str, deny: str, name: str | None, address: str, port: int
) -> None:
    rules = policy(mode, allow, deny)
    found = verdict(rules, name, address, port)
    # More denials allow nothing more, more permission denies nothing more.
    wider = verdict(policy(mode, f"{allow} a.com {address}", deny), name, address, port)
    narrower = verdict(policy(mode, allow, f"{deny} b.com {address}"), name, address, port)
    assert narrower.allowed <= found.allowed <= wider.allowed
    if internal(parse_address(address)) and not {"a.com", "b.com:80", "10.0.0.0/8", PUBLIC} & set(
        allow.split()
    ):
        assert not found.allowed
    if mode in (OPEN, CLOSED):
        assert not narrower.allowed


def test_patterns_are_values() -> None:
    assert parse_pattern("a.com:1") == Pattern("a.com:1", name="a.com", port=1)


@given(
    mode=st.sampled_from([ALWAYS, NEVER, OPEN, CLOSED]), deny=PATTERNS,
    text=st.sampled_from(["*", "*:443", "*.com", "a.com", "b.com:80", "10.0.0.0/8", "10.1.0.0/16:443", PUBLIC]),
    name=st.sampled_from([None, "a.com", "b.com", "x.a.com"]), address=st.sampled_from([PUBLIC, "10.1.2.3"]),
    port=st.sampled_from([80, 443]),
)  # fmt: skip
def test_what_a_live_rule_cannot_allow_stays_denied(
    *, mode: str, deny: str, text: str, name: str | None, address: str, port: int
) -> None:
    rules, pattern = policy(mode, "", deny), parse_pattern(text)
    said = without_effect(rules, "allow", pattern)
    about = pattern.takes_port(port) and (
        (name is not None and pattern.matches_name(name)) or pattern.matches_address(parse_address(address))
    )
    if said is not None and about and (name is None or pattern.network is None):
        assert not verdict(with_live(rules, "allow", pattern), name, address, port).allowed
