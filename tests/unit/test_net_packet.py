"""Packets: checksums against recomputed ones, and the answers of airlock0, read back by hand."""

from __future__ import annotations

import socket
import struct

from hypothesis import given
from hypothesis import strategies as st

from airlock_runner.net import packet


def reference(data: bytes) -> int:
    """RFC 1071 by the book: add 16-bit words, fold the carries."""
    total = sum(struct.unpack(f">{len(data + bytes(len(data) % 2)) // 2}H", data + bytes(len(data) % 2)))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return total


def tcp(tuple_: bytes, flags: int = packet.SYN, payload: bytes = b"", number: int = 7) -> bytes:
    """A TCP packet with right sums."""
    text = tuple_[8:] + struct.pack(">IIBBHHH", number, 9, 5 << 4, flags, 1000, 0, 0) + payload
    pseudo = tuple_[:8] + struct.pack(">HH", packet.TCP, len(text))
    text = text[:16] + struct.pack(">H", 0xFFFF - reference(pseudo + text)) + text[18:]
    return packet.ip_packet(tuple_[:4], tuple_[4:8], packet.TCP, text)


def is_right(data: bytes) -> bool:
    """Whether both of its sums are."""
    pseudo = data[12:20] + struct.pack(">HH", data[9], len(data) - 20)
    return reference(data[:20]) == 0xFFFF and reference(pseudo + data[20:]) == 0xFFFF


@given(st.binary(max_size=300))
def test_checksum(data: bytes) -> None:
    assert packet.checksum(data) == 0xFFFF - reference(data)


TUPLE = bytes((192, 168, 77, 1, 93, 184, 216, 34)) + struct.pack(">HH", 40000, 443)


def test_reset_of_a_syn() -> None:
    """RST with an ACK of the SYN, so that the program sees ECONNREFUSED."""
    answer = packet.tcp_reset(tcp(TUPLE, packet.SYN, number=0xFFFFFFFF))
    assert answer is not None
    assert is_right(answer)
    assert packet.tuple_of(answer) == TUPLE[4:8] + TUPLE[:4] + TUPLE[10:12] + TUPLE[8:10]
    number, acknowledged, _, flags = struct.unpack_from(">IIBB", answer, 24)
    assert (number, acknowledged, flags) == (0, 0, packet.RST | packet.ACK)


def test_reset_of_what_came_late() -> None:
    answer = packet.tcp_reset(tcp(TUPLE, packet.ACK, b"data"))
    assert answer is not None
    assert struct.unpack_from(">IIBB", answer, 24) == (9, 0, 5 << 4, packet.RST)
    assert packet.tcp_reset(tcp(TUPLE, packet.RST)) is None


def udp(payload: bytes, port: int = 53) -> bytes:
    text = struct.pack(">HHHH", 5000, port, 8 + len(payload), 0) + payload
    return packet.ip_packet(TUPLE[:4], TUPLE[4:8], packet.UDP, text)


def test_udp() -> None:
    query = udp(b"query")
    assert packet.udp_payload(query) == b"query"
    answer = packet.udp_answer(query, b"answer!")
    assert is_right(answer)
    assert (answer[12:16], answer[16:20]) == (query[16:20], query[12:16])
    assert struct.unpack_from(">HH", answer, 20) == (53, 5000)
    assert packet.udp_payload(answer) == b"answer!"
    for wrong in (query[:27], query[:24] + b"\0\7" + query[26:], query[:24] + b"\xff\0" + query[26:]):
        assert packet.udp_payload(wrong) is None


def test_unreachable_carries_what_it_is_about() -> None:
    query = udp(b"x" * 100, 443)
    answer = packet.unreachable(query, b"\xc0\xa8\x4d\2", packet.PORT_UNREACHABLE)
    assert answer is not None
    assert reference(answer[:20]) == reference(answer[20:]) == 0xFFFF
    assert (answer[9], answer[20], answer[21], answer[28:]) == (packet.ICMP, 3, 3, query[:28])


def test_unreachable_is_silent_where_it_must_be() -> None:
    """About errors, multicast and later fragments (RFC 1122, 3.2.2)."""
    error = packet.unreachable(udp(b""), b"\1\1\1\1", 3)
    assert error is not None
    multicast = packet.ip_packet(TUPLE[:4], bytes((224, 0, 0, 251)), packet.UDP, bytes(8))
    fragment = bytearray(udp(b"x"))
    fragment[6:8] = b"\0\1"
    for data in (error, multicast, bytes(fragment)):
        assert packet.unreachable(data, b"\1\1\1\1", 3) is None


def test_ping() -> None:
    text = b"\x08\0\0\0\0\1\0\2hello"
    ping = packet.ip_packet(TUPLE[:4], TUPLE[4:8], packet.ICMP, text)
    answer = packet.echo_reply(ping)
    assert answer is not None
    assert reference(answer[20:]) == 0xFFFF
    assert (answer[20], answer[24:]) == (0, text[4:])
    assert packet.echo_reply(answer) is None


def test_ipv6_goes_nowhere() -> None:
    source, target = b"\xfd" + bytes(15), b"\x20\1" + bytes(14)
    data = struct.pack(">IHBB", 6 << 28, 8, packet.UDP, 64) + source + target + bytes(8)
    answer = packet.unreachable6(data)
    assert answer is not None
    # Linux tells a UDP program of nobody at the port, but not of no route.
    assert (answer[8:24], answer[24:40], answer[40:42], answer[48:]) == (target, source, b"\1\4", data)
    tcp = packet.unreachable6(data[:6] + bytes((packet.TCP,)) + data[7:])
    assert tcp is not None
    assert tcp[40:42] == b"\1\0"
    pseudo = target + source + struct.pack(">II", len(answer) - 40, packet.ICMPV6)
    assert reference(pseudo + answer[40:]) == 0xFFFF
    assert packet.unreachable6(answer) is None
    assert packet.unreachable6(data[:24] + b"\xff\2" + data[26:]) is None


@given(st.binary(max_size=120))
def test_hostile_packets_raise_nothing(data: bytes) -> None:
    """Everything that airlock0.py does with a packet, it does with any bytes from the length of a header on."""
    data += bytes(packet.HEADER)
    packet.unreachable(data, bytes(4), 3) if len(data) > packet.HEADER else None
    packet.unreachable6(data)
    packet.udp_payload(data)
    packet.echo_reply(data)
    if len(data) >= 2 * packet.HEADER and packet.is_plain(data):
        packet.is_whole_tcp(data)
        packet.tcp_reset(data)


HOST, FAR = socket.inet_aton("192.168.77.1"), socket.inet_aton("192.0.2.1")


def test_where_any_packet_was_going() -> None:
    far6 = socket.inet_pton(socket.AF_INET6, "2001:db8::1")
    six = struct.pack(">IHBB", 6 << 28, 8, packet.UDP, 64) + bytes(16) + far6
    options = b"\x46" + bytes(8) + b"\x11" + bytes(6) + HOST + bytes(4) + struct.pack(">HH", 1, 2)
    icmp = packet.ip_packet(HOST, HOST, packet.ICMP, bytes(8))
    assert packet.destination(
        packet.ip_packet(HOST, FAR, packet.UDP, struct.pack(">4H", 5000, 443, 8, 0))
    ) == (17, FAR, 443)
    assert packet.destination(six + struct.pack(">4H", 1, 443, 8, 0)) == (17, far6, 443)
    assert packet.destination(six) == (17, far6, None)
    assert packet.destination(options) == (17, HOST, 2)
    assert packet.destination(icmp) == (1, HOST, None)
