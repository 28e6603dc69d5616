"""The device airlock0 and the default route through it. process.py makes it, in the guest's own namespace.

Sources: tun(4), linux/if_tun.h, linux/virtio_net.h, netdevice(7), rtnetlink(7).
"""

from __future__ import annotations

import fcntl
import os
import socket
import struct

from airlockd.protocol.packets import MTU

NAME = "airlock0"
DEVICE, GATEWAY = bytes((192, 168, 77, 1)), bytes((192, 168, 77, 2))
QUEUE = 4096
"""Packets that wait to be read. The kernel's 500 are fewer than the connections that a program that is killed resets at
once, and a reset that is lost is never sent again."""
_STEERING = ("/proc/sys/net/core/rps_sock_flow_entries", f"/sys/class/net/{NAME}/queues/rx-0/rps_flow_cnt")
_STEERED = "4096"
"""Connections, more or less, of which is known where they are read."""
_MAY_PING = ("/proc/sys/net/ipv4/ping_group_range", "0 2147483647")
"""Everybody, as systemd has it: where programs can gain no rights, ping needs it for all but root."""
_QUIET = {
    "router_solicitations": "0",
    "accept_ra": "0",
    # Milliseconds until multicast groups are reported, which would be the first that a restored machine does.
    "mldv1_unsolicited_report_interval": "2000000000",
    "mldv2_unsolicited_report_interval": "2000000000",
}
_DEVICE_FILE = "/dev/net/tun"
_IFF_TUN, _IFF_NO_PI, _IFF_VNET_HDR, _IFF_UP = 0x1, 0x1000, 0x4000, 0x1
_TUNSETIFF, _TUNSETOFFLOAD = 0x400454CA, 0x400454D0
_CHECKSUMS, _TSO4, _TSO6, _TSO_ECN = 1, 2, 4, 8
_SIOCSIFFLAGS, _SIOCSIFADDR, _SIOCSIFNETMASK, _SIOCSIFMTU = 0x8914, 0x8916, 0x891C, 0x8922
_RTM_NEWLINK, _RTM_NEWROUTE, _REQUEST, _CREATE = 16, 24, 0x1 | 0x4, 0x400  # NLM_F_REQUEST and ACK
_IPV6_ADDRESSES, _RTM_NEWADDR, _ADDRESS_SECONDS = 0x100, 20, 1.0
_IFLA_TXQLEN, _RTA_OIF, _RTA_GATEWAY = 13, 4, 5
_TABLE_MAIN, _PROTOCOL_BOOT, _UNICAST = 254, 3, 1


def create() -> int:
    """Make the device, configured and up, with the default route; gives its non-blocking descriptor.

    Raises OSError, ENOENT or ENODEV where the kernel has no TUN.
    """
    fd = os.open(_DEVICE_FILE, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    name = NAME.encode()
    fcntl.ioctl(fd, _TUNSETIFF, struct.pack("16sH22x", name, _IFF_TUN | _IFF_NO_PI | _IFF_VNET_HDR))
    fcntl.ioctl(fd, _TUNSETOFFLOAD, _CHECKSUMS | _TSO4 | _TSO6 | _TSO_ECN)
    six = _no_questions()
    with (
        socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0) as addresses,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as handle,
    ):
        addresses.bind((0, _IPV6_ADDRESSES))
        for request, value in (
            (_SIOCSIFADDR, struct.pack("=H2x4s8x", socket.AF_INET, DEVICE)),
            (_SIOCSIFNETMASK, struct.pack("=H2x4s8x", socket.AF_INET, bytes((255, 255, 255, 0)))),
            (_SIOCSIFMTU, struct.pack("=i12x", MTU)),
            (_SIOCSIFFLAGS, struct.pack("=H14x", _IFF_UP)),
        ):
            fcntl.ioctl(handle, request, struct.pack("16s16s8x", name, value))
        index = socket.if_nametoindex(NAME)
        if six:
            _wait_for_address(addresses, index)
    link = struct.pack("=BxHiII", socket.AF_UNSPEC, 0, index, 0, 0) + struct.pack(
        "=HHI", 8, _IFLA_TXQLEN, QUEUE
    )
    _ask(_RTM_NEWLINK, _REQUEST, link)
    _default_route(index, socket.AF_INET, struct.pack("=HH4s", 8, _RTA_GATEWAY, GATEWAY))
    if six:
        # It goes nowhere, but has to come here to be refused and told.
        _default_route(index, socket.AF_INET6)
    _steer()
    _set(*_MAY_PING)
    return fd


def _steer() -> None:
    """Have packets of a connection handled by the processor whose program reads it, not by the one that wrote them.

    Otherwise that program is woken while the writer still holds its socket, and spins for that: in emulation each turn
    of it is an exit of the virtual CPU. Source: Documentation/networking/scaling.rst (RFS).
    """
    for path in _STEERING:
        _set(path, _STEERED)


def _set(path: str, value: str) -> None:
    try:
        with open(path, "w", encoding="ascii") as file:
            file.write(value)
    except OSError:
        # A kernel for one processor; or another namespace than the first, where there are no such settings or users.
        pass


def _no_questions() -> bool:
    """Whether there is IPv6, whose kernel then asks nobody on the device about routers, and tells nobody of groups."""
    try:
        for name, value in _QUIET.items():
            with open(f"/proc/sys/net/ipv6/conf/{NAME}/{name}", "w", encoding="ascii") as file:
                file.write(value)
    except FileNotFoundError:
        return False
    return True


def _wait_for_address(addresses: socket.socket, index: int) -> None:
    """Until the kernel has given the device its address of IPv6, which it does by itself.

    A machine that is saved before has to do it each time that it is restored: a fiftieth of a start.
    """
    addresses.settimeout(_ADDRESS_SECONDS)
    told = b""
    try:
        while told[4:6] != struct.pack("=H", _RTM_NEWADDR) or struct.unpack_from("=I", told, 20)[0] != index:
            told = addresses.recv(4096)
    except TimeoutError:
        # A kernel that is told to give none.
        pass


def _default_route(index: int, family: int, gateway: bytes = b"") -> None:
    route = struct.pack("=BBBBBBBBI", family, 0, 0, 0, _TABLE_MAIN, _PROTOCOL_BOOT, 0, _UNICAST, 0)
    _ask(_RTM_NEWROUTE, _REQUEST | _CREATE, route + struct.pack("=HHI", 8, _RTA_OIF, index) + gateway)


def _ask(kind: int, flags: int, what: bytes) -> None:
    """Have the kernel do it, over rtnetlink. Raises OSError."""
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0) as netlink:
        netlink.send(struct.pack("=IHHII", 16 + len(what), kind, flags, 1, 0) + what)
        answer = netlink.recv(4096)
    error = struct.unpack_from("=i", answer, 16)[0]
    if error:
        raise OSError(-error, os.strerror(-error), NAME)
