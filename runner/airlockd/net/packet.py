"""Packets as bytes: checksums, the rewriting of addresses, and the answers that airlock0 gives by itself.

Pure. Packets are IPv4 without options unless said; sources: RFC 791, 792, 1071, 1624, 4443, 9293.
"""

from __future__ import annotations

import struct
from typing import NamedTuple

TCP, UDP, ICMP, ICMPV6, SCTP = 6, 17, 1, 58, 132
FIN, SYN, RST, ACK = 0x01, 0x02, 0x04, 0x10
NET_UNREACHABLE, HOST_UNREACHABLE, PROTOCOL_UNREACHABLE, PORT_UNREACHABLE, PROHIBITED = 0, 1, 2, 3, 13
"""Codes of ICMP's `destination unreachable`."""
HEADER = 20
"""Bytes of an IPv4 header without options, and where the transport's header starts."""
_ICMP_ERRORS = (3, 4, 5, 11, 12)
_NO_ROUTE6, _NOBODY6 = 0, 4
"""Codes of ICMPv6's `destination unreachable`."""
_TTL = 64
_TUPLE = slice(12, 24)
_IP_SUM, _TCP_SUM, _FLAGS = 10, HEADER + 16, HEADER + 13
_SHORT = struct.Struct(">H")
_IP = struct.Struct(">BBHHHBBH4s4s")
_TCP_HEADER = struct.Struct(">HHIIBBHHH")


class Rewrite(NamedTuple):
    """New source, destination and ports of a packet (12 bytes, as they lie in it), and what they do to its sums."""

    tuple: bytes
    address_delta: int
    delta: int


def rewriting(old: bytes, new: bytes) -> Rewrite:
    """How to turn a packet of the tuple `old` into one of `new`."""
    return Rewrite(new, (_sum(new[:8]) - _sum(old[:8])) % 0xFFFF, (_sum(new) - _sum(old)) % 0xFFFF)


def rewrite(packet: bytearray | memoryview, at: int, how: Rewrite, *, partial: bool) -> None:
    """Rewrite the TCP packet that lies in `packet` from `at` on, and its checksums by difference (RFC 1624).

    `partial`: its TCP checksum is of the pseudo-header alone and not complemented, the rest is the kernel's to add
    (VIRTIO_NET_HDR_F_NEEDS_CSUM).
    """
    packet[at + 12 : at + 24] = how.tuple
    place = at + _IP_SUM
    _SHORT.pack_into(
        packet, place, 0xFFFF - (0xFFFF - _SHORT.unpack_from(packet, place)[0] + how.address_delta) % 0xFFFF
    )
    place = at + _TCP_SUM
    found = _SHORT.unpack_from(packet, place)[0]
    if partial:
        _SHORT.pack_into(packet, place, (found + how.address_delta) % 0xFFFF)
    else:
        _SHORT.pack_into(packet, place, 0xFFFF - (0xFFFF - found + how.delta) % 0xFFFF)


def is_plain(packet: bytes | memoryview) -> bool:
    """Whether it is an unfragmented packet over IPv4 without options; at least HEADER bytes long."""
    return packet[0] == 0x45 and not _SHORT.unpack_from(packet, 6)[0] & 0x3FFF


def is_plain_tcp(packet: bytes | memoryview) -> bool:
    """Whether it is an unfragmented TCP packet over IPv4 without options, whole up to the end of both headers."""
    return len(packet) >= 2 * HEADER and packet[9] == TCP and is_plain(packet)


def tuple_of(packet: bytes | memoryview) -> bytes:
    """Source address, destination address, source port, destination port: 12 bytes."""
    return bytes(packet[_TUPLE])


def destination(packet: bytes | memoryview) -> tuple[int, bytes, int | None]:
    """Protocol, address of 4 or 16 bytes, and port of any packet that is whole up to the end of its IP header.

    The port is None where the protocol has none, or the packet ends before it. The protocol of IPv6 is what follows
    its first header.
    """
    if packet[0] >> 4 == 6:
        protocol, address, end = packet[6], bytes(packet[24:40]), 40
    else:
        protocol, address, end = packet[9], bytes(packet[16:20]), (packet[0] & 15) * 4
    has_port = protocol in (TCP, UDP, SCTP) and len(packet) >= end + 4
    return protocol, address, _SHORT.unpack_from(packet, end + 2)[0] if has_port else None


def back(tuple_: bytes) -> bytes:
    """The tuple of what is sent the other way."""
    return tuple_[4:8] + tuple_[:4] + tuple_[10:12] + tuple_[8:10]


def tcp_flags(packet: bytes | memoryview) -> int:
    """The flags of a TCP packet."""
    return packet[_FLAGS]


def tcp_number(packet: bytes | memoryview) -> bytes:
    """The sequence number of a TCP packet."""
    return bytes(packet[HEADER + 4 : HEADER + 8])


def checksum(data: bytes | memoryview) -> int:
    """The Internet checksum (RFC 1071)."""
    # The sum of what is not all zero has 0xFFFF as its zero.
    total = _sum(data)
    return 0xFFFF - (total % 0xFFFF or (0xFFFF if total else 0))


def ip_packet(source: bytes, target: bytes, protocol: int, payload: bytes) -> bytes:
    """An IPv4 packet of ours."""
    head = _IP.pack(0x45, 0, HEADER + len(payload), 0, 0x4000, _TTL, protocol, 0, source, target)
    return head[:_IP_SUM] + _SHORT.pack(checksum(head)) + head[_IP_SUM + 2 :] + payload


def tcp_reset(packet: bytes | memoryview) -> bytes | None:
    """What a host without such a connection answers (RFC 9293, 3.10.7.1); nothing to a reset."""
    source_port, target_port, number, acknowledged, offset, flags, *_ = _TCP_HEADER.unpack_from(
        packet, HEADER
    )
    if flags & RST:
        return None
    if flags & ACK:
        answer = (acknowledged, 0, RST)
    else:
        length = len(packet) - HEADER - (offset >> 4) * 4
        answer = (
            0,
            (number + max(0, length) + bool(flags & SYN) + bool(flags & FIN)) & 0xFFFFFFFF,
            RST | ACK,
        )
    head = _TCP_HEADER.pack(target_port, source_port, answer[0], answer[1], 5 << 4, answer[2], 0, 0, 0)
    source, target = bytes(packet[16:20]), bytes(packet[12:16])
    return ip_packet(source, target, TCP, _summed(source, target, TCP, head, 16))


def udp_payload(packet: bytes | memoryview) -> bytes | None:
    """What an unfragmented UDP packet carries; None where its length is not right."""
    if len(packet) < HEADER + 8:
        return None
    length = _SHORT.unpack_from(packet, HEADER + 4)[0]
    if not 8 <= length <= len(packet) - HEADER:
        return None
    return bytes(packet[HEADER + 8 : HEADER + length])


def udp_answer(packet: bytes | memoryview, payload: bytes) -> bytes:
    """A UDP packet back to where `packet` came from, from where it went."""
    source, target = bytes(packet[16:20]), bytes(packet[12:16])
    ports = bytes(packet[HEADER + 2 : HEADER + 4]) + bytes(packet[HEADER : HEADER + 2])
    datagram = ports + struct.pack(">HH", 8 + len(payload), 0) + payload
    return ip_packet(source, target, UDP, _summed(source, target, UDP, datagram, 6))


def unreachable(packet: bytes | memoryview, source: bytes, code: int) -> bytes | None:
    """ICMP's word that a packet was not delivered.

    None about ICMP's own errors, multicast and all fragments but the first (RFC 1122), nor about what is cut off.
    """
    size = (packet[0] & 15) * 4
    if size < HEADER or len(packet) < size or packet[16] >= 224 or _SHORT.unpack_from(packet, 6)[0] & 0x1FFF:
        return None
    if packet[9] == ICMP and (len(packet) == size or packet[size] in _ICMP_ERRORS):
        return None
    text = struct.pack(">BBHI", 3, code, 0, 0) + bytes(packet[: size + 8])
    return ip_packet(source, bytes(packet[12:16]), ICMP, text[:2] + _SHORT.pack(checksum(text)) + text[4:])


def echo_reply(packet: bytes | memoryview) -> bytes | None:
    """The answer to a ping; None where it is none."""
    if len(packet) < HEADER + 8 or packet[9] != ICMP or packet[HEADER] != 8:
        return None
    text = b"\0\0\0\0" + bytes(packet[HEADER + 4 :])
    text = text[:2] + _SHORT.pack(checksum(text)) + text[4:]
    return ip_packet(bytes(packet[16:20]), bytes(packet[12:16]), ICMP, text)


def unreachable6(packet: bytes | memoryview) -> bytes | None:
    """ICMPv6's word that IPv6 goes nowhere (RFC 4443, 3.1); nothing about errors and multicast.

    No route; but to UDP that there is nobody at the port, for Linux tells no program the other.
    """
    if len(packet) < 40 or packet[24] == 0xFF or (packet[6] == ICMPV6 and bytes(packet[40:41]) < b"\x80"):
        return None
    source, target = bytes(packet[24:40]), bytes(packet[8:24])
    # A minimal MTU of 1280 bounds how much of the packet comes back.
    code = _NOBODY6 if packet[6] == UDP else _NO_ROUTE6
    text = struct.pack(">BBHI", 1, code, 0, 0) + bytes(packet[: 1280 - 48])
    pseudo = source + target + struct.pack(">II", len(text), ICMPV6)
    text = text[:2] + _SHORT.pack(checksum(pseudo + text)) + text[4:]
    return struct.pack(">IHBB", 6 << 28, len(text), ICMPV6, _TTL) + source + target + text


def _summed(source: bytes, target: bytes, protocol: int, text: bytes, place: int) -> bytes:
    """`text` with its checksum, over the pseudo-header too, at `place`."""
    pseudo = source + target + struct.pack(">HH", protocol, len(text))
    # 0 would say that there is none, in UDP (RFC 768); in TCP both are the same.
    return text[:place] + _SHORT.pack(checksum(pseudo + text) or 0xFFFF) + text[place + 2 :]


def _sum(data: bytes | memoryview) -> int:
    # A number in base 65536 has the same remainder modulo 65535 as the sum of its digits.
    return int.from_bytes(bytes(data) + b"\0" * (len(data) % 2), "big")
