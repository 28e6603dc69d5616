"""The end of a sandbox: everybody is told first, and what they need for their last words is still there."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING

import pytest
from sandboxes import running, write_config

if TYPE_CHECKING:
    from pathlib import Path

    from conftest import Airlock

pytestmark = pytest.mark.usefixtures("base_image")

# Asks the host only once it is told to end, and is not done before it has the answer.
LAST_WORD = r"""
use IO::Socket::INET;
$SIG{TERM} = sub {
    my $host = IO::Socket::INET->new(PeerAddr => "host.test:PORT") or die "connect: $@";
    print $host "ending\n"; $host->flush;
    print $host "answered ", scalar <$host>; $host->flush;
    exit 0;
};
$| = 1; print "armed\n";
sleep 1 while 1;
"""


@pytest.fixture
def host() -> socket.socket:
    """A server of this machine."""
    return socket.create_server(("127.0.0.1", 0))


def use(project: Path, host: socket.socket) -> int:
    """Let the sandbox reach it as host.test; gives its port."""
    write_config(
        project,
        """
        [network.hosts]
        "host.test" = "127.0.0.1"
        [network.rules.r]
        allow = ["host.test"]
        """,
    )
    return int(host.getsockname()[1])


def test_who_is_told_to_end_still_has_the_network(project: Path, host: socket.socket) -> None:
    port = use(project, host)
    (project / "last.pl").write_text(LAST_WORD.replace("PORT", str(port)))
    with host, running(project, "perl last.pl & wait") as sandbox:
        assert sandbox.stdout.readline() == b"armed\n"
        # Ends the shell, and with it the sandbox.
        sandbox.process.terminate()
        host.settimeout(60)
        client, _ = host.accept()
        with client, client.makefile("rw") as stream:
            client.settimeout(60)
            assert stream.readline() == "ending\n"
            stream.write("well\n")
            stream.flush()
            assert stream.readline() == "answered well\n"
        assert sandbox.wait()[0] == 143


def test_a_signal_to_everybody_ends_no_network(airlock: Airlock, project: Path, host: socket.socket) -> None:
    port = use(project, host)
    # Those of faults, of terminals and of real time too; 32 and 33 are the C library's own.
    signals = " ".join(str(each) for each in range(1, 65) if each not in (9, 17, 19, 32, 33))
    kill = f"for each in {signals}; do kill -$each -1; kill -$each 1; done"
    script = f"trap '' {signals}; {kill}; exec 3<>/dev/tcp/host.test/{port} && echo connected"
    with host:
        done = airlock("start", "--", "bash", "-c", script, cwd=project)
    assert (done.returncode, done.stdout) == (0, b"connected\n"), done.stderr
