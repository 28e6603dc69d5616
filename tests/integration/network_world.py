"""What sandboxes of tests can reach, and how their programs and tests look at it."""

from __future__ import annotations

import hashlib
import subprocess
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import count
from typing import TYPE_CHECKING, Any

from sandboxes import COMMAND, Running, log_of

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


METADATA = "169.254.169.254"

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
def serving_http(server: ThreadingHTTPServer) -> Iterator[int]:
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server.server_address[1]
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


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
        return (done.stdout + done.stderr).decode()
