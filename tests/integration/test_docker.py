"""Docker and Podman inside the sandbox: the shipped recipes, real containers, limits, what is kept and for how long.

Images are made of a static busybox, so no registry is needed.
"""

from __future__ import annotations

import json
import os
import socket
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import TYPE_CHECKING
from urllib.request import urlopen

import pytest
from containers import BOX, IMPORT, write_project
from sandboxes import running

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from conftest import Airlock
    from sandboxes import Running

PODMAN = f"""
{BOX} tar -C ~/box -c . | podman import -q - box >/dev/null
podman info --format '{{{{.Store.GraphDriverName}}}} {{{{.Host.Security.Rootless}}}}'
podman run --rm --network none box id -u
mkdir ~/context
printf 'FROM box\\nRUN echo built >/tmp/file\\n' >~/context/Containerfile
podman build -q --network none -t built ~/context >/dev/null
podman run --rm --network none built cat /tmp/file
findmnt -n -o FSTYPE -T ~/.local/share/containers
"""
NO_DAEMON = "[daemons.dockerd]\nenabled = false\n"
COMPOSE = """
services:
  web:
    image: box
    command: [sh, -c, "mkdir /w; echo from web >/w/index.html; httpd -p 8001 -h /w; exec httpd -f -p 8000 -h /w"]
    ports: ["8000:8000", "8001:8001"]
    networks: [default, closed]
    init: true
  other:
    image: box
    command: [sleep, infinity]
    dns: [192.0.2.53]
    dns_search: [example.test]
    dns_opt: ["timeout:3"]
    init: true
  hidden:
    image: box
    command: [sleep, infinity]
    networks: [closed]
    init: true
networks:
  default:
    enable_ipv6: true
    ipam:
      config: [{ subnet: "fd00:1::/64" }]
  closed:
    internal: true
"""
# The manual way of the page that this replaces.
START_DOCKER = """\
#!/bin/bash
mkdir -p /airlock/disk/docker /var/lib/docker
mount --bind /airlock/disk/docker /var/lib/docker

dockerd --userland-proxy=false &>/var/log/dockerd.log &
while ! docker info &>/dev/null; do
    kill -0 $! || { cat /var/log/dockerd.log >&2; exit 1; }
    sleep 0.5
done
exec "$@"
"""
DOCKERFILE = """\
FROM tools AS build
RUN cp /bin/busybox /bin/tool && setcap cap_net_raw=ep /bin/tool
FROM tools
COPY --from=build /bin/tool /bin/tool
"""
# The image of a build is box with the guest's own tools for capabilities.
BUILD = """
cp -a /root/box /root/tools
for file in $(which setcap getcap) $(ldd $(which setcap) | grep -o '/[^ ]*'); do
    mkdir -p /root/tools$(dirname $file)
    cp -L $file /root/tools$file
done
tar -C /root/tools -c . | docker import --change 'ENV PATH=/bin:/sbin:/usr/bin:/usr/sbin' - tools >&2
mkdir /root/context
cat >/root/context/Dockerfile
docker build -q -t built /root/context >&2
docker run --rm built getcap /bin/tool
"""


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project with the recipe; tests of images that are kept share its disk."""
    path = tmp_path_factory.mktemp("project") / "docker"
    path.mkdir()
    (path / "start-docker.sh").write_text(START_DOCKER)
    (path / "start-docker.sh").chmod(0o755)
    (path / "compose.yaml").write_text(COMPOSE)
    return path


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """The port of a web server on the host's loopback."""
    directory = tmp_path_factory.mktemp("www")
    (directory / "index.html").write_text("from the host\n")
    handler = partial(SimpleHTTPRequestHandler, directory=os.fspath(directory))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = Thread(target=server.serve_forever)
        thread.start()
        yield server.server_address[1]
        server.shutdown()
        thread.join()


@pytest.fixture(scope="module")
def port() -> int:
    """A port of the host that is free."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        number: int = free.getsockname()[1]
        return number


@pytest.fixture(scope="module")
def sandbox(project: Path, port: int) -> Iterator[Running]:
    """With nothing of Docker written but the image: the daemon is up when the command runs."""
    write_project(
        project,
        f"""
        [network.hosts]
        "allowed.test" = "127.0.0.1"
        "denied.test" = "127.0.0.1"
        [network.rules.no]
        deny = ["denied.test"]
        [network.ports.web]
        guest = ["{port}:8000"]
        """,
    )
    with running(project) as sandbox:
        sandbox.sh(IMPORT)
        yield sandbox


def test_a_container_runs_and_the_daemon_is_as_it_should_be(sandbox: Running) -> None:
    assert sandbox.sh("docker run --rm box sh -c 'echo in a container'") == "in a container\n"
    info = json.loads(sandbox.sh("docker info --format '{{json .}}'"))
    assert (info["Driver"], dict(info["DriverStatus"])["Backing Filesystem"]) == ("overlay2", "extfs")
    assert any("seccomp" in option for option in info["SecurityOptions"])
    assert (info["CgroupVersion"], info["DockerRootDir"]) == ("2", "/var/lib/docker")
    # The recipe's 2 GB, less what the kernel takes.
    assert 1_800_000_000 < info["MemTotal"] <= 2 << 30
    assert sandbox.sh(
        "findmnt -n -o FSTYPE /var/lib/docker; ls -d /airlock/disk/docker/overlay2"
    ).split() == [
        "ext4",
        "/airlock/disk/docker/overlay2",
    ]


def test_limits_are_enforced(sandbox: Running) -> None:
    limits = "--memory 64m --memory-swap 64m --cpus 0.5 --pids-limit 5"
    files = "cd /sys/fs/cgroup; cat memory.max cpu.max pids.max"
    assert sandbox.sh(f"docker run --rm {limits} box sh -c '{files}'").split() == [
        str(64 << 20), "50000", "100000", "5",
    ]  # fmt: skip
    done = sandbox.exec(
        "sh", "-c", f"docker run --rm {limits} box dd if=/dev/zero of=/dev/null bs=100M count=1"
    )
    assert done.returncode == 137, done.stderr
    forks = "for n in 1 2 3 4 5 6 7; do sleep 100 & done"
    done = sandbox.exec("sh", "-c", f"docker run --rm {limits} box sh -c '{forks}'")
    assert b"fork" in done.stderr


def test_privileged_containers_and_namespaces_in_them(sandbox: Running) -> None:
    # The command that asks for them is hardened; the daemon that makes them is not.
    script = "mount -t tmpfs none /tmp && unshare -m -p -f sh -c 'echo pid $$'"
    done = sandbox.exec("docker", "run", "--rm", "--privileged", "box", "sh", "-c", script)
    assert (done.returncode, done.stdout) == (0, b"pid 1\n"), done.stderr
    done = sandbox.exec("docker", "run", "--rm", "box", "sh", "-c", script)
    assert done.returncode != 0
    assert b"permission denied" in done.stderr


def test_buildkit_keeps_the_capabilities_of_files(sandbox: Running) -> None:
    done = sandbox.exec("sh", "-euc", BUILD, input=DOCKERFILE.encode())
    assert done.returncode == 0, done.stderr.decode()
    assert done.stdout.decode().split() == ["/bin/tool", "cap_net_raw=ep"]


def test_containers_reach_what_the_policy_allows(sandbox: Running, server: int) -> None:
    def fetch(name: str) -> tuple[int, bytes, bytes]:
        url = f"http://{name}:{server}/"
        done = sandbox.exec("docker", "run", "--rm", "box", "wget", "-q", "-O-", url)
        return done.returncode, done.stdout, done.stderr

    assert fetch("allowed.test") == (0, b"from the host\n", b"")
    code, _, said = fetch("denied.test")
    assert code == 1
    assert b"refused" in said


def test_compose_connects_services_each_other_and_the_host(sandbox: Running, server: int, port: int) -> None:
    def inside(service: str, *argv: str) -> tuple[int, bytes]:
        done = sandbox.exec("docker", "compose", "exec", "-T", service, *argv)
        return done.returncode, done.stdout

    def fetch(service: str, url: str) -> tuple[int, bytes]:
        return inside(service, "wget", "-q", "-T", "20", "-O-", url)

    sandbox.sh("docker compose up -d --quiet-pull 2>&1")
    # By name on the bridge, by IPv6 too, and on a network that leads nowhere else.
    assert fetch("other", "http://web:8000/") == (0, b"from web\n")
    address = sandbox.sh(
        "docker inspect -f '{{(index .NetworkSettings.Networks \"docker_default\").GlobalIPv6Address}}'"
        " $(docker compose ps -q web)"
    ).strip()
    assert address.startswith("fd00:1::")
    assert fetch("other", f"http://[{address}]:8001/") == (0, b"from web\n")
    assert fetch("hidden", "http://web:8000/") == (0, b"from web\n")
    assert fetch("hidden", f"http://allowed.test:{server}/")[0] != 0
    # Out, with DNS options of its own, and in from the host.
    assert inside("other", "grep", "-E", "^(search|options) ", "/etc/resolv.conf")[1].split() == [
        b"search", b"example.test", b"options", b"timeout:3", b"ndots:0",
    ]  # fmt: skip
    assert fetch("other", f"http://allowed.test:{server}/") == (0, b"from the host\n")
    assert fetch("other", f"http://denied.test:{server}/")[0] != 0
    with urlopen(f"http://127.0.0.1:{port}/") as answer:
        assert answer.read() == b"from web\n"
    assert sandbox.sh("curl -sS http://127.0.0.1:8001/") == "from web\n"
    sandbox.sh("docker compose down -t 1 2>&1")


def test_images_and_volumes_survive_restarts_and_another_image(
    sandbox: Running, project: Path, airlock: Airlock
) -> None:
    sandbox.sh("docker run --rm -v kept:/tmp box sh -c 'echo volume >/tmp/file'; docker tag box kept")
    assert sandbox.stop() == 143
    # Another image resets the root, but not this; it has no daemon, and the disk is no stranger to it.
    write_project(project, "", "base", vm='memory = "512 MB"')
    done = airlock("start", "-q", "--", "ls", "/airlock/disk/docker/overlay2", cwd=project)
    assert done.returncode == 0, done.stderr
    assert done.stdout
    # Back, and by hand, without what the recipe declares.
    write_project(project, f"{NO_DAEMON}[disk.bind.docker]\nenabled = false", vm="harden = false")
    script = """
        docker images --format '{{.Repository}}'
        docker run -d -v kept:/tmp -p 8000:8000 kept httpd -f -p 8000 -h /tmp >&2
        # No proxy listens for it here: the kernel leads it to the container.
        curl -sS --retry 50 --retry-connrefused http://127.0.0.1:8000/file
    """
    done = airlock("start", "-q", "--", "./start-docker.sh", "sh", "-ec", script, cwd=project)
    assert done.returncode == 0, done.stderr.decode()
    *images, volume = done.stdout.decode().split()
    assert {"box", "kept"} <= set(images)
    assert volume == "volume"


def test_a_hardened_daemon_fails_and_says_what_to_change(airlock: Airlock, tmp_path: Path) -> None:
    write_project(tmp_path, "[daemons.dockerd]\nharden = true\nmax_restarts = 1")
    done = airlock("start", "--", "true", cwd=tmp_path)
    assert done.returncode == 1
    assert b"say [daemons.dockerd] harden = false" in done.stderr


def test_podman_for_an_ordinary_user(airlock: Airlock, tmp_path: Path) -> None:
    write_project(tmp_path, NO_DAEMON, vm='harden = false\nuser = "podman"')
    # The project is root's alone.
    home = ("--sandbox-cwd", "/home/podman")
    done = airlock("start", "-q", *home, "--", "sh", "-euc", PODMAN, cwd=tmp_path)
    assert done.returncode == 0, done.stderr.decode()
    assert done.stdout.decode().split() == ["overlay", "true", "0", "built", "ext4"]
    # It is still there, as is the device that the user's own network will need.
    script = "podman run --rm --network none built cat /tmp/file; test -w /dev/net/tun && echo tun"
    done = airlock("start", "-q", *home, "--", "sh", "-euc", script, cwd=tmp_path)
    assert done.stdout.decode().split() == ["built", "tun"], done.stderr.decode()
