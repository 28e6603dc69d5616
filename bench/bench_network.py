"""airlock0 against QEMU's user-mode network (libslirp), in one guest: bytes each way, and connections, per second.

The machine gets a network card for this and nothing else. The two alternate, so that a busy machine slows both; ratios
of medians are the result. Connections come last: libslirp keeps those that are over for a while, and with them QEMU's
main loop, which serves airlock0 too, takes nearly twice the time for what is measured next.
"""

from __future__ import annotations

import argparse
import json
import lzma
import os
import platform
import socketserver
import statistics
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from typing import TYPE_CHECKING

from airlock_builder.build import build, plan
from airlock_runner.machine.qemu import find_qemu, qemu_version
from airlock_store.image import load_image
from airlock_store.store import Store

if TYPE_CHECKING:
    import socket

RESULTS = Path(__file__).parent / "results"
SIZE = 50_000_000
CONNECTIONS = 300
GOALS = {"up": 1.0, "down": 1.0, "connect": 0.5}
"""Of libslirp's figure, at least."""
MODULES = ("net/core/failover", "drivers/net/net_failover", "drivers/net/virtio_net")
START = """
import airlock_runner.machine.process as process
without = process.qemu_argv
card = ["-netdev", "user,id=card", "-device", "virtio-net-pci,netdev=card,disable-legacy=on"]
process.qemu_argv = lambda *arguments: [*without(*arguments), *card]
from airlock.main import main
main()
"""
CARD = """
import_module() { perl -e 'open my $f, "<", $ARGV[0]; syscall(313, fileno $f, my $no = "", 0) and die $!' $1; }
for each in failover net_failover virtio_net; do import_module ./$each.ko; done
ip link set eth0 up; ip address add 10.0.2.15/24 dev eth0
"""


def main() -> int:
    """Measure, print, write JSON; exit code 1 where a ratio misses its goal, which is never about seconds."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=5)
    runs = parser.parse_args().runs
    planned, store = plan("base"), Store.open()
    image = load_image(build(planned, store).image.path)
    (package,) = (step for step in planned.steps if step.name == "kernel-package")
    with tempfile.TemporaryDirectory() as directory:
        place = Path(directory)
        ports = {"up": serve(take), "down": serve(give), "connect": serve(greet)}
        prepare(place, store.path(package.key, package.name))
        rates = measure(place, ports, runs)
    return report(rates, runs, qemu_version(find_qemu(image.arch)))


def take(client: socket.socket) -> None:
    """Read to the end."""
    while client.recv(1 << 20):
        pass


def give(client: socket.socket) -> None:
    """Send until there is enough."""
    data = bytes(1 << 20)
    for _ in range(SIZE // len(data) + 1):
        client.sendall(data)


def greet(client: socket.socket) -> None:
    """One byte."""
    client.sendall(b"x")


def serve(talk: object) -> int:
    """A server on a port of 127.0.0.1 for as long as this process lives."""

    class Handler(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            try:
                assert callable(talk)
                talk(self.request)
            except OSError:
                # The guest has had enough.
                pass

    class Server(socketserver.ThreadingTCPServer):
        daemon_threads = True
        request_queue_size = 1024

    server = Server(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return int(server.server_address[1])


def prepare(place: Path, packages: Path) -> None:
    """A project with the generator, and with the modules of a network card, which images do without."""
    (place / "airlock.toml").write_text(
        '[vm]\nimage = "base"\nmemory = "512 MB"\ncpus = 2\nharden = false\n'
        '[network.rules.bench]\nallow = ["bench.test"]\n[network.hosts]\n"bench.test" = "127.0.0.1"\n'
    )
    source = Path(__file__).with_name("traffic.c")
    subprocess.run(["gcc", "-static", "-O2", "-o", place / "traffic", source], check=True)
    (package,) = (packages / "pool").glob("linux-image-[0-9]*.deb")
    unpacked = place / "package"
    subprocess.run(["dpkg-deb", "--extract", package, unpacked], check=True)
    for name in MODULES:
        (file,) = unpacked.glob(f"usr/lib/modules/*/kernel/{name}.ko.xz")
        (place / Path(name).with_suffix(".ko").name).write_bytes(lzma.decompress(file.read_bytes()))


def measure(place: Path, ports: dict[str, int], runs: int) -> dict[str, dict[str, list[float]]]:
    """Rates by what is measured and by network."""
    lines = [CARD, "bench=$(getent ahosts bench.test | head -1 | cut -d' ' -f1)"]
    lines += [
        f"echo {what} {network} $(./traffic {what} {host} {ports[what]} {count})"
        for what, count in (("up", SIZE), ("down", SIZE), ("connect", CONNECTIONS))
        for _ in range(runs)
        for network, host in (("airlock0", "$bench"), ("libslirp", "10.0.2.2"))
    ]
    command = [sys.executable, "-c", START, "start", "-q", "--cold", "--", "sh", "-ec", "\n".join(lines)]
    done = subprocess.run(command, cwd=place, stdout=subprocess.PIPE, text=True, check=True)
    rates: dict[str, dict[str, list[float]]] = {}
    for line in done.stdout.splitlines():
        what, network, rate = line.split()
        rates.setdefault(what, {}).setdefault(network, []).append(float(rate))
    return rates


def report(rates: dict[str, dict[str, list[float]]], runs: int, qemu: str) -> int:
    """Print the table, write it as JSON, and judge."""
    print(f"{'':8}  {'airlock0':>9}  {'libslirp':>9}  ratio  goal   (medians of {runs}; MB/s, connections/s)")
    ratios = {}
    for what, found in rates.items():
        ours, theirs = (statistics.median(found[network]) for network in ("airlock0", "libslirp"))
        ratios[what] = ours / theirs
        unit = 1 if what == "connect" else 1_000_000
        print(f"{what:8}  {ours / unit:9.1f}  {theirs / unit:9.1f}  {ratios[what]:5.2f}  >= {GOALS[what]}")
    result = {
        "rates": rates, "ratios": {what: round(ratio, 3) for what, ratio in ratios.items()}, "runs": runs,
        "accelerator": "tcg", "qemu": qemu, "cpus": os.cpu_count(), "machine": platform.machine(),
    }  # fmt: skip
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "network.json").write_text(json.dumps(result, indent=2) + "\n")
    missed = [what for what, ratio in ratios.items() if ratio < GOALS[what]]
    if missed:
        print(f"missed: {', '.join(missed)}")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
