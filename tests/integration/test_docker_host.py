"""The host's Docker from a sandbox, over its forwarded socket: a real daemon, and what people do with one."""

from __future__ import annotations

import hashlib
import os
import shutil
import signal
import subprocess
from typing import TYPE_CHECKING

import pexpect
import pytest
from containers import IMPORT, write_project
from sandboxes import COMMAND, running

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from conftest import Airlock
    from sandboxes import Running

BIG = 50 << 20
# An ordinary user's daemon is root in a user namespace. Without a bridge it has no use for the proxy that it asks for.
AS_USER = """
mkdir -p "$ROOTLESSKIT_STATE_DIR/bin" && ln -sf /bin/true "$ROOTLESSKIT_STATE_DIR/bin/rootlesskit-docker-proxy"
export PATH="$ROOTLESSKIT_STATE_DIR/bin:$PATH"
exec unshare --user --map-root-user --map-auto --mount sh -c 'mount -t tmpfs none /run && exec "$@"' sh "$@"
"""


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory, need: Callable[[str], Path]) -> Iterator[Path]:
    """The socket of a daemon that leaves the host's network and the host's own Docker alone."""
    directory = tmp_path_factory.mktemp("dockerd")
    path = os.pathsep.join((os.environ["PATH"], "/usr/sbin", "/sbin"))
    command = [
        shutil.which("dockerd", path=path) or need("dockerd"),
        *("--host", f"unix://{directory}/docker.sock", "--pidfile", directory / "pid"),
        *("--data-root", directory / "data", "--exec-root", directory / "exec"),
        *("--bridge", "none", "--iptables=false", "--ip-forward=false"),
    ]
    env = {**os.environ, "PATH": path}
    if os.geteuid() != 0:
        need("newuidmap")
        command = ["sh", "-ec", AS_USER, "sh", *command, "--rootless", "--userland-proxy=false"]
        env |= {"ROOTLESSKIT_STATE_DIR": os.fspath(directory), "XDG_RUNTIME_DIR": os.fspath(directory)}
    with (directory / "log").open("wb") as log:
        process = subprocess.Popen(
            command, stdout=log, stderr=subprocess.STDOUT, env=env, start_new_session=True
        )
    try:
        yield directory / "docker.sock"
    finally:
        process.terminate()
        process.wait(60)


@pytest.fixture(scope="module")
def sandbox(daemon: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """A sandbox without a daemon, whose docker talks to the host's."""
    project = tmp_path_factory.mktemp("project")
    write_project(
        project,
        f'[network.sockets.docker]\nhost = "{daemon}:/var/run/docker.sock"\n',
        "docker-cli",
    )
    with running(project) as sandbox:
        # The daemon was started beside it; a client finds out when it serves.
        sandbox.sh("until docker version >/dev/null 2>&1; do sleep 0.2; done")
        sandbox.sh(IMPORT)
        yield sandbox


def test_containers_run_on_the_host(sandbox: Running, daemon: Path) -> None:
    root = sandbox.sh("docker info --format '{{.DockerRootDir}}'").strip()
    assert root == str(daemon.parent / "data")
    done = sandbox.exec("docker", "run", "--rm", "box", "sh", "-c", "echo hello; exit 3")
    assert (done.returncode, done.stdout) == (3, b"hello\n")
    data = os.urandom(1 << 20)
    done = sandbox.exec("docker", "run", "--rm", "-i", "box", "cat", input=data)
    assert done.stdout == data


def test_a_build_with_a_large_context_and_its_image_saved_and_loaded(sandbox: Running) -> None:
    data = os.urandom(BIG)
    digest = hashlib.sha256(data).hexdigest()
    dockerfile = "FROM box\\nCOPY big /big\\nCOPY big /more\\n"
    script = f"mkdir -p ~/large && cat >~/large/big && printf '{dockerfile}' >~/large/Dockerfile"
    assert sandbox.exec("sh", "-ec", script, input=data).returncode == 0
    sandbox.sh("docker build -q -t large ~/large")
    assert sandbox.sh("docker run --rm large sha256sum /big /more").split() == [
        digest,
        "/big",
        digest,
        "/more",
    ]
    assert (
        sandbox.sh("docker save large | tee ~/saved | docker load; wc -c <~/saved").split()[-2]
        == "large:latest"
    )
    assert int(sandbox.sh("docker rmi large >/dev/null; wc -c <~/saved")) > 2 * BIG
    sandbox.sh("docker load -i ~/saved")
    assert sandbox.sh("docker run --rm large sha256sum /more").split()[0] == digest


def test_logs_copies_and_terminals_of_a_running_container(sandbox: Running) -> None:
    loop = "n=0; while test $n -lt 3; do n=$((n+1)); echo line $n; sleep 1; done"
    sandbox.sh(f"docker run -d --name log box sh -c '{loop}'; docker run -d --name up box sleep 1000")
    assert sandbox.sh("docker logs -f log").splitlines() == ["line 1", "line 2", "line 3"]
    sandbox.sh(
        "docker cp up:/bin/busybox ~/copy; cmp ~/copy $(command -v busybox); echo in >~/in; docker cp ~/in up:/tmp/in"
    )
    assert sandbox.sh("docker exec up cat /tmp/in") == "in\n"
    terminal = pexpect.spawn(
        os.fspath(COMMAND),
        ["exec", "docker", "exec", "-it", "up", "sh"],
        cwd=os.fspath(sandbox.project),
        timeout=120,
        encoding="utf-8",
    )
    terminal.sendline("test -t 0 && echo it is a $((1 + 1))nd terminal; exit 5")
    terminal.expect("it is a 2nd terminal")
    terminal.expect(pexpect.EOF)
    terminal.close()
    assert terminal.exitstatus == 5
    sandbox.sh("docker rm -f up log")


def test_the_user_is_told_once_what_such_a_socket_is(sandbox: Running, airlock: Airlock) -> None:
    told = b"has this host, as root or nearly"
    sandbox.process.send_signal(signal.SIGTERM)
    assert sandbox.wait()[2].count(told) == 1
    again = airlock("start", "--", "docker", "ps", cwd=sandbox.project)
    assert (again.returncode, again.stderr.count(told)) == (0, 0), again.stderr
    # But whoever asks is told at any time.
    assert airlock("show", cwd=sandbox.project).stdout.count(told) == 1
