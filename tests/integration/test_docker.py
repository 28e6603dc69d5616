"""Docker and Podman inside the sandbox: the shipped recipes, real containers, limits, what is kept and for how long.

Images are made of a static busybox, so no registry is needed.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest
from sandboxes import running

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from conftest import Airlock
    from sandboxes import Running

# The shipped recipes with what images can be made of. Both in one, because building a root takes more than a minute.
RECIPE = """
[recipe]
name = "containers-test"
extends = ["podman", "docker"]
[rootfs]
packages = ["busybox-static", "libcap2-bin"]
"""
BOX = """
mkdir -p ~/box/bin ~/box/tmp
cp /bin/busybox ~/box/bin/
for name in sh cat cp dd id mount sleep true unshare; do ln -sf busybox ~/box/bin/$name; done
"""
IMPORT = f"{BOX} tar -C ~/box -c . | docker import - box"
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
# The manual way of the page that this replaces.
START_DOCKER = """\
#!/bin/bash
mkdir -p /airlock/disk/docker /var/lib/docker
mount --bind /airlock/disk/docker /var/lib/docker

dockerd &>/var/log/dockerd.log &
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
    """A project with the recipe; all tests share its disk."""
    path = tmp_path_factory.mktemp("docker")
    (path / "containers.toml").write_text(RECIPE)
    (path / "start-docker.sh").write_text(START_DOCKER)
    (path / "start-docker.sh").chmod(0o755)
    write(path, "")
    return path


def write(project: Path, text: str, image: str = "./containers.toml", vm: str = "harden = true") -> None:
    (project / "airlock.toml").write_text(f'[vm]\nimage = "{image}"\ncpus = 2\n{vm}\n{text}\n')


@pytest.fixture(scope="module")
def sandbox(project: Path) -> Iterator[Running]:
    """With nothing written but the image: the daemon is up when the command runs."""
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


def test_images_and_volumes_survive_restarts_and_another_image(
    sandbox: Running, project: Path, airlock: Airlock
) -> None:
    sandbox.sh("docker run --rm -v kept:/tmp box sh -c 'echo volume >/tmp/file'; docker tag box kept")
    assert sandbox.stop() == 143
    # Another image resets the root, but not this; it has no daemon, and the disk is no stranger to it.
    write(project, "", "base", vm='memory = "512 MB"')
    done = airlock("start", "-q", "--", "ls", "/airlock/disk/docker/overlay2", cwd=project)
    assert done.returncode == 0, done.stderr
    assert done.stdout
    # Back, and by hand, without what the recipe declares.
    write(project, f"{NO_DAEMON}[disk.bind.docker]\nenabled = false", vm="harden = false")
    script = "docker images --format '{{.Repository}}'; docker run --rm -v kept:/tmp kept cat /tmp/file"
    done = airlock("start", "-q", "--", "./start-docker.sh", "sh", "-ec", script, cwd=project)
    assert done.returncode == 0, done.stderr.decode()
    *images, volume = done.stdout.decode().split()
    assert {"box", "kept"} <= set(images)
    assert volume == "volume"


def test_a_hardened_daemon_fails_and_says_what_to_change(project: Path, airlock: Airlock) -> None:
    write(project, "[daemons.dockerd]\nharden = true\nmax_restarts = 1")
    done = airlock("start", "--", "true", cwd=project)
    assert done.returncode == 1
    assert b"say [daemons.dockerd] harden = false" in done.stderr


def test_podman_for_an_ordinary_user(project: Path, airlock: Airlock) -> None:
    write(project, NO_DAEMON, vm='harden = false\nuser = "podman"')
    # The project is root's alone.
    home = ("--sandbox-cwd", "/home/podman")
    done = airlock("start", "-q", *home, "--", "sh", "-euc", PODMAN, cwd=project)
    assert done.returncode == 0, done.stderr.decode()
    assert done.stdout.decode().split() == ["overlay", "true", "0", "built", "ext4"]
    # It is still there, as is the device that the user's own network will need.
    script = "podman run --rm --network none built cat /tmp/file; test -w /dev/net/tun && echo tun"
    done = airlock("start", "-q", *home, "--", "sh", "-euc", script, cwd=project)
    assert done.stdout.decode().split() == ["built", "tun"], done.stderr.decode()
