"""The network of a real sandbox: what is reached, what is refused, and that no way leads around the policy."""

from __future__ import annotations

import os
import socket
import threading
from http.server import ThreadingHTTPServer
from typing import TYPE_CHECKING, Any

import pytest
from network_world import INSIDE, METADATA, TRY, Handler, World, numbers_digest, serving_http
from sandboxes import running, write_config
from servers import echo_whole, free_port, serving

if TYPE_CHECKING:
    from collections.abc import Iterator


pytestmark = pytest.mark.usefixtures("base_image")

SIZE = 100 << 20
BROKEN_OFF = (7, 52, 55, 56)
"""What curl exits with where a connection ends at once: before it looked, without a word, in between."""


@pytest.fixture(scope="module")
def world(base_image: object, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """The default policy, with some names on this machine's loopback."""
    project, sockets = tmp_path_factory.mktemp("project"), tmp_path_factory.mktemp("sockets")
    (project / "try.pl").write_text(TRY)
    (project / "inside.pl").write_text(INSIDE)
    into = free_port()
    with serving_http(ThreadingHTTPServer(("127.0.0.1", 0), Handler)) as web, serving(echo_whole) as echo:
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
            yield World(sandbox, web, echo, into, sockets)


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

    with serving_http(Server(("", 0), Handler)):
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
    assert world.net("deny", f"*:{world.web}") == ""
    assert world.tried(here) == {here: "Connection refused"}
    # All of it is denied, whatever is allowed of it.
    stays = f"{here} stays denied: airlock net: deny *:{world.web}\n"
    assert (world.net("allow", here), world.net("allow", "-q", here)) == (stays, "")
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
