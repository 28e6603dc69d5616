"""airlockd's network process on a real TUN in a namespace of this host: what test_airlock0.py would take long for."""

from __future__ import annotations

import errno
import gc
import os
import random
import select
import socket
import struct
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest
from network_process import Guest, pause_host, resume_host, running
from servers import echo, free_port, serving

from airlock_runner.config.network_model import (
    NetworkConfig,
    RuleConfig,
)
from airlock_runner.net import airlock0, connection, dial

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

LOCAL = NetworkConfig(hosts={"web.test": "127.0.0.1"})
MEGABYTE = 1 << 20


@pytest.fixture(scope="module")
def guest(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guest]:
    """One for tests that leave nothing behind."""
    with running(LOCAL, tmp_path_factory.mktemp("root")) as found:
        yield found


def test_the_device_is_the_default_route(guest: Guest) -> None:
    said = guest.inside.run(
        "sh", "ip -o address show airlock0; ip route show default; ip -6 route show default"
    )
    assert "192.168.77.1/24" in said
    assert "default via 192.168.77.2 dev airlock0" in said
    assert "default dev airlock0 metric" in said
    assert said.count("default") == 2


# ---- connections


def test_a_connection_fails_as_it_did_on_the_host(guest: Guest) -> None:
    with pytest.raises(ConnectionRefusedError):
        guest.connect(free_port())
    with pytest.raises(OSError, match="No route to host") as caught:
        guest.connect(80, "no.such.name.invalid")
    assert caught.value.errno == errno.EHOSTUNREACH


@pytest.mark.parametrize(
    ("number", "seen"),
    [
        (errno.ENETUNREACH, errno.ENETUNREACH),
        (errno.EHOSTUNREACH, errno.EHOSTUNREACH),
        # By ICMP, Linux can be told of a packet filter, but not by that name.
        (errno.EPERM, errno.EHOSTUNREACH),
    ],
)
def test_what_the_host_does_not_reach_is_told_by_its_errno(
    guest: Guest, monkeypatch: pytest.MonkeyPatch, number: int, seen: int
) -> None:
    monkeypatch.setattr(dial, "_connect", lambda _handle, _target: number)
    with pytest.raises(OSError, match=r"unreachable|No route") as caught:
        guest.connect(80)
    assert caught.value.errno == seen


def test_what_does_not_answer_is_silent_for_as_long_as_the_program_asks(
    guest: Guest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The host gives up first; the program has its own error, at its own time, and then nothing is kept."""
    monkeypatch.setattr(connection, "DIAL_SECONDS", 0.0)
    with socket.socket() as full, socket.socket() as waiting:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        waiting.connect(full.getsockname())
        with guest.inside.socket() as client:
            client.setsockopt(socket.IPPROTO_TCP, socket.TCP_SYNCNT, 1)
            with pytest.raises(TimeoutError) as caught:
                client.connect((guest.address("web.test"), full.getsockname()[1]))
    # The test's own limit would have none.
    assert caught.value.errno == errno.ETIMEDOUT
    assert guest.host.records[-1]["error"] == "ETIMEDOUT"


def test_a_device_that_is_removed_while_the_host_does_not_read_ends_the_pump_later(tmp_path: Path) -> None:
    with running(LOCAL, tmp_path) as guest:
        pause_host(guest)
        pump = guest.inside.pump()
        with guest.inside.socket(kind=socket.SOCK_DGRAM) as flood:
            for _ in range(2000):
                flood.sendto(bytes(1000), ("192.0.2.1", 9))
        # That is more than the port holds, so it sleeps only when it waits for the host.
        guest.until(lambda: state_of(pump) == "S")
        guest.inside.run("sh", "ip link delete airlock0")
        # What it has is still the host's, and it does not go round in circles for that.
        assert state_of(pump) == "S"
        resume_host(guest)
        guest.until(lambda: state_of(pump) in {"Z", None})


def state_of(pid: int) -> str | None:
    """The letter that /proc has for what a process does; None where it is gone."""
    try:
        with open(f"/proc/{pid}/stat", encoding="ascii") as file:
            return file.read().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return None


def test_a_program_that_gave_up_connects_anew_from_the_same_port(guest: Guest) -> None:
    """Also while the old connection is still being made: its SYN would be answered with numbers of another."""
    address, port = guest.address("web.test"), free_port()
    guest.host.records.clear()
    pause_host(guest)
    with serving(echo) as server:
        for final in (False, False, True):
            with guest.inside.socket() as client:
                client.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                client.bind(("", port))
                client.setblocking(False)
                assert client.connect_ex((address, server)) == errno.EINPROGRESS
                if final:
                    resume_host(guest)
                    client.settimeout(60)
                    assert select.select([], [client], [], 60)[1]
                    assert client.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == 0
                    client.sendall(b"hello")
                    assert client.recv(5, socket.MSG_WAITALL) == b"hello"
    assert len({each["id"] for each in guest.host.records}) == 3


def test_a_reset_is_a_reset_on_either_side(guest: Guest) -> None:
    now = struct.pack("ii", 1, 0)
    seen: list[object] = []
    told = threading.Event()

    def handle(connected: socket.socket) -> None:
        if connected.recv(1) == b"m":
            connected.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, now)
            return
        try:
            seen.append(connected.recv(1))
        except OSError as error:
            seen.append(error.errno)
        told.set()

    with serving(handle) as port:
        mine = guest.connect(port)
        mine.sendall(b"m")
        with pytest.raises(ConnectionResetError):
            mine.recv(1)
        mine.close()
        theirs = guest.connect(port)
        theirs.sendall(b"t")
        theirs.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, now)
        theirs.close()
        assert told.wait(60)
    assert seen == [errno.ECONNRESET]


def test_what_a_program_sent_before_it_ended_arrives_at_a_slow_host(guest: Guest) -> None:
    """Both ends have said FIN, and the program is gone, long before the host has taken everything."""
    received: list[int] = []
    whole = threading.Event()

    def handle(connected: socket.socket) -> None:
        connected.shutdown(socket.SHUT_WR)
        count = 0
        while data := connected.recv(65536):
            count += len(data)
        received.append(count)
        whole.set()

    with serving(handle) as port:
        mine = guest.connect(port)
        assert mine.recv(1) == b""
        pause_host(guest)
        mine.sendall(bytes(400_000))
        mine.close()
        resume_host(guest)
        assert whole.wait(60)
    assert received == [400_000]


def test_one_that_does_not_read_holds_up_nobody(guest: Guest) -> None:
    def handle(connected: socket.socket) -> None:
        if connected.recv(1) == b"m":
            connected.sendall(bytes(30 * MEGABYTE))
        else:
            echo(connected)

    with serving(handle) as port:
        slow = guest.connect(port)
        slow.sendall(b"m")
        quick = guest.connect(port)
        quick.sendall(b"e")
        for _ in range(200):
            quick.sendall(b"word")
            assert quick.recv(4, socket.MSG_WAITALL) == b"word"
        count = 0
        while count < 30 * MEGABYTE:
            count += len(slow.recv(MEGABYTE))
        slow.close()
        quick.close()


def test_more_at_once_than_linux_gives_its_first_process_descriptors(guest: Guest) -> None:
    release = threading.Event()

    def handle(connected: socket.socket) -> None:
        connected.sendall(connected.recv(8))
        release.wait(60)

    with serving(handle) as port:
        address = guest.address("web.test")
        clients = [guest.inside.socket() for _ in range(1500)]
        for number, client in enumerate(clients):
            client.connect((address, port))
            client.sendall(b"%08d" % number)
        for number, client in enumerate(clients):
            assert client.recv(8, socket.MSG_WAITALL) == b"%08d" % number
        release.set()
        for client in clients:
            client.close()
    guest.until(lambda: not guest.host.service.connections)


def reset_at_once(guest: Guest, count: int, queue: int = 0) -> None:
    """As the kernel does for a program that is killed, with data that it did not read.

    `queue`: so many packets wait at the device meanwhile, and the rest are lost.
    """
    with serving(lambda connected: connected.sendall(b"x")) as port:
        address = guest.address("web.test")
        clients = [guest.connect(port, address) for _ in range(count)]
        for client in clients:
            assert client.recv(1, socket.MSG_PEEK) == b"x"
        if queue:
            guest.inside.run("sh", f"ip link set airlock0 txqueuelen {queue}")
        for client in clients:
            client.close()
        if queue:
            guest.inside.run("sh", "ip link set airlock0 txqueuelen 1000")


def test_a_program_that_is_killed_with_many_connections_leaves_none(guest: Guest) -> None:
    reset_at_once(guest, 1500)
    guest.until(lambda: not guest.host.service.connections)


def test_a_reset_that_is_lost_is_found_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The device's queue is full: nothing says any more that the program has gone."""
    monkeypatch.setattr(airlock0, "KEEPALIVE", 0.5)
    with running(LOCAL, tmp_path) as guest:
        reset_at_once(guest, 100, queue=1)
        guest.until(lambda: not guest.host.service.connections)


def test_ten_thousand_in_a_row_leave_nothing_at_either_end(guest: Guest) -> None:
    end = guest.host.service.airlock0
    with serving(lambda connected: connected.sendall(b"x")) as port:
        address, refused = guest.address("web.test"), free_port()
        one_at_a_time = threading.Lock()

        def work(count: int) -> None:
            for number in range(count):
                with one_at_a_time:
                    client = guest.inside.socket()
                with client:
                    if number % 10:
                        client.connect((address, port))
                        client.recv(1)
                    else:
                        assert client.connect_ex((address, refused)) == errno.ECONNREFUSED

        def some(count: int) -> None:
            with ThreadPoolExecutor(4) as workers:
                list(workers.map(work, [count // 4] * 4))
            guest.until(lambda: not guest.host.service.connections)
            guest.host.records.clear()
            gc.collect()

        # More at once than there are below: then what both ends take has the size that it keeps.
        reset_at_once(guest, 1500)
        some(2_500)
        descriptors, memory, objects = (
            guest.inside.descriptors(),
            guest.inside.memory(),
            len(gc.get_objects()),
        )
        ours = len(os.listdir("/proc/self/fd"))
        some(10_000)
        guest.until(lambda: guest.inside.descriptors() <= descriptors)
        guest.until(lambda: len(os.listdir("/proc/self/fd")) <= ours)
    assert len(gc.get_objects()) < objects + 1000
    assert not end._relays
    assert not end._owing
    assert not end._probes
    assert not end.names._users
    assert not end._lent
    assert not guest.host.service._waiting
    # 200 bytes of each connection would be seen. Python takes memory in arenas of a megabyte, one at any time.
    assert guest.inside.memory() < memory + 2 * MEGABYTE


# ---- other packets


def alive(guest: Guest) -> bool:
    return guest.address("web.test").startswith("10.2.")


def refused(guest: Guest) -> dict[tuple[str, str, int], int]:
    """What the log has of refused packets: how many, by protocol, address and port."""
    return {
        (each["protocol"], each["address"], each["port"]): each["count"]
        for each in guest.host.records
        if each["verdict"] == "refused"
    }


def test_what_is_refused_is_logged_and_costs_a_bounded_number_of_lines(guest: Guest) -> None:
    """QUIC by name, DNS at another port, SCTP, a protocol that nobody has, and one that shouts."""
    address = guest.address("quic.test")
    guest.host.records.clear()
    for target, port in ((address, 443), ("192.0.2.53", 5353)):
        with guest.inside.socket(kind=socket.SOCK_DGRAM) as client:
            client.connect((target, port))
            client.send(b"x")
            with pytest.raises(ConnectionRefusedError):
                client.recv(1)
    for protocol in (socket.IPPROTO_SCTP, 200):
        with guest.inside.socket(kind=socket.SOCK_RAW, protocol=protocol) as client:
            client.sendto(struct.pack(">HHII", 1, 7, 0, 0), ("192.0.2.1", 0))
    wanted = {
        ("udp", address, 443),
        ("udp", "192.0.2.53", 5353),
        ("sctp", "192.0.2.1", 7),
        ("ip-200", "192.0.2.1", None),
    }
    guest.until(lambda: wanted <= refused(guest).keys())
    assert [each["name"] for each in guest.host.records if each["port"] == 443] == ["quic.test"]
    guest.host.records.clear()
    with guest.inside.socket(kind=socket.SOCK_DGRAM) as client:
        for number in range(3000):
            client.sendto(b"x", ("192.0.2.7", number % 300 + 1000))
    guest.until(lambda: ("ip", None, None) in refused(guest))
    assert len(guest.host.records) < 300
    assert alive(guest)


def test_ipv6_is_refused_at_once_and_logged(guest: Guest) -> None:
    guest.host.records.clear()
    with guest.inside.socket(socket.AF_INET6) as client:
        assert client.connect_ex(("2001:db8::1", 443)) == errno.ENETUNREACH
    with guest.inside.socket(socket.AF_INET6, socket.SOCK_DGRAM) as client:
        client.connect(("2001:db8::2", 443))
        client.send(b"x")
        with pytest.raises(ConnectionRefusedError):
            client.recv(1)
    wanted = {("tcp", "2001:db8::1", 443), ("udp", "2001:db8::2", 443)}
    guest.until(lambda: wanted <= refused(guest).keys())


def test_any_bytes_as_a_packet(guest: Guest) -> None:
    """Whoever has CAP_NET_RAW in a container can send these. One that is cut off after its header ended the process."""
    source = random.Random(7)
    with guest.inside.socket(socket.AF_PACKET, socket.SOCK_DGRAM) as raw:

        def send(data: bytes) -> None:
            raw.sendto(data, ("airlock0", 0x0800))

        for protocol in range(256):
            for size in (20, 21, 24, 28, 40):
                head = bytes((0x45, 0)) + size.to_bytes(2, "big") + bytes((0, 0, 0, 0, 64, protocol, 0, 0))
                send((head + bytes((192, 168, 77, 1, 192, 0, 2, 1)) + source.randbytes(20))[:size])
        for length in range(16):
            send(bytes((0x40 | length,)) + source.randbytes(30))
        for _ in range(2000):
            data = bytearray(source.randbytes(source.randrange(1, 120)))
            data[0] = source.choice((data[0], 0x45, 0x46, 0x60))
            send(bytes(data))
    assert alive(guest)


def test_udp_is_refused_at_once_however_long(guest: Guest) -> None:
    for size in (1, 1400, 65_000, 65_507):
        with guest.inside.socket(kind=socket.SOCK_DGRAM) as client:
            client.connect(("192.0.2.1", 443))
            client.send(bytes(size))
            with pytest.raises(ConnectionRefusedError):
                client.recv(1)


@pytest.mark.parametrize("kind", [8, 13, 17, 200])
def test_icmp_of_any_kind_is_answered_with_an_error(guest: Guest, kind: int) -> None:
    with guest.inside.socket(kind=socket.SOCK_RAW, protocol=socket.IPPROTO_ICMP) as client:
        client.sendto(struct.pack(">BBHHH", kind, 0, 0xFFFF - (kind << 8), 0, 0), ("192.0.2.1", 0))
        while True:
            answer = client.recv(1000)
            if answer[20] == 3:
                break
    assert (answer[21], answer[44:48]) == (13, socket.inet_aton("192.0.2.1"))


# ---- DNS


def test_a_client_of_dns_that_ends_its_half_still_has_its_answers(tmp_path: Path) -> None:
    rules = {"r": RuleConfig(deny=("evil.test",))}
    query = struct.pack(">6H", 7, 0x100, 1, 0, 0, 0) + b"\4%s\4test\0" + struct.pack(">2H", 1, 1)
    config = NetworkConfig(denied_names="nxdomain", rules=rules)
    with running(config, tmp_path) as guest, guest.inside.socket() as client:
        client.connect(("192.0.2.53", 53))
        for name in (b"evil", b"good"):
            asked = query % name
            client.sendall(len(asked).to_bytes(2, "big") + asked)
        client.shutdown(socket.SHUT_WR)
        said = client.makefile("rb").read()
    answers = []
    while said:
        size = int.from_bytes(said[:2], "big")
        answers.append(struct.unpack_from(">4H", said, 2))
        said = said[2 + size :]
    assert [(flags & 15, count) for _, flags, _, count in answers] == [(3, 0), (0, 1)]
