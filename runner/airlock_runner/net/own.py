"""Whether an address is this host's. The kernel is asked, about each connection anew: addresses come and go."""

from __future__ import annotations

import errno
import os
import socket
import struct
import sys
from typing import TYPE_CHECKING

from airlock_runner.net.addresses import parse_address

if TYPE_CHECKING:
    from airlock_runner.net.addresses import Address

_NOWHERE = (errno.ENETUNREACH, errno.EHOSTUNREACH, errno.ENETDOWN, errno.EAFNOSUPPORT)
"""What says that there is no way to an address. Dialling it would say so too."""

_NOT_ASKED = (errno.EAFNOSUPPORT, errno.EPROTONOSUPPORT, errno.EPERM, errno.EACCES)
"""What whoever runs airlock in a container may have put before the kernel's answer."""

# linux/netlink.h, linux/rtnetlink.h
_QUERY = struct.Struct("=IHHII 8BI HH")
"""struct nlmsghdr, struct rtmsg, struct rtattr."""
_ERROR, _NEW_ROUTE, _GET_ROUTE, _REQUEST, _DESTINATION = 2, 24, 26, 1, 1
_OWN = (2, 3, 4)
"""Types of routes: RTN_LOCAL, RTN_BROADCAST, RTN_ANYCAST."""


def is_own(address: Address) -> bool:
    """Whether it is one of this host's addresses, or that cannot be told. Sends nothing on a network."""
    try:
        kind = _route_kind(address) if sys.platform == "linux" else None
        return _is_its_source(address) if kind is None else kind in _OWN
    except OSError as error:
        return error.errno not in _NOWHERE


def _route_kind(address: Address) -> int | None:
    """The type of the route that the kernel has for it; None where it cannot be asked. Raises OSError."""
    family = socket.AF_INET if address.version == 4 else socket.AF_INET6
    packed = address.packed
    head = _QUERY.pack(
        _QUERY.size + len(packed), _GET_ROUTE, _REQUEST, 1, 0,
        family, address.max_prefixlen, 0, 0, 0, 0, 0, 0, 0,
        4 + len(packed), _DESTINATION,
    )  # fmt: skip
    try:
        kernel = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE)
    except OSError as error:
        if error.errno in _NOT_ASKED:
            return None
        raise
    with kernel:
        kernel.send(head + packed)
        # The answer is there by now.
        answer = kernel.recv(8192, socket.MSG_DONTWAIT)
    kind: int = struct.unpack_from("=H", answer, 4)[0]
    if kind == _NEW_ROUTE:
        return answer[16 + 7]
    number: int = -struct.unpack_from("=i", answer, 16)[0] if kind == _ERROR else errno.EPROTO
    if number == errno.EOPNOTSUPP:
        # A kernel without this family, or one that is not Linux's own.
        return None
    raise OSError(number, os.strerror(number))


def _is_its_source(address: Address) -> bool:
    """Whether the kernel would send to it from itself. Of several addresses in one network, that is the first alone."""
    family = socket.AF_INET if address.version == 4 else socket.AF_INET6
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        probe.connect((str(address), 9))
        return parse_address(probe.getsockname()[0]) == address
