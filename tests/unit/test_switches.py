"""What airlockd asks of netfilter before READY: one batch, as the kernel's own headers have it."""

from __future__ import annotations

import struct

import pytest

from airlockd.switches import chains, emulated


def messages(batch: bytes) -> list[tuple[int, int, bytes]]:
    """Kind, family, attributes of each; every length is right."""
    found = []
    while batch:
        size, kind, flags, _, _ = struct.unpack_from("=IHHII", batch)
        assert flags & 1
        assert 20 <= size <= len(batch)
        assert size % 4 == 0
        found.append((kind, batch[16], batch[20:size]))
        batch = batch[size:]
    return found


def attributes(data: bytes) -> dict[int, bytes]:
    found = {}
    while data:
        size, kind = struct.unpack_from("=HH", data)
        assert 4 <= size <= len(data)
        found[kind & 0x7FFF] = data[4:size]
        data = data[(size + 3) & ~3 :]
    return found


@pytest.mark.parametrize("family", [1, 7])
def test_a_table_with_a_counting_chain_at_every_hook(family: int) -> None:
    begin, table, *made, end = messages(chains(family))
    assert (begin[0], end[0]) == (0x10, 0x11)
    assert table == (0xA00, family, b"\x0c\0\1\0airlock\0")
    hooks = []
    for kind, of, data in made:
        assert (kind, of) == (0xA03, family)
        chain = attributes(data)
        assert (chain[1], chain[7]) == (b"airlock\0", b"filter\0")
        assert attributes(chain[8]) == {1: bytes(8), 2: bytes(8)}
        assert attributes(chain[4])[2] == bytes(4)
        hooks.append((chain[3], attributes(chain[4])[1]))
    assert hooks == [(b"hook%d\0" % number, struct.pack(">I", number)) for number in range(5)]


def test_only_qemus_own_x86_cpus_are_emulated() -> None:
    assert emulated(b"processor\t: 0\nmodel name\t: QEMU TCG CPU version 2.5+\n")
    assert not emulated(b"processor\t: 0\nmodel name\t: AMD EPYC\n")
