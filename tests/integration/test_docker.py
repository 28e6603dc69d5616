"""Docker and Podman inside the sandbox: the shipped recipes and example, real containers, limits, what is kept.

Images are made of a static busybox, or come from a registry on the host. One sandbox with one daemon has nearly all of
the tests: under TCG a daemon's start is what takes the time.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from http.server import ThreadingHTTPServer
from typing import TYPE_CHECKING
from urllib.request import urlopen

import pytest
from containers import BOX, EXAMPLE, IMPORT, write_project
from network_world import Handler, serving_http
from registry import NAME, serving_registry
from sandboxes import COMMAND, log_of, running
from servers import free_port
from watcher import WATCH

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from conftest import Airlock
    from registry import Registry
    from sandboxes import Running

LARGE = 200 << 20
METADATA = "169.254.169.254"
PODMAN = f"""
{BOX} tar -C ~/box -c . | podman import -q - box >/dev/null
podman info --format '{{{{.Store.GraphDriverName}}}} {{{{.Host.Security.Rootless}}}}'
podman run --rm box sh -c "id -u; wget -qO- $URL"
mkdir ~/context
printf 'FROM box\\nRUN echo built >/tmp/file\\n' >~/context/Containerfile
podman build -q --network none -t built ~/context >/dev/null
podman run --rm --network none built cat /tmp/file
findmnt -n -o FSTYPE -T ~/.local/share/containers
"""
PODMAN_AS_ROOT = f"""
{BOX} tar -C ~/box -c . | podman import -q - box >/dev/null
podman run --rm --memory 64m --cpus 0.5 --pids-limit 20 box sh -c '
    cd /sys/fs/cgroup; cat memory.max cpu.max pids.max
    dd if=/dev/zero of=/dev/null bs=100M count=1 2>/dev/null || echo dd $?
'
findmnt -n -o FSTYPE /var/lib/containers
"""
NESTED = 'unshare -m -p -f sh -c "mount -t tmpfs none /tmp && echo pid \\$\\$"'
NO_DAEMON = "[daemons.dockerd]\nenabled = false\n"
# The example's script, with another setting of the daemon than that of the recipe.
BY_HAND = """
mkdir -p /etc/docker
echo '{"userland-proxy": false}' >/etc/docker/daemon.json
exec ./start-docker.sh "$@"
"""
# Beside the example's compose file.
NETWORKS = """
name: networks
services:
  web:
    image: box
    command: [sh, -c, "mkdir /w; echo from web >/w/index.html; httpd -p 8001 -h /w; exec httpd -f -p 8002 -h /w"]
    ports: ["8001:8001", "8002:8002"]
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
    """The shipped example, with one more compose file."""
    path = tmp_path_factory.mktemp("project") / "example"
    shutil.copytree(EXAMPLE, path)
    (path / "networks.yaml").write_text(NETWORKS)
    return path


@pytest.fixture(scope="module")
def server() -> Iterator[int]:
    """The port of a web server on the host's loopback."""
    with serving_http(ThreadingHTTPServer(("127.0.0.1", 0), Handler)) as port:
        yield port


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory, need: Callable[[str], Path]) -> Iterator[Registry]:
    """A registry on the host's loopback."""
    with serving_registry(tmp_path_factory.mktemp("registry"), need) as registry:
        yield registry


@pytest.fixture(scope="module")
def local(project: Path) -> Callable[[str], int]:
    """Writes what a test adds to the example's config; gives the host's port that is the sandbox's 8000."""
    port = free_port()

    def write(text: str) -> int:
        (project / "airlock.local.toml").write_text(
            f"""
            [network.hosts]
            "{NAME}" = "127.0.0.1"
            "allowed.test" = "127.0.0.1"
            "denied.test" = "127.0.0.1"
            [network.rules.no]
            deny = ["denied.test"]
            # Port 8000 of the host may be somebody else's.
            [network.ports.web]
            enabled = false
            [network.ports.test]
            guest = ["{port}:8000"]
            {text}
            """
        )
        return port

    return write


@pytest.fixture(scope="module")
def port(local: Callable[[str], int]) -> int:
    """The host's port that is the sandbox's 8000."""
    return local("[vm]\ncpus = 2")


@pytest.fixture(scope="module")
def sandbox(project: Path, port: int) -> Iterator[Running]:
    """With nothing of Docker written but the image: the daemon is up when the command runs."""
    at_once = f'({IMPORT}; docker run --rm box true) >&2; exec "$@"'
    with running(project, through=("sh", "-ec", at_once, "sh")) as sandbox:
        yield sandbox


def page(port: int) -> str:
    """What the example's web server says to the host."""
    with urlopen(f"http://127.0.0.1:{port}/") as answer:
        said: str = answer.read().decode()
    return said


def test_a_container_runs_and_the_daemon_is_as_it_should_be(sandbox: Running) -> None:
    # The command that asks for a privileged one is hardened; the daemon that makes it is not.
    assert sandbox.sh(f"docker run --rm --privileged box sh -c '{NESTED}'") == "pid 1\n"
    info = json.loads(sandbox.sh("docker info --format '{{json .}}'"))
    assert (info["Driver"], dict(info["DriverStatus"])["Backing Filesystem"]) == ("overlay2", "extfs")
    assert any("seccomp" in option for option in info["SecurityOptions"])
    assert (info["CgroupVersion"], info["DockerRootDir"]) == ("2", "/var/lib/docker")
    # Docker misses nothing.
    assert not info["Warnings"]
    # The recipe's 2 GB, less what the kernel takes.
    assert 1_800_000_000 < info["MemTotal"] <= 2 << 30
    assert sandbox.sh(
        "findmnt -n -o FSTYPE /var/lib/docker; ls -d /airlock/disk/docker/overlay2"
    ).split() == [
        "ext4",
        "/airlock/disk/docker/overlay2",
    ]


def test_who_is_in_the_group_may_use_it(sandbox: Running) -> None:
    as_user = "setpriv --reuid games --regid games --init-groups docker ps"
    assert sandbox.exec("sh", "-c", as_user).returncode == 1
    sandbox.sh(f"usermod -aG docker games; {as_user}")


def test_limits_are_enforced(sandbox: Running) -> None:
    # What starts a container has a dozen threads, which count.
    limits = "--memory 64m --memory-swap 64m --cpus 0.5 --pids-limit 30"
    # More memory than there may be ends dd, work in one go is held up, and there are no more than 30 processes.
    script = """
        cd /sys/fs/cgroup
        cat memory.max cpu.max pids.max
        dd if=/dev/zero of=/dev/null bs=100M count=1 2>/dev/null || echo dd $?
        dd if=/dev/zero of=/dev/null bs=1M count=2000 2>/dev/null
        grep nr_throttled cpu.stat
        for n in $(seq 31); do sleep 100 & done
    """
    done = sandbox.exec("sh", "-c", f"docker run --rm {limits} box sh -c '{script}'")
    said = done.stdout.decode().split()
    assert said[:6] == [str(64 << 20), "50000", "100000", "30", "dd", "137"], done.stderr
    assert said[6] == "nr_throttled"
    assert int(said[7]) > 0
    assert b"fork" in done.stderr


def test_programs_in_a_container_hear_of_changes(sandbox: Running, project: Path) -> None:
    """With the guest's own perl, in a directory of the project."""
    (project / "app").mkdir()
    (project / "app/file").touch()
    (project / "watch.pl").write_text(WATCH)
    mounts = ["/usr:/usr:ro", "/usr/lib:/lib:ro", "/usr/lib64:/lib64:ro", f"{project}/watch.pl:/watch.pl:ro"]
    options = [option for mount in (*mounts, f"{project}/app:/app") for option in ("-v", mount)]
    argv = [
        "docker",
        "run",
        "--rm",
        "-e",
        "ALSO=4",
        *options,
        "box",
        "perl",
        "/watch.pl",
        "/app",
        "/app/file",
    ]
    watcher = subprocess.Popen([COMMAND, "exec", *argv], cwd=project, stdout=subprocess.PIPE, text=True)
    assert watcher.stdout is not None
    lines = (line.strip() for line in watcher.stdout)
    assert next(lines) == "watching"
    (project / "app/file").write_text("of the host")
    assert [next(lines), next(lines)] == ["/app file 4", "/app/file - 4"]
    sandbox.sh("echo own >app/new")
    assert [next(lines), next(lines)] == ["/app new 100", "/app new 2"]
    (project / "app/end").touch()
    assert (list(lines), watcher.wait()) == ([], 0)


def test_buildkit_keeps_the_capabilities_of_files(sandbox: Running) -> None:
    done = sandbox.exec("sh", "-euc", BUILD, input=DOCKERFILE.encode())
    assert done.returncode == 0, done.stderr.decode()
    assert done.stdout.decode().split() == ["/bin/tool", "cap_net_raw=ep"]


def test_containers_reach_what_the_policy_allows(sandbox: Running, project: Path, server: int) -> None:
    before = len(log_of(project))
    # On Docker's own bridge, which has no IPv6.
    asked = f"wget -qO- http://allowed.test:{server}/; test ! -e /proc/net/if_inet6 || ! grep -v lo /proc/net/if_inet6"
    denied = f"for bad in denied.test:{server} {METADATA}; do wget -qO- http://$bad/ 2>&1; done; true"
    said = sandbox.sh(f"docker run --rm box sh -c '{asked}; {denied}'").splitlines()
    assert said[0] == "hello"
    assert [line.rpartition(": ")[2] for line in said[1:]] == ["Connection refused"] * 2
    rules = [each["rule"] for each in log_of(project)[before:]]
    assert rules == ["hosts", "no: deny denied.test", "internal address (link-local)"]


def test_compose_connects_services_and_each_way_out(sandbox: Running, server: int) -> None:
    def inside(service: str, *script: str) -> list[str]:
        # One container's exec for all that is asked there; what fails is part of the answer.
        lines = "; ".join(f"{line} 2>&1 || echo failed" for line in script)
        done = sandbox.exec("docker", "exec", f"networks-{service}-1", "sh", "-c", lines)
        assert done.returncode == 0, done.stderr
        return done.stdout.decode().splitlines()

    fetch = "wget -q -T 20 -O-"
    sandbox.sh("docker compose -f networks.yaml up -d --quiet-pull 2>&1")
    address = sandbox.sh(
        "docker inspect -f '{{(index .NetworkSettings.Networks \"networks_default\").GlobalIPv6Address}}'"
        " networks-web-1"
    ).strip()
    assert address.startswith("fd00:1::")
    # By name on the bridge, by IPv6 too; and out, with DNS options of its own.
    by_name, by_ipv6, options, allowed, denied, failed = inside(
        "other",
        f"{fetch} http://web:8001/",
        f"{fetch} http://[{address}]:8002/",
        "grep ^options /etc/resolv.conf",
        f"{fetch} http://allowed.test:{server}/",
        f"{fetch} http://denied.test:{server}/",
    )
    assert (by_name, by_ipv6, allowed) == ("from web", "from web", "hello")
    assert options.split() == ["options", "timeout:3", "ndots:0"]
    assert denied.endswith("Connection refused")
    assert failed == "failed"
    # On a network that leads nowhere else.
    by_name, *_, failed = inside(
        "hidden", f"{fetch} http://web:8002/", f"{fetch} http://allowed.test:{server}/"
    )
    assert (by_name, failed) == ("from web", "failed")
    # Two ports, both published.
    assert sandbox.sh("curl -sS http://127.0.0.1:8001/ http://127.0.0.1:8002/") == "from web\n" * 2


def test_images_come_from_a_registry_and_go_there(
    sandbox: Running, registry: Registry, project: Path
) -> None:
    content = os.urandom(LARGE)
    digest = registry.image("large", content)
    shutil.copy(registry.authority, project / "ca.crt")
    there, denied = f"{NAME}:{registry.port}", f"denied.test:{registry.port}"
    sandbox.sh(f"mkdir -p /etc/docker/certs.d/{there}; cp ca.crt /etc/docker/certs.d/{there}/")
    # Each layer is verified on its way; the digest is that of the whole.
    sandbox.sh(f"docker pull -q {there}/large")
    found = json.loads(sandbox.sh(f"docker image inspect {there}/large"))[0]
    assert found["RepoDigests"] == [f"{there}/large@{digest}"]
    assert found["Size"] == LARGE
    sandbox.sh(
        f"docker tag box {there}/box; docker push -q {there}/box; docker rmi {there}/box {there}/large"
    )
    assert registry.ask("GET", "/v2/box/manifests/latest").status == 200
    assert sandbox.sh(f"docker run --rm {there}/box sh -c 'echo pulled'") == "pulled\n"
    for command in (f"pull {denied}/large", f"push {denied}/box"):
        done = sandbox.exec("sh", "-c", f"docker tag box {denied}/box; docker {command}")
        assert done.returncode == 1
        assert b"connection refused" in done.stderr
    refused = [
        each
        for each in log_of(project)
        if each.get("name") == "denied.test" and each["port"] == registry.port
    ]
    assert refused
    assert {each["state"] for each in refused} == {"denied"}


def test_the_example_has_a_page_for_the_host(sandbox: Running, port: int) -> None:
    sandbox.sh("docker compose up -d --build 2>&1")
    assert "<p>This is visit 1.</p>" in page(port)
    assert "<p>This is visit 2.</p>" in page(port)


def test_what_docker_has_is_kept_and_a_daemon_by_hand_finds_it(
    sandbox: Running, project: Path, local: Callable[[str], int], airlock: Airlock
) -> None:
    assert sandbox.stop() == 143
    # Another image resets the root, but not this; it has no daemon, and the disk is no stranger to it.
    local('[vm]\nimage = "base"\nmemory = "512 MB"')
    done = airlock("start", "-q", "--", "ls", "/airlock/disk/docker/overlay2", cwd=project)
    assert done.returncode == 0, done.stderr
    assert done.stdout
    # Back, and by hand, without what the recipe declares.
    port = local(f"[vm]\ncpus = 2\nharden = false\n{NO_DAEMON}[disk.bind.docker]\nenabled = false")
    with running(project, through=("sh", "-ec", BY_HAND, "sh")) as by_hand:
        # Images, build cache, and the volume with the visits.
        assert "box" in by_hand.sh("docker images --format '{{.Repository}}'").split()
        built = by_hand.sh("docker compose build --progress plain 2>&1")
        assert re.search(r"RUN .*--install.*\n#\d+ CACHED", built), built
        by_hand.sh("docker compose up -d 2>&1")
        # No proxy listens: the kernel leads connections to the container.
        assert by_hand.exec("pgrep", "docker-proxy").returncode == 1
        assert "<p>This is visit 3.</p>" in page(port)
        # Who is not hardened may do what the daemon may.
        assert by_hand.sh(f"unshare --user --map-root-user {NESTED}") == "pid 1\n"
        assert by_hand.sh(f"docker run --rm --privileged box {NESTED}") == "pid 1\n"


def test_a_hardened_daemon_fails_and_says_what_to_change(airlock: Airlock, tmp_path: Path) -> None:
    text = "[daemons.dockerd]\nharden = true\nmax_restarts = 1"
    write_project(tmp_path, text, str(EXAMPLE / "sandbox.toml"))
    done = airlock("start", "--", "true", cwd=tmp_path)
    assert done.returncode == 1
    assert b"say [daemons.dockerd] harden = false" in done.stderr


def test_podman_for_an_ordinary_user_and_for_root(airlock: Airlock, tmp_path: Path, server: int) -> None:
    text = f'[network.hosts]\n"allowed.test" = "127.0.0.1"\n[env]\nURL = "http://allowed.test:{server}/"'
    write_project(tmp_path, text, "podman", vm='user = "podman"')
    # The project is root's alone.
    home = ("--sandbox-cwd", "/home/podman")
    done = airlock("start", "-q", *home, "--", "sh", "-euc", PODMAN, cwd=tmp_path)
    assert done.returncode == 0, done.stderr.decode()
    assert done.stdout.decode().split() == ["overlay", "true", "0", "hello", "built", "ext4"]
    # It is still there.
    done = airlock(
        "start",
        "-q",
        *home,
        "--",
        *["podman", "run", "--rm", "--network", "none", "built", "cat", "/tmp/file"],
        cwd=tmp_path,
    )
    assert done.stdout == b"built\n", done.stderr
    # For root, there are limits too.
    write_project(tmp_path, "", "podman", vm="")
    done = airlock("start", "-q", "--", "sh", "-euc", PODMAN_AS_ROOT, cwd=tmp_path)
    said = done.stdout.decode().split()
    assert said == [str(64 << 20), "50000", "100000", "20", "dd", "137", "ext4"], done.stderr.decode()


def test_packet_filters_that_come_and_go_while_another_cpu_has_packets_panic_nothing(
    airlock: Airlock, project: Path
) -> None:
    """The kernel's code is patched for the first filter and for the last; under TCG that went wrong within seconds."""
    write_project(project, NO_DAEMON, "docker", "harden = false")
    packets = (
        'perl -e \'use IO::Socket; my $s = IO::Socket::INET->new(Proto => "udp", PeerAddr => "127.0.0.1:9");'
    )
    packets += " send $s, 1, 0 while 1' &"
    # Each network namespace goes with its filters.
    script = (
        f"{packets} for n in $(seq 60); do unshare -n iptables -w -A INPUT -j ACCEPT; done; echo survived"
    )
    done = airlock("start", "--", "sh", "-ec", script, cwd=project)
    assert (done.returncode, done.stdout) == (0, b"survived\n"), done.stderr
