"""The port airlock.network in the hands of a guest that is root without hardening: the host judges all the same."""

from __future__ import annotations

import socket
import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1] / "integration"))
import pytest
from sandboxes import log_of, running, write_config

pytestmark = pytest.mark.usefixtures("base_image")

# Takes the port out of the network process, which is stopped, and speaks for it.
FORGE = r"""
use strict; alarm 200;
my ($pid) = map { m{(\d+)/comm$} && do { open my $f, "<", $_; <$f> =~ /^airlock-net/ } ? $1 : () } glob "/proc/*/comm";
kill "STOP", $pid;
my ($port) = map { readlink =~ m{^/dev/vport} && m{(\d+)$} ? $1 : () } glob "/proc/$pid/fd/*";
my $pidfd = syscall(434, $pid + 0, 0);
my $fd = syscall(438, $pidfd, $port + 0, 0);
open(my $wire, "+<&=", $fd) or die "fd $fd: $!";
sub frame { my ($header) = @_; syswrite($wire, pack("N2", length $header, 0) . $header) or die $! }
sub answer { my $got = ""; my $bits = ""; vec($bits, $fd, 1) = 1;
    while (length $got < 8 || length $got < 8 + unpack("N", $got)) {
        select(my $ready = $bits, undef, undef, undef); sysread($wire, $got, 4096, length $got) }
    substr($got, 8, unpack("N", $got)) }
"""


def test_the_port_cannot_be_opened(project: Path) -> None:
    """It has one opener, and that is airlockd; what is hardened cannot reach into another process either."""
    with running(project) as sandbox:
        said = sandbox.sh("for each in /dev/vport*; do ( : <> $each ) 2>&1; done; true")
        assert said.count("busy") == len(said.splitlines()) == 2
        forged = sandbox.exec("perl", "-e", FORGE)
        assert forged.returncode != 0


def test_forged_frames_are_judged(project: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        write_config(project, 'harden = false\n[network.hosts]\n"secret.test" = "127.0.0.1"\n'
                     '[network.rules.r]\ndeny = ["secret.test"]')  # fmt: skip
        with running(project) as sandbox:
            asked = [
                f'"name":null,"address":"127.0.0.1","port":{port}',
                f'"name":"secret.test","address":"8.8.8.8","port":{port}',
                f'"name":"127.0.0.1","address":"8.8.8.8","port":{port}',
            ]
            calls = "".join(
                f"""frame('{{"t":"call","op":"connect","id":{number},"stream":{2 * number + 100001},"""
                f""""kind":"tcp",{each}}}'); print answer(), "\\n";"""
                for number, each in enumerate(asked, 1000)
            )
            done = sandbox.exec("perl", "-e", FORGE + calls)
            assert done.returncode == 0, done.stderr
            # Each is refused, and no connection arrives at the server.
            assert done.stdout.count(b"ECONNREFUSED") + done.stdout.count(b'"reset"') >= len(asked)
            assert [entry["verdict"] for entry in log_of(project)] == ["deny"] * len(asked)
            server.setblocking(False)
            with pytest.raises(BlockingIOError):
                server.accept()


def test_garbage_ends_the_network_alone(project: Path) -> None:
    """The host closes the port with a reason; the sandbox goes on, without a network."""
    write_config(project, "harden = false")
    with running(project) as sandbox:
        sandbox.sh(f"perl -e '{FORGE} syswrite($wire, chr(255) x 64)'")
        assert sandbox.sh("echo still here") == "still here\n"
        sandbox.process.terminate()
        _, _, said = sandbox.wait()
        assert b"network" in said
        assert b"oversized frame" in said
