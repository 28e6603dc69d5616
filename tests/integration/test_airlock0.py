"""What airlock0 does with packets, seen by programs in a sandbox; test_network.py has what the host decides.

Programs in the guest are ping and perl. One sandbox serves all tests.
"""

from __future__ import annotations

import socket
import struct
from typing import TYPE_CHECKING

import pytest
from sandboxes import Running, log_of, running, write_config
from servers import echo_whole, serving

if TYPE_CHECKING:
    from collections.abc import Iterator

PRELUDE = "use strict; use Socket qw(:all); use IO::Socket::INET; alarm 200;"


def reset(client: socket.socket) -> None:
    """Says a word, waits for one, and breaks off."""
    client.sendall(b"word")
    client.recv(1)
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    # Here and now: the server would end its half first.
    client.close()


class Guest:
    """A running sandbox, and two servers that it can reach as here.test."""

    def __init__(self, sandbox: Running, ports: dict[str, int]) -> None:
        self.sandbox, self.ports = sandbox, ports

    def perl(self, script: str) -> list[str]:
        """The lines that a script prints, in which `$PORT{name}` is a server's port."""
        table = ", ".join(f"{name} => {port}" for name, port in self.ports.items())
        done = self.sandbox.exec("perl", "-e", f"{PRELUDE} my %PORT = ({table}); {script}")
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout.decode().splitlines()


@pytest.fixture(scope="module")
def guest(base_image: object, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guest]:
    project = tmp_path_factory.mktemp("airlock0")
    config = '[network.hosts]\n"here.test" = "127.0.0.1"'
    write_config(project, config)
    with serving(echo_whole) as echoing, serving(reset) as resetting, running(project) as sandbox:
        yield Guest(sandbox, {"echo": echoing, "reset": resetting})


def test_half_close_and_reset(guest: Guest) -> None:
    said = guest.perl(
        r"""
        my $half = IO::Socket::INET->new(PeerAddr => "here.test", PeerPort => $PORT{echo}) or die $@;
        print $half "half"; $half->flush; shutdown($half, 1); print <$half>, "\n";
        my $reset = IO::Socket::INET->new(PeerAddr => "here.test", PeerPort => $PORT{reset}) or die $@;
        sysread($reset, my $word, 9); syswrite($reset, "!");
        my $count = sysread($reset, my $rest, 9);
        print "$word ", defined $count ? "end" : $!, "\n";
        """
    )
    assert said == ["half", "word Connection reset by peer"]


def test_what_is_no_tcp(guest: Guest) -> None:
    """UDP, ICMP, IPv6 and other protocols fail at once; the gateway answers a ping."""
    said = guest.perl(
        r"""
        for my $port (443, 123) {
            socket(my $to, AF_INET, SOCK_DGRAM, 0) or die $!;
            connect($to, sockaddr_in($port, inet_aton("198.51.100.7"))) or die $!;
            send($to, "x" x 1200, 0); my $got = recv($to, my $answer, 9, 0);
            print defined $got ? "answered" : $!, "\n";
        }
        socket(my $sctp, AF_INET, SOCK_RAW, 132) or die $!;
        connect($sctp, sockaddr_in(0, inet_aton("198.51.100.7"))) or die $!;
        setsockopt($sctp, 0, 11, pack("i", 1)) or die $!;  # IP_RECVERR
        send($sctp, "x" x 20, 0); my $got = recv($sctp, my $answer, 9, 0);
        print defined $got ? "answered" : $!, "\n";
        socket(my $six, AF_INET6, SOCK_STREAM, 0) or die $!;
        print connect($six, pack_sockaddr_in6(80, inet_pton(AF_INET6, "2001:db8::1"))) ? "connected" : $!, "\n";
        """
    )
    refused = "Connection refused"
    assert said == [refused, refused, "Protocol not available", "Network is unreachable"]
    ping = guest.sandbox.exec("ping", "-c1", "-W90", "198.51.100.7")
    assert ping.returncode == 1
    assert b"filtered" in ping.stdout
    gateway = guest.sandbox.sh("ip route | sed -n 's/default via \\([^ ]*\\).*/\\1/p'").strip()
    guest.sandbox.sh(f"ping -c1 -W90 {gateway} && ping -c1 -W90 10.0.0.1")
    # Not for root alone: with harden, ping has no more rights than whoever calls it.
    guest.sandbox.sh(f"setpriv --reuid games --regid games --clear-groups ping -c1 -W90 {gateway}")


def test_dns_at_any_server(guest: Guest) -> None:
    """Whatever resolver a program asks, over UDP or TCP, it is ours: AAAA and HTTPS are empty; PTR works."""
    before = len(log_of(guest.sandbox.project))
    said = guest.perl(
        r"""
        sub query { pack("n6", 7, 0x100, 1, 0, 0, 0) . "\4here\4test\0" . pack("n2", $_[0], 1) }
        sub report { my ($n, $f, $q, $a) = unpack("n4", $_[0]);
            print "$n ", $f & 15, " $a", $a ? " " . join(".", unpack("C4", substr($_[0], -4))) : "", "\n" }
        for my $kind (1, 28, 65) {
            my $to = IO::Socket::INET->new(PeerAddr => "8.8.4.4", PeerPort => 53, Proto => "udp") or die $@;
            $to->send(query($kind)); $to->recv(my $answer, 512); report($answer);
        }
        my $tcp = IO::Socket::INET->new(PeerAddr => "1.1.1.1", PeerPort => 53) or die $@;
        my $query = pack("n", length query(1)) . query(1);
        syswrite($tcp, $query . $query);
        for (1, 2) { read($tcp, my $size, 2); read($tcp, my $answer, unpack("n", $size)); report($answer) }
        """
    )
    address = guest.sandbox.sh("getent ahosts here.test").split()[0]
    assert address.startswith("10.2.")
    assert said == [f"7 0 1 {address}", "7 0 0", "7 0 0", f"7 0 1 {address}", f"7 0 1 {address}"]
    assert guest.sandbox.sh(f"getent hosts {address}").split()[1] == "here.test"
    assert len(log_of(guest.sandbox.project)) == before


def test_one_port_toward_several_servers(guest: Guest) -> None:
    """A bound source port may be in use toward several destinations at once."""
    said = guest.perl(
        r"""
        my @open = map { IO::Socket::INET->new(PeerAddr => "here.test", PeerPort => $_, LocalPort => 40404,
                                               ReuseAddr => 1) or die $@ } @PORT{"echo", "reset"};
        my ($echo, $reset) = @open;
        print $echo "mine"; $echo->flush; shutdown($echo, 1); print <$echo>, "\n";
        sysread($reset, my $word, 9); print "$word\n";
        """
    )
    assert said == ["mine", "word"]
