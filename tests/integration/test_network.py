"""The network of real sandboxes: what is reached, what is refused, and that no way leads around the policy."""

from __future__ import annotations

import hashlib
import json
import os
import socket
import subprocess
import sys
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import count
from typing import TYPE_CHECKING, Any

import pytest
from sandboxes import COMMAND, Running, log_of, running, write_config

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from conftest import Airlock

pytestmark = pytest.mark.usefixtures("base_image")

SIZE = 100 << 20
METADATA = "169.254.169.254"
BROKEN_OFF = (7, 52, 55, 56)
"""What curl exits with where a connection ends at once: before it looked, without a word, in between."""

# Connects to each HOST:PORT and says how that went, one line each.
TRY = r"""
use Socket qw(:all);
for (@ARGV) {
    my ($host, $port) = /^(.*):(\d+)$/;
    my ($error, @found) = getaddrinfo($host, $port, { socktype => SOCK_STREAM });
    my $said = $error ? "no such name" : "";
    for my $each (@found) {
        socket(my $handle, $each->{family}, SOCK_STREAM, 0);
        $said = connect($handle, $each->{addr}) ? "connected" : "$!";
        last if $said eq "connected";
    }
    print "$_ $said\n";
}
"""


# Serves port 4000.
INSIDE = r"""
use IO::Socket::INET;
my $server = IO::Socket::INET->new(Listen => 9, LocalAddr => "127.0.0.1", LocalPort => 4000) or die;
while (my $client = $server->accept) {
    print $client "from inside: ", scalar <$client>;
    close $client;
}
"""


def numbers() -> Iterator[bytes]:
    """A stream that is nowhere the same: what `seq` prints."""
    for number in count(1):
        yield b"%d\n" % number


def numbers_digest(size: int) -> str:
    """The sha256 of its first bytes."""
    digest, left = hashlib.sha256(), size
    chunk: list[bytes] = []
    for number in numbers():
        chunk.append(number)
        if len(chunk) == 100_000:
            part = b"".join(chunk)[:left]
            digest.update(part)
            left -= len(part)
            chunk.clear()
            if not left:
                break
    return digest.hexdigest()


class Handler(BaseHTTPRequestHandler):
    """GET /N: the first N bytes of `numbers`, others `hello`. PUT: the sha256 of what came."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self.send_response(200)
        if self.path == "/":
            self.send_header("Content-Length", "6")
            self.end_headers()
            self.wfile.write(b"hello\n")
            return
        left = int(self.path[1:])
        self.send_header("Content-Length", str(left))
        self.end_headers()
        source = numbers()
        while left:
            part = b"".join(next(source) for _ in range(20_000))[:left]
            self.wfile.write(part)
            left -= len(part)

    def do_PUT(self) -> None:
        digest, left = hashlib.sha256(), int(self.headers["Content-Length"])
        while left:
            part = self.rfile.read(min(left, 1 << 20))
            digest.update(part)
            left -= len(part)
        answer = digest.hexdigest().encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, format: str, *arguments: Any) -> None:
        """A test is quiet."""


@contextmanager
def serving(server: ThreadingHTTPServer) -> Iterator[int]:
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server.server_address[1]
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@contextmanager
def echoing(listener: socket.socket) -> Iterator[None]:
    """Serves a listening socket: each connection gets back what it sent, once it has ended its side."""

    def serve(connected: socket.socket) -> None:
        with connected:
            said = b""
            while part := connected.recv(65536):
                said += part
            connected.sendall(said)

    def accept() -> None:
        while True:
            try:
                connected, _ = listener.accept()
            except OSError:
                return
            threading.Thread(target=serve, args=(connected,), daemon=True).start()

    thread = threading.Thread(target=accept, daemon=True)
    thread.start()
    try:
        yield
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join()


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port: int = probe.getsockname()[1]
        return port


class World:
    """A sandbox, and what it could reach. `tried` is what a program in it is told at each of some destinations."""

    def __init__(self, sandbox: Running, web: int, echo: int, into: int, sockets: Path) -> None:
        self.sandbox, self.web, self.echo, self.into, self.sockets = sandbox, web, echo, into, sockets

    def tried(self, *destinations: str) -> dict[str, str]:
        words = " ".join(f"'{each}'" for each in destinations)
        return dict(line.split(" ", 1) for line in self.sandbox.sh(f"perl try.pl {words}").splitlines())

    def logged(self, before: int = 0) -> list[dict[str, Any]]:
        return log_of(self.sandbox.project)[before:]

    def refused(self) -> dict[tuple[str, str, int | None], int]:
        """How many packets the sandbox says it refused, by protocol, name or address, and port."""
        return {
            (each["protocol"], each["name"] or each["address"], each["port"]): each["count"]
            for each in log_of(self.sandbox.project, packets=True)
        }

    def net(self, *words: str) -> str:
        done = subprocess.run(
            [COMMAND, "net", *words], cwd=self.sandbox.project, capture_output=True, check=True
        )
        return done.stdout.decode()


@pytest.fixture(scope="module")
def world(base_image: object, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """The default policy, with some names on this machine's loopback."""
    project, sockets = tmp_path_factory.mktemp("project"), tmp_path_factory.mktemp("sockets")
    (project / "try.pl").write_text(TRY)
    (project / "inside.pl").write_text(INSIDE)
    echo = socket.create_server(("127.0.0.1", 0))
    into = free_port()
    with serving(ThreadingHTTPServer(("127.0.0.1", 0), Handler)) as web, echoing(echo):
        write_config(
            project,
            f"""
            [network.hosts]
            "web.test" = "127.0.0.1"
            "two.test" = ["127.9.9.9", "127.0.0.1"]
            "evil.test" = "127.0.0.1"
            "up.bad.test" = "127.0.0.1"
            [network.rules.r]
            allow = ["*"]
            deny = ["evil.test", "*.bad.test", "192.0.2.99", "*:853"]
            [network.ports.p]
            host = ["{web}:3000", "{free_port()}:3001"]
            guest = ["{into}:4000"]
            [network.sockets.late]
            host = "{sockets}/late.sock:/run/deep/er/late.sock"
            [daemons.inside]
            command = ["perl", "{project}/inside.pl"]
            ready = {{ tcp = 4000 }}
            """,
        )
        with running(project) as sandbox:
            yield World(sandbox, web, echo.getsockname()[1], into, sockets)


def test_http_and_raw_tcp_by_name(world: World) -> None:
    before = len(world.logged())
    assert (
        world.sandbox.sh(f"curl -sS http://WEB.test.:{world.web}/ http://two.test:{world.web}/")
        == "hello\nhello\n"
    )
    script = f"exec 3<>/dev/tcp/web.test/{world.echo}; echo raw >&3; perl -e 'shutdown STDIN, 1' <&3; cat <&3"
    assert world.sandbox.exec("bash", "-c", script).stdout == b"raw\n"
    first, second, third = world.logged(before)
    assert (first["name"], second["name"], third["name"]) == ("web.test", "two.test", "web.test")
    assert {each["rule"] for each in (first, second, third)} == {"r: allow *"}
    assert (third["sent"], third["received"]) == (4, 4)


def test_a_hundred_megabytes_each_way(world: World) -> None:
    digest = numbers_digest(SIZE)
    down = world.sandbox.sh(f"curl -sS http://web.test:{world.web}/{SIZE} | sha256sum")
    assert down.split()[0] == digest
    up = world.sandbox.sh(
        f"seq 1 20000000 | head -c {SIZE} > /airlock/disk/up; "
        f"curl -sS -T /airlock/disk/up http://web.test:{world.web}/; rm /airlock/disk/up"
    )
    assert up == digest


def test_a_download_that_nobody_reads_holds_up_neither_others_nor_a_keystroke(world: World) -> None:
    script = (
        f"use IO::Socket::INET; $s = IO::Socket::INET->new(PeerAddr => 'web.test:{world.web}') or die;"
        f"syswrite $s, qq(GET /{SIZE} HTTP/1.0\\r\\n\\r\\n); sleep 300"
    )
    stalled = world.sandbox.sh(
        f'perl -e "{script.replace("$", chr(92) + "$")}" >/dev/null 2>&1 & echo $!'
    ).strip()
    got = world.sandbox.sh(f"curl -sS http://web.test:{world.web}/{SIZE // 20} | wc -c")
    assert int(got) == SIZE // 20
    assert world.sandbox.exec("cat", input=b"key").stdout == b"key"
    assert "open" in [each["state"] for each in world.logged()]
    world.sandbox.sh(f"kill {stalled}")


def test_a_connection_fails_as_it_did_on_the_host(world: World) -> None:
    nobody = free_port()
    assert world.tried(f"web.test:{nobody}") == {f"web.test:{nobody}": "Connection refused"}
    record = world.logged()[-1]
    assert (record["state"], record["error"]) == ("failed", "ECONNREFUSED")


def test_ways_around_the_policy_fail_and_are_logged(world: World) -> None:
    before = len(world.logged())
    number = int.from_bytes(socket.inet_aton(METADATA))
    destinations = {
        f"evil.test:{world.web}": "r: deny evil.test",
        f"EVIL.Test:{world.web}": "r: deny evil.test",
        f"evil.test.:{world.web}": "r: deny evil.test",
        f"up.bad.test:{world.web}": "r: deny *.bad.test",
        f"{METADATA}:80": "internal address (link-local)",
        f"{number}:80": "internal address (link-local)",
        f"{number:#x}:80": "internal address (link-local)",
        "0251.0376.0251.0376:80": "internal address (link-local)",
        f"::ffff:{METADATA}:80": "internal address (link-local)",
        "10.2.99.99:80": "internal address (private)",
        "100.100.100.200:80": "internal address (carrier-grade NAT)",
        "192.168.0.1:443": "internal address (private)",
        "192.0.2.99:443": "r: deny 192.0.2.99",
        # DNS over TLS.
        "9.9.9.9:853": "r: deny *:853",
    }
    assert world.tried(*destinations) == dict.fromkeys(destinations, "Connection refused")
    records = world.logged(before)
    assert [each["rule"] for each in records] == list(destinations.values())
    assert {each["verdict"] for each in records} == {"deny"}


def test_nothing_but_tcp_and_dns_leaves_and_that_fails_at_once_and_is_logged(world: World) -> None:
    before = len(world.logged())
    send = 'use IO::Socket::INET; $s = IO::Socket::INET->new(Proto=>"udp",PeerAddr=>$ARGV[0]) or die; ' \
        'send $s,"x",0; recv($s, $b, 9, 0) // print "$!\\n"'  # fmt: skip
    # QUIC by name and by address, and a resolver at another port.
    destinations = ("web.test:443", "192.0.2.1:443", "192.0.2.53:5353")
    for each in destinations:
        assert world.sandbox.exec("perl", "-e", send, each).stdout == b"Connection refused\n"
    assert world.tried("2001:db8::1:443")["2001:db8::1:443"] == "Network is unreachable"
    assert world.sandbox.exec("ping", "-c1", "-W20", "192.0.2.1").returncode != 0
    # Whatever resolver is asked, it is ours that answers, and no query leaves.
    ask = 'use IO::Socket::INET; $q = pack("n6",7,256,1,0,0,0)."\\4name\\4made\\2up\\0".pack("n2",1,1); ' \
        '$s = IO::Socket::INET->new(Proto=>"udp",PeerAddr=>"192.0.2.53:53"); send $s,$q,0; recv($s,$b,512,0); ' \
        'print join ".", unpack "C4", substr $b, -4'  # fmt: skip
    assert world.sandbox.exec("perl", "-e", ask).stdout.startswith(b"10.2.")
    assert world.logged(before) == []
    wanted = {("udp", each.split(":")[0], int(each.split(":")[1])) for each in destinations}
    wanted |= {("tcp", "2001:db8::1", 443), ("icmp", "192.0.2.1", None)}
    # The sandbox tells of all but the first up to a second later.
    waiting = threading.Event()
    for _ in range(200):
        if wanted <= world.refused().keys():
            break
        waiting.wait(0.1)
    assert wanted <= world.refused().keys()
    assert "udp" in world.net("log")


def test_ports_both_ways(world: World) -> None:
    assert world.sandbox.sh("curl -sS http://localhost:3000/ http://127.0.0.1:3000/") == "hello\nhello\n"
    assert world.logged()[-1]["rule"] == "ports.p"
    # The guest's kernel has accepted before the host is asked: an end without a word is what a program sees.
    assert world.sandbox.exec("curl", "-sS", "http://localhost:3001/").returncode in BROKEN_OFF
    assert world.logged()[-1]["error"] == "ECONNREFUSED"
    with socket.create_connection(("127.0.0.1", world.into)) as client:
        client.sendall(b"hello\n")
        assert client.makefile().read() == "from inside: hello\n"
    assert world.logged()[-1]["kind"] == "forward"


def test_a_socket_works_as_soon_as_it_is_there(world: World) -> None:
    path = world.sockets / "late.sock"
    ask = "curl -sS --unix-socket /run/deep/er/late.sock http://x/"
    refused = world.sandbox.exec("sh", "-c", ask)
    assert refused.returncode == 7, refused.stderr

    class Server(ThreadingHTTPServer):
        address_family = socket.AF_UNIX

        def server_bind(self) -> None:
            self.socket.bind(os.fspath(path))

        def get_request(self) -> tuple[socket.socket, Any]:
            return self.socket.accept()[0], ("", 0)

    with serving(Server(("", 0), Handler)):
        until = f"until {ask} 2>/dev/null; do sleep 0.1; done"
        assert world.sandbox.sh(until) == "hello\n"
        # Many at once, and large.
        urls = " ".join(["http://x/300000"] * 20)
        assert (
            world.sandbox.sh(f"curl -sS -Z --unix-socket /run/deep/er/late.sock {urls} | wc -c").strip()
            == "6000000"
        )
    path.unlink()
    assert world.sandbox.sh(f"while {ask} 2>/dev/null; do sleep 0.1; done; echo gone") == "gone\n"


def test_the_policy_changes_while_it_runs(world: World) -> None:
    here = f"web.test:{world.web}"
    world.net("deny", f"*:{world.web}")
    assert world.tried(here) == {here: "Connection refused"}
    assert world.logged()[-1]["rule"] == f"airlock net: deny *:{world.web}"
    world.net("allow", f"*:{world.web}")
    assert world.tried(here) == {here: "connected"}
    world.net("policy", "deny-always")
    try:
        assert world.tried(here) == {here: "Connection refused"}
        assert world.sandbox.exec("curl", "-sS", "http://localhost:3000/").returncode in BROKEN_OFF
        with socket.create_connection(("127.0.0.1", world.into)) as client:
            client.sendall(b"hello\n")
            assert client.makefile().read() == "from inside: hello\n"
    finally:
        said = world.net("policy", "allow-by-default")
    assert said.startswith("policy: allow-by-default\nr: allow *\n")
    assert world.tried(here) == {here: "connected"}
    assert f'"{here}"' in world.net("learn")


def test_many_connections_leave_nothing_behind(world: World) -> None:
    """A thousand at once, then more in a row: afterwards the session has as many descriptors as before."""

    def descriptors() -> int:
        return len(os.listdir(f"/proc/{world.sandbox.process.pid}/fd"))

    world.tried(f"web.test:{world.echo}")
    before = descriptors()
    at_once = (
        "use Socket; use IO::Socket::INET; my @all; "
        f"for (1..1000) {{ push @all, IO::Socket::INET->new(PeerAddr=>'web.test:{world.echo}') || die $! }} "
        "for (0..999) { print {$all[$_]} $_; shutdown $all[$_], 1 } "
        "my $right = grep { my $s = $all[$_]; local $/; <$s> eq $_ } 0..999; print $right; "
    )
    assert world.sandbox.sh(f'ulimit -n 4096; perl -e "{at_once.replace("$", chr(92) + "$")}"') == "1000"
    one_by_one = (
        f"use IO::Socket::INET; for (1..1000) {{ IO::Socket::INET->new(PeerAddr=>'web.test:{world.echo}') || die $! }} "
        "print 'done'"
    )
    assert world.sandbox.exec("perl", "-e", one_by_one).stdout == b"done"
    # What was just closed is on its way.
    waiting = threading.Event()
    for _ in range(200):
        if descriptors() <= before:
            break
        waiting.wait(0.1)
    assert descriptors() <= before


def test_deny_by_default_with_names_that_do_not_exist(airlock: Airlock, project: Path) -> None:
    (project / "try.pl").write_text(TRY)
    with serving(ThreadingHTTPServer(("127.0.0.1", 0), Handler)) as web:
        write_config(
            project,
            f"""
            [network]
            policy = "deny-by-default"
            denied_names = "nxdomain"
            [network.hosts]
            "web.test" = "127.0.0.1"
            "other.test" = "127.0.0.1"
            [network.rules.r]
            allow = ["web.test:{web}", "8.8.8.8:80"]
            deny = ["8.8.8.8"]
            """,
        )
        script = (
            f"perl try.pl web.test:{web} web.test:1 other.test:{web} made.up:80 8.8.8.8:80 1.1.1.1:80 1.1.1.1:853;"
            f"curl -sS http://web.test:{web}/"
        )
        done = airlock("start", "--", "sh", "-c", script, cwd=project)
    assert done.stdout.decode().splitlines() == [
        f"web.test:{web} connected", "web.test:1 Connection refused", f"other.test:{web} no such name",
        "made.up:80 no such name", "8.8.8.8:80 Connection refused", "1.1.1.1:80 Connection refused",
        "1.1.1.1:853 Connection refused", "hello",
    ]  # fmt: skip
    assert [each["rule"] for each in log_of(project)] == [
        f"r: allow web.test:{web}", "policy deny-by-default", "r: deny 8.8.8.8", "policy deny-by-default",
        "policy deny-by-default",
        f"r: allow web.test:{web}",
    ]  # fmt: skip


RECIPE = """
[recipe]
name = "masquerade"
summary = "What Docker's bridge is made of, without Docker"
extends = "base"

[rootfs]
packages = ["iptables"]

[kernel]
features = ["docker"]
"""


DETACH = """
use POSIX (); my $bpf = (POSIX::uname())[4] eq "x86_64" ? 321 : 280; my ($id, $count) = (0, 0);
while (syscall($bpf, 31, my $next = pack("L2x8", $id), 16) == 0) {  # BPF_LINK_GET_NEXT_ID
    $id = (unpack "L2", $next)[1];
    my $link = syscall($bpf, 30, pack("Lx12", $id), 16);  # BPF_LINK_GET_FD_BY_ID
    $count += syscall($bpf, 34, pack("Lx12", $link), 16) == 0;  # BPF_LINK_DETACH
}
print "$count\\n";
"""


def test_root_and_containers_find_no_other_way(project: Path) -> None:
    """Without hardening: addresses, routes, interfaces, a namespace as Docker makes it, the port, the device."""
    (project / "try.pl").write_text(TRY)
    (project / "masquerade.toml").write_text(RECIPE)
    with serving(ThreadingHTTPServer(("127.0.0.1", 0), Handler)) as web:
        (project / "airlock.toml").write_text(
            '[vm]\nimage = "./masquerade.toml"\nmemory = "512 MB"\ncpus = 1\nharden = false\n'
            '[network.hosts]\n"web.test" = "127.0.0.1"\n[network.rules.r]\ndeny = ["evil.test"]\n'
        )
        here, evil = f"web.test:{web}", f"evil.test:{web}"
        with running(project) as sandbox:
            sandbox.sh(
                "ip address add 10.0.5.1/24 dev airlock0; ip route add 172.16.0.0/12 dev airlock0;"
                "ip link add dummy0 type dummy; ip address add 192.168.7.1/24 dev dummy0; ip link set dummy0 up"
            )
            said = sandbox.sh(f"perl try.pl 172.16.0.1:80 10.0.5.9:80 {here} {evil}")
            assert said.splitlines() == [
                "172.16.0.1:80 Connection refused", "10.0.5.9:80 Connection refused",
                f"{here} connected", f"{evil} Connection refused",
            ]  # fmt: skip
            # Rules of the packet filter, kept or thrown away, change nothing.
            sandbox.sh(
                "ip netns add inner; ip link add v0 type veth peer name v1 netns inner;"
                "ip address add 172.30.0.1/24 dev v0; ip link set v0 up; echo 1 > /proc/sys/net/ipv4/ip_forward;"
                "ip -n inner link set lo up; ip -n inner address add 172.30.0.2/24 dev v1;"
                "ip -n inner link set v1 up; ip -n inner route add default via 172.30.0.1;"
                "iptables -t nat -A POSTROUTING -s 172.30.0.0/24 ! -o v0 -j MASQUERADE"
            )
            for step in ("true", "iptables -t nat -F"):
                said = sandbox.sh(
                    f"{step}; ip netns exec inner perl try.pl {here} {evil} {METADATA}:80;"
                    f"ip netns exec inner curl -sS http://{here}/"
                )
                assert said.splitlines() == [
                    f"{here} connected", f"{evil} Connection refused", f"{METADATA}:80 Connection refused", "hello",
                ]  # fmt: skip
            assert {each["rule"] for each in log_of(project) if each["verdict"] == "deny"} == {
                "internal address (private)", "internal address (link-local)", "r: deny evil.test",
            }  # fmt: skip
            # Packets of established connections do not cross the device, and do once root has seen to that.
            (project / "detach.pl").write_text(DETACH)
            crossed = "awk '/airlock0:/ {print $2 + $10}' /proc/net/dev"
            size = 3_000_000
            said = sandbox.sh(
                f"get() {{ ip netns exec inner curl -sS http://{here}/{size} | sha256sum; {crossed}; }};"
                f"iptables -t nat -A POSTROUTING -s 172.30.0.0/24 ! -o v0 -j MASQUERADE; {crossed};"
                "get; perl detach.pl; get"
            )
            first, whole, second, detached, again, third = said.splitlines()
            assert whole == again == f"{numbers_digest(size)}  -"
            assert int(second) - int(first) < size / 10, said
            assert detached == "1"
            assert int(third) - int(second) > 2 * size
            # The port has one opener; who ends that, ends the network.
            assert "busy" in sandbox.sh("for each in /dev/vport*; do cat $each 2>&1; done; true").lower()
            # Without the device there is no network; there is no other.
            said = sandbox.sh(f"ip link delete airlock0; timeout 20 perl try.pl {here}; echo over")
            assert "connected" not in said


# Makes a network namespace of its own, with an address that is neither loopback nor public, a server at it, and a
# sandbox whose argv follows.
HOST = r"""
import fcntl, http.server, socket, struct, subprocess, sys, threading
SIOCSIFFLAGS, SIOCSIFADDR, UP_AND_RUNNING = 0x8914, 0x8916, 0x41
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
    fcntl.ioctl(probe, SIOCSIFFLAGS, struct.pack("16sH14x", b"lo", UP_AND_RUNNING))
    address = struct.pack("H2s4s8x", socket.AF_INET, b"", socket.inet_aton("10.99.0.1"))
    fcntl.ioctl(probe, SIOCSIFADDR, struct.pack("16s16s", b"lo:1", address))
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.wfile.write(b"HTTP/1.0 200 OK\r\n\r\nhello\n")
    def log_message(self, *_):
        pass
for port in (80, 81):
    server = http.server.ThreadingHTTPServer(("10.99.0.1", port), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
sys.exit(subprocess.run(sys.argv[1:]).returncode)
"""


def test_an_address_is_reached_where_a_rule_names_it(project: Path) -> None:
    write_config(
        project,
        '[network.rules.r]\nallow = ["10.99.0.0/24:80"]\n[network.hosts]\n"denied.test" = "10.99.0.1"',
    )
    script = (
        "for each in 10.99.0.1 $((10 << 24 | 99 << 16 | 1)) 10.99.0.1:81; do curl -sS http://$each/; done"
    )
    done = subprocess.run(
        ["unshare", "--net", "--map-root-user", sys.executable, "-c", HOST, COMMAND, "start", "--", "sh", "-c", script],
        cwd=project, stdin=subprocess.DEVNULL, capture_output=True, timeout=600, check=False,
    )  # fmt: skip
    assert done.stdout == b"hello\nhello\n", done.stderr
    assert [(each["state"], each["rule"]) for each in log_of(project)] == [
        ("closed", "r: allow 10.99.0.0/24:80"), ("closed", "r: allow 10.99.0.0/24:80"),
        ("denied", "internal address (private)"),
    ]  # fmt: skip


def test_a_socket_that_is_the_host_is_told_of_once(airlock: Airlock, project: Path) -> None:
    write_config(project, f'[network.sockets.docker]\nhost = "{project}/docker.sock:/run/docker.sock"')
    power = (
        f"forwarded socket docker ({project}/docker.sock): whoever reaches its server from the sandbox has"
    )
    first, second = (airlock("start", "--", "true", cwd=project) for _ in range(2))
    assert first.returncode == second.returncode == 0
    assert power in first.stderr.decode()
    assert power not in second.stderr.decode()
    assert power in airlock("show", cwd=project).stdout.decode()
    assert json.loads(airlock("show", "--json", cwd=project).stdout)["sockets"] in power


def test_a_busy_port_fails_the_start(airlock: Airlock, project: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as busy:
        port = busy.getsockname()[1]
        write_config(project, f"[network.ports.web]\nguest = [{port}]")
        done = airlock("start", "--", "true", cwd=project)
    assert done.returncode == 2
    assert f"port {port} of 127.0.0.1, which [network.ports.web] asks for, is in use".encode() in done.stderr
