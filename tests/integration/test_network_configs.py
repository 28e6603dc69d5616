"""Networks as configs ask for them, each in a sandbox of its own; test_network.py has what the default does."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from http.server import ThreadingHTTPServer
from typing import TYPE_CHECKING

import pytest
from network_world import METADATA, TRY, Handler, numbers_digest, serving_http
from sandboxes import COMMAND, log_of, running, write_config

if TYPE_CHECKING:
    from pathlib import Path

    from conftest import Airlock

pytestmark = pytest.mark.usefixtures("base_image")


def test_deny_by_default_with_names_that_do_not_exist(airlock: Airlock, project: Path) -> None:
    (project / "try.pl").write_text(TRY)
    with serving_http(ThreadingHTTPServer(("127.0.0.1", 0), Handler)) as web:
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


def test_root_and_containers_find_no_other_way(project: Path) -> None:
    """Without hardening: addresses, routes, interfaces, a namespace as Docker makes it, the port, the device."""
    (project / "try.pl").write_text(TRY)
    (project / "masquerade.toml").write_text(RECIPE)
    with serving_http(ThreadingHTTPServer(("127.0.0.1", 0), Handler)) as web:
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
            size = 3_000_000
            said = sandbox.sh(
                "iptables -t nat -A POSTROUTING -s 172.30.0.0/24 ! -o v0 -j MASQUERADE;"
                f"ip netns exec inner curl -sS http://{here}/{size} | sha256sum"
            )
            assert said == f"{numbers_digest(size)}  -\n"
            # The port has one opener, which is airlockd.
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


@pytest.mark.parametrize(
    ("guest", "why"),
    [
        ("/etc", "/etc: Address already in use"),
        ("/etc/passwd/x", "/etc/passwd/x: File exists"),
        (f"~/{'x' * 105}", f"/root/{'x' * 105}: File name too long"),
    ],
)
def test_a_place_where_no_socket_can_be_is_told(
    airlock: Airlock, project: Path, guest: str, why: str
) -> None:
    write_config(project, f'[network.sockets.s]\nhost = "/none:{guest}"')
    done = airlock("start", "--", "true", cwd=project)
    assert done.returncode == 1
    assert done.stderr.decode().endswith(
        f"Error: {project}/airlock.toml:6:1: the sandbox cannot listen for [network]: {why}\n"
        "  hint: a socket can always be in /run, as in /run/NAME.sock\n"
    )


def test_a_socket_of_the_host_is_not_put_over_itself(airlock: Airlock, project: Path) -> None:
    """It was deleted. What the home is only the sandbox knows."""
    path = project / "mine.sock"
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(os.fspath(path))
        for guest, code, why in (
            ("", 2, f"socket s: {path} lies in {project} of the sandbox, which is a directory of the host"),
            (
                ":~/mine.sock",
                1,
                "the sandbox cannot listen for [network]: /root/mine.sock: Operation not supported",
            ),
        ):
            write_config(
                project,
                f'[mounts.home]\nsource = "."\ntarget = "/root"\n[network.sockets.s]\nhost = "{path}{guest}"',
            )
            done = airlock("start", "--", "true", cwd=project)
            assert done.returncode == code
            assert f"{project}/airlock.toml:9:1: {why}\n".encode() in done.stderr
            assert path.is_socket()


def test_a_busy_port_fails_the_start(airlock: Airlock, project: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as busy:
        port = busy.getsockname()[1]
        write_config(project, f"[network.ports.web]\nguest = [{port}]")
        done = airlock("start", "--", "true", cwd=project)
    assert done.returncode == 2
    assert f"port {port} of 127.0.0.1, which [network.ports.web] asks for, is in use".encode() in done.stderr
