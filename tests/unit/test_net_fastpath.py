"""The eBPF program of airlock0, run by a small interpreter: it does with packets what packet.rewrite does."""

from __future__ import annotations

import struct
import sys

from hypothesis import given
from hypothesis import strategies as st
from test_net_packet import TUPLES, is_right, tcp

from airlockd.net.fastpath import NEXT, as_value, program
from airlockd.net.packet import ACK, FIN, RST, SYN, rewrite, rewriting, tuple_of

TABLE, INDEX = 9, 4
REDIRECTED = 7
"""TC_ACT_REDIRECT"""
PACKET, STACK, VALUE, CONTEXT = 1 << 32, 2 << 32, 3 << 32, 4 << 32
"""Where memory begins, for the interpreter."""
MASK = (1 << 64) - 1


class Kernel:
    """One packet in airlock0's way out. `table` is the map; `partial` is CHECKSUM_PARTIAL."""

    def __init__(self, data: bytes, table: dict[bytes, bytearray], *, partial: bool = False) -> None:
        self.packet, self.table, self.partial = bytearray(data), table, partial
        self.stack, self.value = bytearray(512), bytearray()

    def load(self, at: int, size: int) -> int:
        area, place = at >> 32 << 32, at & 0xFFFFFFFF
        if area == CONTEXT:
            assert size == 4
            return {76: PACKET, 80: PACKET + len(self.packet)}[place]
        memory = {PACKET: self.packet, VALUE: self.value}.get(area)
        if memory is None:
            memory, place = self.stack, at - STACK
        assert 0 <= place <= len(memory) - size, "the verifier would have refused this"
        return int.from_bytes(memory[place : place + size], sys.byteorder)

    def add(self, place: int, difference: int, *, partial: bool) -> None:
        """csum_replace_by_diff, or what it is for a sum of the pseudo-header alone."""
        (found,) = struct.unpack_from("=H", self.packet, place)
        if not partial:
            found = 0xFFFF - found
        total = found + difference
        while total >> 16:
            total = (total & 0xFFFF) + (total >> 16)
        struct.pack_into("=H", self.packet, place, total if partial else 0xFFFF - total)

    def call(self, helper: int, arguments: list[int]) -> int:
        a, b, c, d, e = arguments
        if helper == 1:  # map_lookup_elem
            assert a == TABLE
            key = bytes(self.load(b + at, 1) for at in range(12))
            self.value = self.table.get(key, bytearray())
            return VALUE if self.value else 0
        if helper == 23:  # redirect
            assert (a, b) == (INDEX, 1)
            return REDIRECTED
        assert a == CONTEXT
        if helper == 9:  # skb_store_bytes
            assert e == 0
            self.packet[b : b + d] = bytes(self.load(c + at, 1) for at in range(d))
        elif helper == 10:  # l3_csum_replace
            assert (c, e) == (0, 0)
            self.add(b, d, partial=False)
        elif helper == 11:  # l4_csum_replace
            assert c == 0
            assert e in (0, 0x10)
            if not self.partial or e:
                self.add(b, d, partial=self.partial)
        else:
            raise AssertionError(f"helper {helper}")
        return 0

    def run(self, text: bytes) -> int:
        """What the program gives."""
        registers = [0] * 11
        registers[1], registers[10] = CONTEXT, STACK + 512
        position = 0
        while True:
            code, both, offset, value = struct.unpack_from("=BBhi", text, position * 8)
            to, source = both & 15, both >> 4
            position += 1
            if code == 0x95:
                return registers[0]
            if code == 0x85:
                registers[0] = self.call(value, registers[1:6])
            elif code == 0x18:
                assert source == 1
                registers[to] = value
                position += 1
            elif code == 0xB7:
                registers[to] = value
            elif code == 0xBF:
                registers[to] = registers[source]
            elif code == 0x07:
                registers[to] = (registers[to] + value) & MASK
            elif code == 0x57:
                registers[to] &= value
            elif code == 0x4F:
                registers[to] |= registers[source]
            elif code in (0x61, 0x69, 0x71):
                registers[to] = self.load(registers[source] + offset, {0x61: 4, 0x69: 2, 0x71: 1}[code])
            elif code == 0x63:
                at = registers[to] + offset
                memory, at = (self.stack, at - STACK) if at < VALUE else (self.value, at - VALUE)
                assert 0 <= at <= len(memory) - 4, "the verifier would have refused this"
                memory[at : at + 4] = registers[source].to_bytes(4, sys.byteorder)
            else:
                taken = {
                    0x15: registers[to] == value,
                    0x55: registers[to] != value,
                    0x2D: registers[to] > registers[source],
                }[code]
                position += offset * taken


def run(data: bytes, table: dict[bytes, bytearray], *, partial: bool = False) -> tuple[int, bytes]:
    """What becomes of a packet, and of its bytes."""
    kernel = Kernel(data, table, partial=partial)
    return kernel.run(program(TABLE, INDEX)), bytes(kernel.packet)


@given(TUPLES, TUPLES, st.binary(max_size=40), st.booleans(), st.sampled_from([ACK, SYN | ACK, ACK | 8]))
def test_known_packets_are_rewritten_as_python_does(
    old: bytes, new: bytes, payload: bytes, partial: bool, flags: int
) -> None:
    data = tcp(old, flags, payload, partial=partial)
    how = rewriting(old, new)
    expected = bytearray(data)
    rewrite(expected, 0, how, partial=partial)
    done, found = run(data, {old: bytearray(as_value(how))}, partial=partial)
    assert done == REDIRECTED
    assert tuple_of(found) == new
    # 0 and 0xFFFF are the same sum, and the kernel takes either.
    same = [at for at in range(len(found)) if at // 2 * 2 not in (10, 36)]
    assert [found[at] for at in same] == [expected[at] for at in same]
    if not partial:
        assert is_right(found)
    else:
        assert int.from_bytes(found[36:38], "big") % 0xFFFF == int.from_bytes(expected[36:38], "big") % 0xFFFF


@given(TUPLES, TUPLES, st.sampled_from([SYN, SYN | FIN, SYN | RST]))
def test_what_opens_a_connection_is_left_to_python(old: bytes, new: bytes, flags: int) -> None:
    data = tcp(old, flags)
    value = as_value(rewriting(old, new))
    table = {old: bytearray(value)}
    assert run(data, table) == (NEXT, data)
    assert table == {old: value}


@given(
    TUPLES, TUPLES, st.lists(st.sampled_from([ACK, FIN | ACK, RST, RST | ACK, SYN | ACK, FIN, 0]), max_size=4)
)
def test_what_ends_a_connection_is_noted(old: bytes, new: bytes, several: list[int]) -> None:
    table = {old: bytearray(as_value(rewriting(old, new)))}
    noted = 0
    for flags in several:
        done, found = run(tcp(old, flags), table)
        assert (done, tuple_of(found)) == (REDIRECTED, new)
        noted |= flags & (FIN | RST)
        assert table[old] == as_value(rewriting(old, new))[:-4] + noted.to_bytes(4, sys.byteorder)


@given(TUPLES, TUPLES)
def test_so_is_what_is_unknown_or_no_plain_tcp(old: bytes, other: bytes) -> None:
    known = {old: bytearray(as_value(rewriting(old, other)))}
    good = tcp(old, ACK)
    assert run(good, {})[0] == NEXT
    for place, value in ((0, 0x46), (0, 0x60), (9, 17), (6, 0x20), (7, 1)):
        data = bytearray(good)
        data[place] = value
        assert run(bytes(data), known) == (NEXT, bytes(data))


@given(st.binary(max_size=80))
def test_any_bytes(data: bytes) -> None:
    """Nothing is read beyond the end: the interpreter refuses it, as the kernel's verifier does."""
    assert run(data, {}) == (NEXT, data)
