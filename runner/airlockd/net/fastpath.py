"""Established flows inside the kernel: a small eBPF program rewrites their packets, so that none crosses Python.

It hangs at the way out of airlock0 (tcx, Linux 6.6) and does what packet.rewrite does, for the tuples that it finds in
a map, then gives the packet to airlock0's way in; a FIN or RST is noted in the map. All else goes on into the device:
what it does not know, and whatever opens a connection. It is for speed alone. Without it, or should root in the guest
detach it, all packets take that way; the host judges each connection in any case.

Sources: linux/bpf.h, bpf-helpers(7), Documentation/bpf/standardization/instruction-set.rst.
"""

from __future__ import annotations

import ctypes
import os
import struct
import sys
from typing import TYPE_CHECKING

from airlockd import linux
from airlockd.net.packet import ACK, FIN, HEADER, RST, SYN, TCP

if TYPE_CHECKING:
    from collections.abc import Sequence

    from airlockd.net.packet import Rewrite

MAX_ENTRIES = 16384
"""Two for each flow; a flow that finds no place goes through Python."""
BATCH = 64
"""Tuples that the kernel is told of at once, at most."""
NEXT = -1
"""TCX_NEXT: as if there were no program."""
_MAP_CREATE, _MAP_LOOKUP, _PROG_LOAD, _MAP_UPDATE_BATCH, _MAP_DELETE_BATCH, _LINK_CREATE = 0, 1, 5, 26, 27, 28
_HASH, _NO_PREALLOC = 1, 1
_SCHED_CLS, _TCX_EGRESS = 3, 47
_KEY_SIZE = 12
_VALUE = struct.Struct("=12sIII")
"""The new tuple, by how much the sums of addresses and of ports grow, in the packet's byte order, and those of the TCP
flags FIN and RST that were seen."""
_SEEN = 20
_BATCH, _COUNT, _COUNT_AT = struct.Struct("=QQQQIIQQ"), struct.Struct("=I"), 32
"""What bpf(2) takes for many keys: two marks that are not needed here, keys, values, how many, map, and flags."""

# Offsets in struct __sk_buff, and numbers of helpers.
_DATA, _DATA_END = 76, 80
_LOOKUP, _STORE, _IP_SUM, _TRANSPORT_SUM, _REDIRECT = 1, 9, 10, 11, 23
_PSEUDO_HEADER, _INGRESS = 0x10, 1
_R0, _R1, _R2, _R3, _R4, _R5, _R6, _R7, _R8, _STACK = 0, 1, 2, 3, 4, 5, 6, 7, 8, 10
_SIZES = {1: 0x10, 2: 0x08, 4: 0x00}


def _instruction(code: int, to: int = 0, source: int = 0, offset: int = 0, value: int = 0) -> bytes:
    return struct.pack("=BBhi", code, source << 4 | to, offset, value)


def _set(to: int, value: int) -> bytes:
    return _instruction(0xB7, to, value=value)


def _copy(to: int, source: int) -> bytes:
    return _instruction(0xBF, to, source)


def _add(to: int, value: int) -> bytes:
    return _instruction(0x07, to, value=value)


def _and(to: int, value: int) -> bytes:
    return _instruction(0x57, to, value=value)


def _or(to: int, source: int) -> bytes:
    return _instruction(0x4F, to, source)


def _load(size: int, to: int, source: int, offset: int) -> bytes:
    return _instruction(0x61 | _SIZES[size], to, source, offset)


def _save(size: int, to: int, offset: int, source: int) -> bytes:
    return _instruction(0x63 | _SIZES[size], to, source, offset)


def _call(helper: int) -> bytes:
    return _instruction(0x85, value=helper)


_EXIT = _instruction(0x95)


def program(table: int, index: int) -> bytes:
    """The instructions, for the map behind the descriptor `table` and the device with this index."""
    fragment = int.from_bytes(struct.pack(">H", 0x3FFF), sys.byteorder)
    main = b"".join((
        _copy(_R7, _R0),
        # The sums first: a store makes pointers into the packet void, and these go by offset. Should one of the helpers
        # fail, for lack of memory, the packet is one that the kernel drops, and TCP sends it again.
        _copy(_R1, _R6), _set(_R2, 10), _set(_R3, 0), _load(4, _R4, _R7, 12), _set(_R5, 0), _call(_IP_SUM),
        _copy(_R1, _R6), _set(_R2, HEADER + 16), _set(_R3, 0), _load(4, _R4, _R7, 12), _set(_R5, _PSEUDO_HEADER),
        _call(_TRANSPORT_SUM),
        _copy(_R1, _R6), _set(_R2, HEADER + 16), _set(_R3, 0), _load(4, _R4, _R7, 16), _set(_R5, 0),
        _call(_TRANSPORT_SUM),
        _copy(_R1, _R6), _set(_R2, 12), _copy(_R3, _R7), _set(_R4, 12), _set(_R5, 0), _call(_STORE),
        _set(_R1, index), _set(_R2, _INGRESS), _call(_REDIRECT),
        _EXIT,
    ))  # fmt: skip
    # Packets of one direction do not overtake each other where it matters: should two of them end it on two processors
    # at once, one of the notes is enough.
    note = _load(4, _R1, _R0, _SEEN) + _or(_R1, _R8) + _save(4, _R0, _SEEN, _R1)
    # From its end to its start: each jump that leaves goes over all that is already there.

    def unless(code: int, to: int, value: int, text: bytes, source: int = 0) -> bytes:
        """Leave for `other` where the comparison holds, or else go on with `text`."""
        return _instruction(code, to, source, len(text) // 8, value) + text

    text = unless(
        0x15, _R0, 0, _and(_R8, FIN | RST) + _instruction(0x15, _R8, 0, len(note) // 8, 0) + note + main
    )
    text = b"".join((
        *(_load(4, _R4, _R2, 12 + at) + _save(4, _STACK, at - 12, _R4) for at in (0, 4, 8)),
        _instruction(0x18, _R1, 1, value=table), _instruction(0),
        _copy(_R2, _STACK), _add(_R2, -12), _call(_LOOKUP),
    )) + text  # fmt: skip
    # A SYN with ACK answers one that was let through. A bare one is Python's to see.
    text = _copy(_R4, _R8) + _and(_R4, SYN | ACK) + unless(0x15, _R4, SYN, text)
    text = _load(1, _R8, _R2, HEADER + 13) + text
    text = _load(2, _R4, _R2, 6) + _and(_R4, fragment) + unless(0x55, _R4, 0, text)
    text = _load(1, _R4, _R2, 9) + unless(0x55, _R4, TCP, text)
    text = _load(1, _R4, _R2, 0) + unless(0x55, _R4, 0x45, text)
    text = _copy(_R4, _R2) + _add(_R4, 2 * HEADER) + unless(0x2D, _R4, 0, text, _R3)
    start = _copy(_R6, _R1) + _load(4, _R2, _R1, _DATA) + _load(4, _R3, _R1, _DATA_END)
    return start + text + _set(_R0, NEXT) + _EXIT


class FastPath:
    """Attached for as long as this process lives. Raises OSError where the kernel cannot do that."""

    def __init__(self, index: int) -> None:
        """For the device with this index."""
        self._table = _bpf(
            _MAP_CREATE, struct.pack("=5I", _HASH, _KEY_SIZE, _VALUE.size, MAX_ENTRIES, _NO_PREALLOC)
        )
        text = ctypes.create_string_buffer(program(self._table, index))
        license_ = ctypes.create_string_buffer(b"")
        self._program = _bpf(_PROG_LOAD, struct.pack(
            "=IIQQIIQII16sII", _SCHED_CLS, (len(text) - 1) // 8, ctypes.addressof(text), ctypes.addressof(license_),
            0, 0, 0, 0, 0, b"airlock0", 0, _TCX_EGRESS,
        ))  # fmt: skip
        self._link = _bpf(_LINK_CREATE, struct.pack("=4I", self._program, index, _TCX_EGRESS, 0) + bytes(16))
        self._keys, self._values = bytearray(BATCH * _KEY_SIZE), bytearray(BATCH * _VALUE.size)
        keys, values = (
            ctypes.addressof(ctypes.c_char.from_buffer(each)) for each in (self._keys, self._values)
        )
        self._one = ctypes.create_string_buffer(struct.pack("=I4xQQQ", self._table, keys, values, 0), 32)
        self._batch = ctypes.create_string_buffer(
            _BATCH.pack(0, 0, keys, values, 0, self._table, 0, 0), _BATCH.size
        )

    def add(self, rewrites: Sequence[tuple[bytes, Rewrite]]) -> None:
        """Rewrite packets of these tuples so, from now on; where there is no room they go on through Python."""
        for number, (tuple_, how) in enumerate(rewrites):
            self._keys[number * _KEY_SIZE : (number + 1) * _KEY_SIZE] = tuple_
            self._values[number * _VALUE.size : (number + 1) * _VALUE.size] = as_value(how)
        self._call(_MAP_UPDATE_BATCH, len(rewrites))

    def remove(self, tuples: Sequence[bytes]) -> None:
        """Leave packets of these tuples alone."""
        for start in range(0, len(tuples), BATCH):
            some = tuples[start : start + BATCH]
            while some:
                self._keys[: len(some) * _KEY_SIZE] = b"".join(some)
                # It ends at the first that found no place when it was added.
                some = some[self._call(_MAP_DELETE_BATCH, len(some)) + 1 :]

    def seen(self, tuple_: bytes) -> int:
        """FIN and RST, where packets of the tuple had them since it was added."""
        self._keys[:_KEY_SIZE] = tuple_
        if linux.bpf(_MAP_LOOKUP, self._one) < 0:
            return 0
        return int.from_bytes(self._values[_SEEN : _VALUE.size], sys.byteorder)

    def _call(self, command: int, count: int) -> int:
        """Do it for the first keys; gives for how many it was done."""
        _COUNT.pack_into(self._batch, _COUNT_AT, count)
        linux.bpf(command, self._batch)
        done: int = _COUNT.unpack_from(self._batch, _COUNT_AT)[0]
        return done


def as_value(how: Rewrite) -> bytes:
    """A rewrite as it lies in the map."""
    ports = (how.delta - how.address_delta) % 0xFFFF
    return _VALUE.pack(how.tuple, _as_stored(how.address_delta), _as_stored(ports), 0)


def _as_stored(total: int) -> int:
    """A sum of big-endian words, as the one of the same words read in this machine's order (RFC 1071, 1.B)."""
    return int.from_bytes(total.to_bytes(2, "big"), sys.byteorder)


def _bpf(command: int, attributes: bytes) -> int:
    result = linux.bpf(command, ctypes.create_string_buffer(attributes, len(attributes)))
    if result < 0:
        raise OSError(-result, os.strerror(-result), "bpf")
    return result
