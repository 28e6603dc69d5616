"""Packets as bytes: what is in them, checksums, and the answers that airlock0 gives by itself.

Pure. Packets are IPv4 without options unless said; sources: RFC 791, 792, 1071, 4443, 9293.
"""

from __future__ import annotations

import struct

TCP, UDP, ICMP, ICMPV6, SCTP = 6, 17, 1, 58, 132
FIN, SYN, RST, PSH, ACK = 0x01, 0x02, 0x04, 0x08, 0x10
NET_UNREACHABLE, HOST_UNREACHABLE, PROTOCOL_UNREACHABLE, PORT_UNREACHABLE, PROHIBITED = 0, 1, 2, 3, 13
"""Codes of ICMP's `destination unreachable`."""
GATEWAY, RESOLVER = bytes((192, 168, 77, 2)), bytes((10, 0, 0, 1))
"""The addresses that are airlock's own: the next hop of airlock0, and the name server of resolv.conf."""
HEADER = 20
"""Bytes of an IPv4 header without options, and where the transport's header starts."""
_ICMP_ERRORS = (3, 4, 5, 11, 12)
_NO_ROUTE6, _NOBODY6 = 0, 4
"""Codes of ICMPv6's `destination unreachable`."""
_TTL = 64
_TUPLE = slice(12, 24)
_IP_SUM, _FLAGS = 10, HEADER + 13
_SHORT = struct.Struct(">H")
_IP = struct.Struct(">BBHHHBBH4s4s")
_TCP_HEADER = struct.Struct(">HHIIBBHHH")


def is_plain(packet: bytes | memoryview) -> bool:
    """Whether it is an unfragmented packet over IPv4 without options; at least HEADER bytes long."""
    return packet[0] == 0x45 and not _SHORT.unpack_from(packet, 6)[0] & 0x3FFF


def is_whole_tcp(packet: bytes | memoryview) -> bool:
    """Whether a plain packet of TCP that is long enough for both headers has the options that it says it has."""
    return 2 * HEADER <= HEADER + (packet[HEADER + 12] >> 4) * 4 <= len(packet)


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


def tcp_flags(packet: bytes | memoryview) -> int:
    """The flags of a TCP packet."""
    return packet[_FLAGS]


def tcp_number(packet: bytes | memoryview) -> int:
    """The sequence number of a TCP packet."""
    return int.from_bytes(packet[HEADER + 4 : HEADER + 8], "big")


def target_port(packet: bytes | memoryview) -> int:
    """The port that a plain packet of TCP or UDP goes to."""
    return int.from_bytes(packet[HEADER + 2 : HEADER + 4], "big")


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
