"""Which addresses count as the host's own: in a network namespace with some of each kind, and where it is unknown."""

from __future__ import annotations

import errno
import ipaddress
import json
import socket
import subprocess
import sys
from typing import Any, NoReturn

import pytest

from airlock_runner.net.own import is_own

NAMESPACE = """
ip link set lo up
ip tuntap add t0 mode tun
ip link set t0 up
ip address add 203.0.113.5/24 brd + dev t0
ip address add 203.0.113.6/24 dev t0
ip route add local 198.51.100.0/25 dev lo
ip route add 198.51.100.128/25 dev t0
ip route add unreachable 192.0.2.0/24
ip address add 2001:db8::1/64 dev t0 nodad
ip -6 route add local 2001:db8:1::/64 dev lo
ip -6 route add 2001:db8:2::/64 dev t0
ip -6 route add unreachable 2001:db8:3::/64
exec "$@"
"""
LOOK = """
import ipaddress, json, sys
from airlock_runner.net.own import is_own
print(json.dumps([each for each in sys.argv[1:] if is_own(ipaddress.ip_address(each))]))
"""
OWN = [
    "127.0.0.1", "203.0.113.5", "203.0.113.6", "203.0.113.255", "198.51.100.77",
    "2001:db8::1", "2001:db8:1::77",
]  # fmt: skip
OTHERS = [
    "203.0.113.7", "198.51.100.200", "192.0.2.1", "8.8.8.8",
    "2001:db8::2", "2001:db8:2::77", "2001:db8:3::1", "2606::1",
]  # fmt: skip


def test_every_way_in_which_an_address_is_the_hosts() -> None:
    """A second address of a network, which is nobody's source, and whole networks that are local."""
    done = subprocess.run(
        ["unshare", "--net", "--map-root-user", "sh", "-ec", NAMESPACE, "sh", sys.executable, "-c", LOOK,
         *OWN, *OTHERS],
        capture_output=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == OWN


@pytest.mark.parametrize("platform", [sys.platform, "darwin"])
def test_the_host_knows_its_own_addresses(monkeypatch: pytest.MonkeyPatch, platform: str) -> None:
    monkeypatch.setattr(sys, "platform", platform)
    assert is_own(ipaddress.ip_address("127.0.0.1"))
    assert not is_own(ipaddress.ip_address("192.0.2.1"))
    assert not is_own(ipaddress.ip_address("2001:db8::1"))


@pytest.mark.parametrize(("number", "others"), [(errno.EPERM, False), (errno.EMFILE, True)])
def test_where_the_kernel_may_not_be_asked_a_source_tells(
    monkeypatch: pytest.MonkeyPatch, number: int, others: bool
) -> None:
    """A container's filter may refuse the socket, and still there is a network."""
    real = socket.socket

    def no_netlink(family: int, *arguments: Any) -> socket.socket:
        if family == socket.AF_NETLINK:
            raise OSError(number, "no socket")
        return real(family, *arguments)

    monkeypatch.setattr(socket, "socket", no_netlink)
    assert is_own(ipaddress.ip_address("127.0.0.1"))
    assert is_own(ipaddress.ip_address("192.0.2.1")) is others


@pytest.mark.parametrize("platform", [sys.platform, "darwin"])
@pytest.mark.parametrize(
    ("number", "own"), [(errno.EMFILE, True), (errno.EACCES, True), (errno.EAFNOSUPPORT, False)]
)
def test_what_cannot_be_told_counts_as_own(
    monkeypatch: pytest.MonkeyPatch, platform: str, number: int, own: bool
) -> None:
    def no_socket(*_arguments: Any) -> NoReturn:
        raise OSError(number, "no socket")

    monkeypatch.setattr(sys, "platform", platform)
    monkeypatch.setattr(socket, "socket", no_socket)
    assert is_own(ipaddress.ip_address("192.0.2.1")) is own
