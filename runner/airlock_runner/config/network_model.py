"""The schema of `[network]`. Patterns and addresses are read by `airlock_runner.net`, imported where there are any."""

from __future__ import annotations

import os
from dataclasses import MISSING, dataclass, field
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from airlock_store.schema import Elements
from airlock_store.settings import NO_WAY_UP, check_name, enabled, parse_path, setting

if TYPE_CHECKING:
    from collections.abc import Mapping

MAX_PATTERNS, MAX_PORTS = 10_000, 256
PORT = {"type": "integer", "minimum": 1, "maximum": 65535}
_PORT = r"(?!0+(?::|$))(?:[0-5]?[0-9]{1,4}|6[0-4][0-9]{3}|65[0-4][0-9]{2}|655[0-2][0-9]|6553[0-5])"
PORTS_SCHEMA = {
    "type": "array",
    "title": 'array of ports and "HOST:GUEST"',
    "items": {"anyOf": [PORT, {"type": "string", "title": '"HOST:GUEST"', "pattern": f"^{_PORT}:{_PORT}$"}]},
    "maxItems": MAX_PORTS,
}
PATTERNS_SCHEMA = {
    "type": "array",
    "items": {"type": "string", "title": "pattern", "minLength": 1, "maxLength": 300},
    "maxItems": MAX_PATTERNS,
}
MAX_SOCKET_PATH = 107
"""Bytes of a path that a Unix socket can be bound to on Linux: sun_path of unix(7), and a NUL."""
SOCKET_RESERVED = ("proc", "sys", "airlock")
"""Unlike for mounts, /dev is not among them: syslog's socket is /dev/log."""
_HOST = r"(?!(?:[^:\x00]*/)?\.\.(?:/|:|$))~?/[^:\x00]*[^:/\x00]"
_GUEST = (
    rf"{NO_WAY_UP}(?:~/(?:\.?/)*|/(?:\.?/)*(?!(?:{'|'.join(SOCKET_RESERVED)})(?:/|$)))"
    r"(?!\.?(?:/|$))[^\x00]*[^/\x00]"
)
SOCKET_SCHEMA = {
    "type": "string",
    "title": '"HOST" or "HOST:GUEST"',
    "pattern": rf"^(?:{_HOST}:{_GUEST}|(?![^\x00]*:){_GUEST})$",
}


class PortPair(NamedTuple):
    """A port of the host's loopback and one of the guest's."""

    host: int
    guest: int


class SocketPair(NamedTuple):
    """Path of a Unix socket on the host, and where the guest has it; either may begin with `~/`."""

    host: str
    guest: str


def parse_port_pair(value: object) -> PortPair:
    """A port, the same on both sides, or two as "HOST:GUEST". Raises ValueError."""
    if isinstance(value, int) and not isinstance(value, bool):
        return PortPair(_port(value), _port(value))
    if not isinstance(value, str):
        raise ValueError('expected a port, or two as in "9000:3000"')
    host, colon, guest = value.partition(":")
    if not colon or not all(each.isascii() and each.isdigit() and len(each) <= 5 for each in (host, guest)):
        raise ValueError(f'{value!r}: two ports are written "HOST:GUEST", such as "9000:3000"')
    return PortPair(_port(int(host)), _port(int(guest)))


def parse_socket_pair(value: object) -> SocketPair:
    """Paths of a socket, "HOST" for both sides or "HOST:GUEST", the latter normal. Raises ValueError."""
    host, colon, guest = parse_path(value).partition(":")
    _socket_path(host)
    return SocketPair(host, _guest_socket(guest if colon else host))


def check_pattern(value: object) -> str:
    """A pattern of destinations, as it is written. Raises ValueError."""
    from airlock_runner.net.patterns import parse_pattern

    if not isinstance(value, str):
        raise ValueError("expected a string")
    parse_pattern(value)
    return value


def check_host(name: str, addresses: str | tuple[str, ...]) -> None:
    """Raise ValueError unless `name` is a host name and `addresses` are addresses."""
    from airlock_runner.net.addresses import number_address, parse_address
    from airlock_runner.net.names import canonical

    if not addresses:
        raise ValueError(f"{name!r} has no address")
    if ":" in name or number_address(canonical(name)) is not None:
        raise ValueError(f"{name!r} is an address, not a name")
    for address in (addresses,) if isinstance(addresses, str) else addresses:
        parse_address(address)


def _port(number: int) -> int:
    if not 1 <= number <= 65535:
        raise ValueError(f"{number} is not a port, 1 to 65535")
    return number


def _socket_path(path: str) -> None:
    parse_path(path)
    if not path.startswith(("/", "~/")) or path.endswith("/") or ".." in path.split("/"):
        raise ValueError(f"{path!r} is not the path of a socket: absolute or below '~/', without '..'")


def _guest_socket(path: str) -> str:
    """Where in the sandbox a socket can be, as far as the host can tell."""
    _socket_path(path)
    first, *parts = (part for index, part in enumerate(path.split("/")) if not index or part not in ("", "."))
    if not parts or (not first and parts[0] in SOCKET_RESERVED):
        raise ValueError(f"no socket can be at {path!r} in the sandbox; one at '/run/NAME.sock' can")
    normal = "/".join((first, *parts))
    # The home is not known here: it may be as short as "/".
    if (length := len(os.fsencode(normal.removeprefix("~")))) > MAX_SOCKET_PATH:
        raise ValueError(
            f"{path!r}: the path of a socket in the sandbox has at most {MAX_SOCKET_PATH} bytes, this has {length}; "
            'another is written right of the host\'s, as in "HOST:/run/NAME.sock"'
        )
    return normal


def _named() -> Any:
    return field(default_factory=dict, metadata={"names": check_name})


@dataclass(frozen=True, slots=True)
class RuleConfig:
    """What may be reached and what not. A destination that is both is denied."""

    allow: tuple[str, ...] = setting(
        "patterns of what may be reached",
        default=(),
        unset="none",
        elements=Elements(check_pattern, most=MAX_PATTERNS),
        schema=PATTERNS_SCHEMA,
    )
    deny: tuple[str, ...] = setting(
        "patterns of what may not",
        default=(),
        unset="none",
        elements=Elements(check_pattern, most=MAX_PATTERNS),
        schema=PATTERNS_SCHEMA,
    )
    enabled: bool = enabled()


@dataclass(frozen=True, slots=True)
class PortsConfig:
    """Ports of one side's loopback that lead to the other's. The left number is always the host's."""

    host: tuple[PortPair, ...] = setting(
        "ports of the host that the sandbox reaches at its own localhost",
        default=(), unset="none", elements=Elements(parse_port_pair, most=MAX_PORTS), schema=PORTS_SCHEMA,
    )  # fmt: skip
    guest: tuple[PortPair, ...] = setting(
        "ports of the sandbox that the host reaches at 127.0.0.1",
        default=(), unset="none", elements=Elements(parse_port_pair, most=MAX_PORTS), schema=PORTS_SCHEMA,
    )  # fmt: skip
    enabled: bool = enabled()


@dataclass(frozen=True, slots=True)
class SocketConfig:
    """A Unix socket of the host that appears in the sandbox."""

    host: SocketPair = setting(  # noqa: RUF009
        "its path, or that on the host and that in the sandbox; `~` is the home of each side's user",
        unset="required", default=MISSING, parse=parse_socket_pair, schema=SOCKET_SCHEMA,
    )  # fmt: skip
    enabled: bool = enabled()


@dataclass(frozen=True, slots=True)
class NetworkConfig:
    """What the sandbox may reach."""

    policy: Literal["allow-always", "deny-always", "allow-by-default", "deny-by-default"] = setting(
        "what holds for a destination that no rule names",
        default="allow-by-default",
        unset="allow-by-default",
    )
    denied_names: Literal["resolve", "nxdomain"] = setting(
        "what DNS says to a name that is denied: an address that refuses, or that there is none",
        default="resolve", unset="resolve",
    )  # fmt: skip
    rules: Mapping[str, RuleConfig] = _named()
    hosts: Mapping[str, str | tuple[str, ...]] = field(
        default_factory=dict,
        metadata={
            "each": check_host,
            "schema": {
                "type": "object",
                "additionalProperties": {
                    "title": "address or array of addresses",
                    "anyOf": [
                        {"type": "string", "minLength": 1},
                        {"type": "array", "items": {"type": "string"}, "minItems": 1},
                    ],
                    "description": "its address or addresses; like a line of /etc/hosts",
                },
            },
        },
    )
    ports: Mapping[str, PortsConfig] = _named()
    sockets: Mapping[str, SocketConfig] = _named()
