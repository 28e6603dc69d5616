"""Patterns of rules: `host`, `*.suffix`, `*`, addresses and networks, each with a port or for all. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from airlock_runner.net.addresses import number_address, parse_network
from airlock_runner.net.names import canonical

if TYPE_CHECKING:
    from airlock_runner.net.addresses import Address, Network

NARROW = {4: 8, 6: 7}
"""Bits from which on a network counts as naming what is in it: 10.0.0.0/8 and fc00::/7 do, 0.0.0.0/0 does not."""


@dataclass(frozen=True, slots=True)
class Pattern:
    """`text` as it was written. One of `name`, `suffix` (with its leading dot), `network` is set, or none for `*`."""

    text: str
    name: str | None = None
    suffix: str | None = None
    network: Network | None = None
    port: int | None = None

    def takes_port(self, port: int) -> bool:
        """Whether it is about that port."""
        return self.port is None or self.port == port

    def matches_name(self, name: str) -> bool:
        """Whether it is about this name (in its one form), on some port."""
        if self.name is not None:
            return name == self.name
        if self.suffix is not None:
            return name.endswith(self.suffix)
        return self.network is None

    def matches_address(self, address: Address) -> bool:
        """Whether it is about this address, on some port."""
        if self.network is not None:
            return address.version == self.network.version and address in self.network
        return self.name is None and self.suffix is None

    @property
    def explicit(self) -> bool:
        """Whether it names what it matches, so that it opens internal addresses too."""
        if self.network is not None:
            return self.network.prefixlen >= NARROW[self.network.version]
        return self.name is not None


def parse_pattern(text: str) -> Pattern:
    """The pattern in `text`. Raises ValueError with what is wrong."""
    host, port = _split(text)
    if host == "*":
        return Pattern(text, port=port)
    if host.startswith("*."):
        suffix = canonical(host[2:])
        if _is_number(suffix):
            raise ValueError(f"{text!r}: write addresses as a network, such as 10.0.0.0/8")
        return Pattern(text, suffix=f".{suffix}", port=port)
    if "*" in host:
        raise ValueError(f"{text!r}: '*' stands alone or for the first labels, as in '*.example.com'")
    if ":" in host or "/" in host:
        return Pattern(text, network=parse_network(host), port=port)
    name = canonical(host)
    if not _is_number(name):
        return Pattern(text, name=name, port=port)
    address = number_address(name)
    if name != str(address):
        raise ValueError(f"{text!r}: write this address as {address}")
    return Pattern(text, network=parse_network(name), port=port)


def _split(text: str) -> tuple[str, int | None]:
    """Host and port of `host:port`, `[v6]:port` or a host alone."""
    if not text or len(text) > 300:
        raise ValueError("a pattern has 1 to 300 characters")
    if text.startswith("["):
        host, closed, rest = text[1:].partition("]")
        if not closed or ":" not in host or (rest and not rest.startswith(":")):
            raise ValueError(f"{text!r}: an IPv6 address with a port is written [address]:port")
        return host, _port(rest[1:], text) if rest else None
    if text.count(":") > 1:
        return text, None
    host, colon, port = text.partition(":")
    return host, _port(port, text) if colon else None


def _port(digits: str, text: str) -> int:
    if not (digits.isascii() and digits.isdigit() and len(digits) <= 5 and 1 <= int(digits) <= 65535):
        raise ValueError(f"{text!r}: {digits!r} is not a port, 1 to 65535")
    return int(digits)


def _is_number(name: str) -> bool:
    return number_address(name) is not None
