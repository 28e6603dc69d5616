"""From `[network]` to what a start needs: forwarded ports, bound, and sockets; clashes are told.

The session calls `settle` before the machine starts. It imports little: most sandboxes have no `[network]` at all.
"""

from __future__ import annotations

import errno
import os
import socket
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from airlock_runner.borders import entry
from airlock_runner.config import place_of
from airlock_runner.sockets import is_socket_at
from airlock_store.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Container, Iterable, Mapping

    from airlock_runner.config.network_model import NetworkConfig

LOOPBACK = "127.0.0.1"
BACKLOG = 128
UNPRIVILEGED = 1024
POWERFUL = ("docker.sock", "podman.sock", "containerd.sock", "crio.sock", "libvirt-sock")
"""Names of sockets, on either side, whose servers do anything for whoever reaches them, as root or nearly."""
POWER = "whoever reaches its server from the sandbox has this host, as root or nearly"


@dataclass(frozen=True, slots=True)
class ToHost:
    """A port of the guest's localhost that leads to one of the host's. `group` asked for it."""

    guest: int
    host: int
    group: str


@dataclass(frozen=True, slots=True)
class ToGuest:
    """A bound and listening socket of 127.0.0.1 whose connections go to a port of the guest's localhost."""

    listener: socket.socket
    host: int
    guest: int
    group: str


@dataclass(frozen=True, slots=True)
class HostSocket:
    """A Unix socket of the host. `guarded`: the real directory above it that the sandbox can write to, if any."""

    name: str
    path: Path
    guest: str
    guarded: Path | None

    @property
    def is_there(self) -> bool:
        """Whether there is a socket at its path that can be seen from here."""
        return is_socket_at(self.path, self.guarded)


@dataclass(frozen=True, slots=True)
class Settled:
    """All that a start needs of the network. `close` releases the listeners."""

    config: NetworkConfig
    to_host: Mapping[int, ToHost]
    to_guest: tuple[ToGuest, ...]
    sockets: Mapping[str, HostSocket]
    warnings: tuple[str, ...]

    @property
    def powerful(self) -> str:
        """The forwarded sockets that amount to the host itself, in words."""
        found = [
            each
            for each in self.sockets.values()
            if each.path.name in POWERFUL or os.path.basename(each.guest) in POWERFUL
        ]
        return ", ".join(f"forwarded socket {each.name} ({each.path})" for each in found)

    def listen_call(self) -> dict[str, Any] | None:
        """The arguments of airlockd's `listen`, or None where it has nothing to do."""
        if not self.to_host and not self.sockets:
            return None
        return {
            "ports": sorted(self.to_host),
            "sockets": [
                {"name": each.name, "path": each.guest, "up": each.is_there} for each in self.sockets.values()
            ],
        }

    def keys_of(self, refused: Mapping[str, Any]) -> tuple[str, ...]:
        """The keys in the config of the `socket` or `port` at which airlockd says that it cannot listen."""
        name, port = refused.get("socket"), refused.get("port")
        if isinstance(name, str) and name in self.sockets:
            return ("network", "sockets", name, "host")
        if isinstance(port, int) and port in self.to_host:
            return ("network", "ports", self.to_host[port].group, "host")
        return ()

    def close(self) -> None:
        """Release the ports."""
        for each in self.to_guest:
            each.listener.close()


def settle(config: NetworkConfig, root: Path, writable: Iterable[Path] = ()) -> Settled:
    """The network of the project at `root`; `writable` are the host's directories that the sandbox can write to.

    Raises ConfigError with the place of every port that is asked for twice, or that somebody else has.
    """
    problems: list[ConfigError] = []
    to_host = _to_host(config, root, problems)
    wanted = _to_guest(config, root, to_host, problems)
    sockets, warnings = _sockets(config, root, tuple(writable), problems)
    bound: list[ToGuest] = []
    asked = {pair.host for ports in config.ports.values() for pair in ports.guest}
    for each in wanted:
        try:
            bound.append(ToGuest(_listen(each[0]), *each))
        except OSError as error:
            problems.append(_refusal(each, error, asked, root))
    if problems:
        for taken in bound:
            taken.listener.close()
        raise ConfigError.of(problems)
    return Settled(config, to_host, tuple(bound), sockets, tuple(warnings))


def _to_host(config: NetworkConfig, root: Path, problems: list[ConfigError]) -> dict[int, ToHost]:
    found: dict[int, ToHost] = {}
    for group, ports in config.ports.items():
        for pair in ports.host:
            other = found.get(pair.guest)
            if other is not None:
                problems.append(_clash(f"the sandbox's port {pair.guest}", group, "host", other.group, root))
                continue
            found[pair.guest] = ToHost(pair.guest, pair.host, group)
    return found


def _to_guest(
    config: NetworkConfig, root: Path, to_host: Mapping[int, ToHost], problems: list[ConfigError]
) -> list[tuple[int, int, str]]:
    """Host's port, sandbox's port and group of all that clash with nothing."""
    asked: dict[int, str] = {}
    wanted = []
    dialled = {each.host: each.group for each in to_host.values()}
    for group, ports in config.ports.items():
        for pair in ports.guest:
            # A port that leads to the other side and back again would go round in a circle.
            clashes = [
                _clash(what, group, "guest", other, root)
                for what, other in (
                    (f"port {pair.host} of {LOOPBACK}", asked.get(pair.host) or dialled.get(pair.host)),
                    (f"the sandbox's port {pair.guest}", getattr(to_host.get(pair.guest), "group", None)),
                )
                if other is not None
            ]
            problems += clashes
            asked.setdefault(pair.host, group)
            if not clashes:
                wanted.append((pair.host, pair.guest, group))
    return wanted


def _clash(what: str, group: str, key: str, other: str, root: Path) -> ConfigError:
    who = f"[network.ports.{group}] asks for it a second time"
    if other != group:
        who = f"[network.ports.{other}] and [network.ports.{group}] both ask for it"
    return ConfigError(f"{what} is used twice: {who}", at=place_of(root, "network", "ports", group, key))


def _listen(port: int) -> socket.socket:
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((LOOPBACK, port))
        listener.listen(BACKLOG)
    except OSError:
        listener.close()
        raise
    listener.setblocking(False)
    return listener


def _refusal(wanted: tuple[int, int, str], error: OSError, asked: Container[int], root: Path) -> ConfigError:
    """What to tell of a port that cannot be had; `asked` are those that the config wants besides."""
    port, guest, group = wanted
    taken = error.errno == errno.EADDRINUSE
    why = "is in use by another program" if taken else f"cannot be used: {error.strerror}"
    other = _free_port(port, asked)
    return ConfigError(
        f"port {port} of {LOOPBACK}, which [network.ports.{group}] asks for, {why}",
        hint=f'another host port is written left of the sandbox\'s: "{other}:{guest}"' if other else None,
        at=place_of(root, "network", "ports", group, "guest"),
    )


def _free_port(near: int, asked: Container[int]) -> int | None:
    """A port that anybody may listen at and nobody does: one a little higher, 80 as 8080, or else any."""
    first = near + 1 if near >= UNPRIVILEGED else near + 8000
    for port in (*range(first, min(first + 100, 65536)), 0):
        if port in asked:
            continue
        try:
            listener = _listen(port)
        except OSError:
            continue
        with listener:
            return int(listener.getsockname()[1])
    return None


def _sockets(
    config: NetworkConfig, root: Path, writable: tuple[Path, ...], problems: list[ConfigError]
) -> tuple[dict[str, HostSocket], list[str]]:
    found: dict[str, HostSocket] = {}
    warnings = []
    places: dict[str, str] = {}
    for name, each in config.sockets.items():
        path = Path(os.path.normpath(os.path.expanduser(each.host.host)))
        guest = each.host.guest
        if guest in places:
            problems.append(
                ConfigError(
                    f"{guest} is also the place of socket {places[guest]}",
                    at=place_of(root, "network", "sockets", name),
                )
            )
            continue
        places[guest] = name
        guarded, path = entry(path, writable) or (None, path)
        found[name] = here = HostSocket(name, path, guest, guarded)
        if not here.is_there:
            what = "is no socket" if os.path.lexists(path) else "is not there"
            warnings.append(f"socket {name}: {path} {what}; it works as soon as it is one")
    return found, warnings
