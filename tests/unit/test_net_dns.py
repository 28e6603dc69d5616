"""Virtual DNS: answers read back by dnslib's rules, hostile queries, and the pool of synthetic addresses."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from airlock_runner.net import dns
from airlock_runner.net.synthetic import Names

NUMBER = 0xBEEF


def query(
    name: str | bytes, kind: int = dns.A, domain: int = 1, flags: int = 0x100, questions: int = 1
) -> bytes:
    """A query as a resolver sends it; a name as bytes is put in as it is."""
    if isinstance(name, str):
        labels = [label.encode() for label in name.split(".") if label]
        name = b"".join(bytes((len(label),)) + label for label in labels) + b"\0"
    return struct.pack(">HHHHHH", NUMBER, flags, questions, 0, 0, 0) + name + struct.pack(">HH", kind, domain)


def ask(text: bytes, names: Names | None = None, *, denied: bool = False) -> bytes:
    found = dns.parse(text)
    assert found is not None
    return found if isinstance(found, bytes) else dns.respond(found, names or Names(), denied=denied)


def code(answer: bytes) -> tuple[int, int]:
    """RCODE and the number of answers; the head must be that of a response to our query."""
    number, flags, _, answers, authorities, additional = struct.unpack_from(">HHHHHH", answer)
    assert (number, flags & 0x8000, authorities, additional) == (NUMBER, 0x8000, 0, 0)
    return flags & 15, answers


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (query("example.com"), (dns.NOERROR, 1)),
        (query("example.com", dns.ANY), (dns.NOERROR, 1)),
        (query("example.com", 28), (dns.NOERROR, 0)),  # AAAA
        (query("example.com", 65), (dns.NOERROR, 0)),  # HTTPS
        (query("example.com", 64), (dns.NOERROR, 0)),  # SVCB
        (query("example.com", 15), (dns.NOERROR, 0)),  # MX
        (query("example.com", 16), (dns.NOERROR, 0)),  # TXT
        (query("8.8.8.8.in-addr.arpa", dns.PTR), (dns.NXDOMAIN, 0)),
        (query("1.0.2.10.in-addr.arpa", dns.PTR), (dns.NXDOMAIN, 0)),
        (query("999.0.2.10.in-addr.arpa", dns.PTR), (dns.NXDOMAIN, 0)),
        (query("a b.example"), (dns.NXDOMAIN, 0)),
        (query(b"\3a.b\0"), (dns.NXDOMAIN, 0)),
        (query(b"\3a\0b\0"), (dns.NXDOMAIN, 0)),
        (query("bücher.example"), (dns.NXDOMAIN, 0)),
        (query("xn--bcher-kva.example"), (dns.NOERROR, 1)),
        (query("_dmarc.example.com"), (dns.NOERROR, 1)),
        (query("example.com", domain=3), (dns.REFUSED, 0)),  # CHAOS
        (query("example.com", flags=0x2800), (dns.NOTIMP, 0)),  # UPDATE
        (query("example.com", questions=0), (dns.FORMERR, 0)),
        (query("example.com", questions=2), (dns.FORMERR, 0)),
        (query("example.com")[:-1], (dns.FORMERR, 0)),
        (query("example.com")[:14], (dns.FORMERR, 0)),
        (query(b"\xc0\x0c"), (dns.FORMERR, 0)),
        (query(b"\x40" + b"a" * 64 + b"\0"), (dns.FORMERR, 0)),
        (query((b"\x3f" + b"a" * 63) * 3 + b"\x3d" + b"a" * 61 + b"\0"), (dns.NOERROR, 1)),
        (query((b"\x3f" + b"a" * 63) * 3 + b"\x3e" + b"a" * 62 + b"\0"), (dns.FORMERR, 0)),
        (query("example.com") + b"junk", (dns.NOERROR, 1)),
        # EDNS: an OPT record of 1,232 bytes; the answer has none.
        (
            query("example.com")[:11] + b"\1" + query("example.com")[12:] + b"\0\0\x29\4\xd0" + bytes(6),
            (dns.NOERROR, 1),
        ),
        (query("example.com") + bytes(dns.MAX_QUERY), (dns.FORMERR, 0)),
    ],
)
def test_answers(text: bytes, expected: tuple[int, int]) -> None:
    assert code(ask(text)) == expected


@pytest.mark.parametrize("text", [b"", b"\0" * 11, query("example.com", flags=0x8180)])
def test_no_answer_at_all(text: bytes) -> None:
    """To what is too short to have a number, and to answers: two servers would talk for ever."""
    assert dns.parse(text) is None


def address(answer: bytes) -> bytes:
    """Of the one record that ends an answer."""
    kind, domain, ttl, size = struct.unpack_from(">HHIH", answer, len(answer) - 14)
    assert (kind, domain, ttl, size) == (dns.A, 1, dns.TTL, 4)
    return answer[-4:]


def test_a_name_is_the_same_in_any_case_and_comes_back_by_ptr() -> None:
    names = Names()
    first = address(ask(query("Example.COM"), names))
    assert first == address(ask(query("example.com."), names)) == bytes((10, 2, 0, 1))
    assert address(ask(query("other.example"), names)) != first
    # The question comes back as it was asked: resolvers check the case.
    assert b"\7Example\3COM\0" in ask(query("Example.COM"), names)
    reverse = ask(query("1.0.2.10.in-addr.arpa", dns.PTR), names)
    assert code(reverse) == (dns.NOERROR, 1)
    assert reverse.endswith(b"\0\x0d\7example\3com\0")
    assert names.name(first) == "example.com"


def test_localhost_is_this_guest() -> None:
    assert address(ask(query("localhost"))) == address(ask(query("a.localhost"))) == b"\x7f\0\0\1"


def test_denied_names() -> None:
    assert code(ask(query("example.com"), denied=True)) == (dns.NXDOMAIN, 0)


def test_truncated() -> None:
    answer = ask(query("a" * 60 + ".example"))
    assert dns.truncated(answer, 512) == answer
    cut = dns.truncated(answer, 50)
    assert len(cut) == 12
    assert struct.unpack_from(">HHHHHH", cut) == (NUMBER, 0x8380, 0, 0, 0, 0)


@given(st.binary(max_size=400))
def test_hostile_queries(data: bytes) -> None:
    """Any bytes: an answer, or none, and never more than a little longer than what was asked."""
    found = dns.parse(data)
    answer = found if isinstance(found, bytes | None) else dns.respond(found, Names())
    assert answer is None or len(answer) <= len(data) + 300


@given(
    st.lists(
        st.text(
            st.characters(min_codepoint=33, max_codepoint=126, exclude_characters="."),
            min_size=1,
            max_size=63,
        ),
        min_size=1,
        max_size=3,
    )
)
def test_every_name_has_an_address(labels: list[str]) -> None:
    name = ".".join(labels)
    names = Names()
    if not name.lower().endswith("localhost"):
        assert names.name(address(ask(query(name), names))) == name.lower()


class Pool(RuleBasedStateMachine):
    """Three addresses for five names, against a model: who is in use keeps its address, the oldest goes."""

    def __init__(self) -> None:
        super().__init__()
        self.names = Names(1, 3)
        self.order: list[str] = []
        self.uses: dict[str, int] = {}

    @rule(name=st.sampled_from("abcde"))
    def look_up(self, name: str) -> None:
        found = self.names.address(name)
        if name not in self.order and len(self.order) == 3:
            idle = [each for each in self.order if not self.uses.get(each)]
            if not idle:
                assert found is None
                return
            self.order.remove(idle[0])
        assert found is not None
        if name in self.order:
            self.order.remove(name)
        self.order.append(name)
        assert self.names.name(found) == name

    @rule(name=st.sampled_from("abcde"))
    def use(self, name: str) -> None:
        if name in self.order:
            found = self.names.address(name)
            assert found is not None
            assert self.names.use(found) == name
            self.uses[name] = self.uses.get(name, 0) + 1
            self.order.remove(name)
            self.order.append(name)

    @rule(name=st.sampled_from("abcde"))
    def release(self, name: str) -> None:
        if self.uses.get(name):
            found = self.names.address(name)
            assert found is not None
            self.names.release(found)
            self.uses[name] -= 1
            self.order.remove(name)
            self.order.append(name)

    @invariant()
    def known(self) -> None:
        assert sorted(self.order) == sorted(
            name for name in map(self.names.name, (bytes((10, 2, 0, n)) for n in range(5))) if name
        )


TestPool = Pool.TestCase


def test_addresses_of_others_have_no_name() -> None:
    names = Names()
    names.address("a")
    assert names.name(bytes((10, 3, 0, 1))) is None
    assert names.use(bytes((8, 8, 8, 8))) is None
