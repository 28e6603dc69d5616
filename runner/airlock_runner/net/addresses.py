"""IP addresses: as text from configs and guests, and which of them are internal. Pure; the policy calls it."""

from __future__ import annotations

import ipaddress
import re

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network

_NUMBER = re.compile(r"[0-9]+|0x[0-9a-f]*", re.IGNORECASE | re.ASCII)

_INTERNAL_4 = [
    (ipaddress.IPv4Network(text), kind)
    for text, kind in (
        ("0.0.0.0/8", "this host"),
        ("10.0.0.0/8", "private"),
        ("100.64.0.0/10", "carrier-grade NAT"),
        ("127.0.0.0/8", "loopback"),
        ("168.63.129.16/32", "cloud metadata"),
        ("169.254.0.0/16", "link-local"),
        ("172.16.0.0/12", "private"),
        ("192.0.0.0/24", "protocol assignment"),
        ("192.88.99.0/24", "6to4 relay"),
        ("192.168.0.0/16", "private"),
        ("224.0.0.0/4", "multicast"),
        ("240.0.0.0/4", "reserved"),
    )
]
"""From IANA's special-purpose registry for IPv4, and Azure's metadata server, which has a public address.

Left out is what is set aside for documentation and benchmarks: there are machines whose whole internet is there.
"""

_GLOBAL_6 = ipaddress.IPv6Network("2000::/3")
_INTERNAL_6 = [
    (ipaddress.IPv6Network(text), kind)
    for text, kind in (
        ("::1/128", "loopback"),
        ("::/128", "this host"),
        ("fe80::/10", "link-local"),
        ("fc00::/7", "unique local"),
        ("fec0::/10", "site-local"),
        ("ff00::/8", "multicast"),
        # What carries an IPv4 address inside could lead to any of the above.
        ("64:ff9b::/96", "IPv4 in IPv6"),
        ("64:ff9b:1::/48", "IPv4 in IPv6"),
        ("2001::/32", "IPv4 in IPv6"),
        ("2002::/16", "IPv4 in IPv6"),
        ("2001::/23", "protocol assignment"),
    )
]
"""From IANA's special-purpose registry for IPv6; outside 2000::/3 nothing is given to anybody yet."""


def parse_address(text: str) -> Address:
    """The address in `text`; an IPv4 address inside an IPv6 one (::ffff:1.2.3.4) counts as itself.

    Raises ValueError, also for an address with a scope (fe80::1%eth0).
    """
    if "%" in text:
        raise ValueError(f"{text!r} has a scope")
    address = ipaddress.ip_address(text)
    return plain(address)


def plain(address: Address) -> Address:
    """An IPv4-mapped IPv6 address as what it stands for, any other as it is."""
    return getattr(address, "ipv4_mapped", None) or address


def parse_network(text: str) -> Network:
    """A network in CIDR notation, or an address as the network of that one. Raises ValueError."""
    if "%" in text:
        raise ValueError(f"{text!r} has a scope")
    if "/" not in text:
        address = parse_address(text)
        return ipaddress.ip_network((address, address.max_prefixlen))
    try:
        network = ipaddress.ip_network(text)
    except ValueError:
        wider = ipaddress.ip_network(text, strict=False)
        raise ValueError(f"{text!r} is an address in the network {wider}: write one of the two") from None
    mapped = getattr(network.network_address, "ipv4_mapped", None)
    if mapped is not None and network.prefixlen >= 96:
        return ipaddress.ip_network((mapped, network.prefixlen - 96))
    return network


def number_address(name: str) -> ipaddress.IPv4Address | None:
    """The address that a C library makes of a name such as 2130706433, 0x7f.1 or 0177.0.0.1; None for a real name.

    A name whose last label is a number never goes to DNS (WHATWG URL, "ends in a number"). Raises ValueError where it
    is no address either.
    """
    labels = name.split(".")
    if not _NUMBER.fullmatch(labels[-1]):
        return None
    if len(labels) > 4:
        raise ValueError(f"{name!r:.80} is neither a name nor an address")
    numbers = [_number(label, name) for label in labels]
    *leading, last = numbers
    if any(number > 255 for number in leading) or last >= 256 ** (5 - len(numbers)):
        raise ValueError(f"{name!r:.80} is neither a name nor an address")
    value = last
    for place, number in enumerate(leading):
        value |= number << (24 - 8 * place)
    return ipaddress.IPv4Address(value)


def internal(address: Address) -> str | None:
    """Which kind of internal address it is, in a word or two; None for one of the public internet."""
    address = plain(address)
    if isinstance(address, ipaddress.IPv4Address):
        return next((kind for network, kind in _INTERNAL_4 if address in network), None)
    kind = next((kind for network, kind in _INTERNAL_6 if address in network), None)
    return kind or (None if address in _GLOBAL_6 else "reserved")


def _number(label: str, name: str) -> int:
    base = 10
    if label[:2].lower() == "0x":
        label, base = label[2:], 16
    elif len(label) > 1 and label[0] == "0":
        base = 8
    # Longer ones, zeros in front or not, are nobody's way to write an address.
    if len(label) > 32:
        raise ValueError(f"{name!r:.80} is neither a name nor an address")
    try:
        return int(label, base)
    except ValueError:
        raise ValueError(f"{name!r:.80} is neither a name nor an address") from None
