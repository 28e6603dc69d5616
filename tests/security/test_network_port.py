"""The network's ports in the hands of a guest that is root without hardening: the host judges all the same."""

from __future__ import annotations

import socket
import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1] / "integration"))
import pytest
from sandboxes import log_of, running, write_config

pytestmark = pytest.mark.usefixtures("base_image")

# Takes the port out of a process of airlockd's, which is stopped, and speaks for it.
TAKE = r"""
use strict; use Socket; alarm 200;
sub comm { open my $file, "<", $_[0]; <$file> }
my ($pid) = map { m{(\d+)/comm$} && comm($_) =~ /^airlock-PROCESS/ ? m{(\d+)/comm$} : () } glob "/proc/*/comm";
kill "STOP", $pid;
my ($port) = map { readlink =~ m{^/dev/vport} && m{(\d+)$} ? $1 : () } glob "/proc/$pid/fd/*";
my $pidfd = syscall(434, $pid + 0, 0);
my $fd = syscall(438, $pidfd, $port + 0, 0);
open(my $wire, "+<&=", $fd) or die "fd $fd: $!";
"""
TAKE_STREAMS, TAKE_PACKETS = TAKE.replace("PROCESS", "net"), TAKE.replace("PROCESS", "pump")
# A SYN: what the answer has for TCP flags.
FORGE = r"""
sub forge { my ($address, $to) = @_;
    my $tcp = pack("nnNNCCnnn", 1000, $to, 7, 0, 0x50, 2, 1000, 0, 0);
    my $ip = pack("CCnnnCCna4a4", 0x45, 0, 40, 0, 0, 64, 6, 0, inet_aton("192.168.77.1"), inet_aton($address));
    syswrite($wire, pack("Nx10", 50) . $ip . $tcp) or die $!;
    my $got = ""; my $bits = ""; vec($bits, $fd, 1) = 1;
    while (length $got < 54) {
        select(my $ready = $bits, undef, undef, undef); sysread($wire, $got, 54 - length $got, length $got) }
    printf("%s %02x\n", $address, unpack("C", substr($got, 47, 1))) }
"""


def test_the_ports_cannot_be_opened(project: Path) -> None:
    """They have one opener, and that is airlockd; what is hardened cannot reach into another process either."""
    with running(project) as sandbox:
        said = sandbox.sh("for each in /dev/vport*; do ( : <> $each ) 2>&1; done; true")
        assert said.count("busy") == len(said.splitlines()) == 3
        for take in (TAKE_STREAMS, TAKE_PACKETS):
            assert sandbox.exec("perl", "-e", take).returncode != 0


def test_forged_packets_are_judged(project: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        write_config(project, 'harden = false\n[network.hosts]\n"secret.test" = "127.0.0.1"\n'
                     '[network.rules.r]\ndeny = ["secret.test"]')  # fmt: skip
        with running(project) as sandbox:
            secret = sandbox.sh("getent ahostsv4 secret.test").split()[0]
            addresses = ["127.0.0.1", secret, "10.2.200.7", "169.254.169.254"]
            calls = "".join(f'forge("{each}", {port});' for each in addresses)
            said = sandbox.sh(f"perl -e '{TAKE_PACKETS} {FORGE} {calls}'")
            # Each is refused, and no connection arrives at the server.
            assert said.splitlines() == [f"{each} 14" for each in addresses]
            assert [(entry["verdict"], entry["rule"]) for entry in log_of(project)] == [
                ("deny", "internal address (loopback)"), ("deny", "r: deny secret.test"),
                ("deny", "internal address (private)"), ("deny", "internal address (link-local)"),
            ]  # fmt: skip
            server.setblocking(False)
            with pytest.raises(BlockingIOError):
                server.accept()


FORGED_CALL = (
    '{"t":"call","op":"connect","id":1,"stream":1,"kind":"tcp","name":null,"address":"127.0.0.1","port":1}'
)
"""Connections do not come by this port any more."""


@pytest.mark.parametrize(
    ("take", "sent", "reason"),
    [
        (TAKE_STREAMS, "chr(255) x 64", b"oversized frame"),
        (
            TAKE_STREAMS,
            f"pack(q(N2), {len(FORGED_CALL)}, 0) . q({FORGED_CALL})",
            b"unknown kind of connection",
        ),
        (TAKE_PACKETS, "chr(255) x 64", b"a packet of 4294967295 bytes"),
    ],
    ids=["frames", "call", "packets"],
)
def test_garbage_ends_the_network_alone(project: Path, take: str, sent: str, reason: bytes) -> None:
    """The host closes the ports with a reason; the sandbox goes on, without a network."""
    write_config(project, "harden = false")
    with running(project) as sandbox:
        sandbox.sh(f"perl -e '{take} syswrite($wire, {sent})'")
        assert sandbox.sh("echo still here") == "still here\n"
        sandbox.process.terminate()
        _, _, said = sandbox.wait()
        assert b"network" in said
        assert reason in said
