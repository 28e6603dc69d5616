"""Forwarded ports and sockets before a start: what is bound, what clashes, what is missing."""

from __future__ import annotations

import errno
import os
import socket
from contextlib import closing
from typing import TYPE_CHECKING

import pytest
from servers import free_port

from airlock_runner.config import load_config
from airlock_runner.net.settle import Settled, settle
from airlock_store.errors import ConfigError

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project, in a home."""
    monkeypatch.setenv("HOME", str(tmp_path))
    path = tmp_path / "project"
    path.mkdir()
    return path


def settled(root: Path, text: str) -> Settled:
    (root / "airlock.toml").write_text(text)
    return settle(load_config(root).network, root, [root])


def refusal(root: Path, text: str) -> str:
    with pytest.raises(ConfigError) as caught:
        settled(root, text)
    return str(caught.value).removeprefix(f"{root}/airlock.toml:")


def test_without_a_network_airlockd_has_nothing_to_do(root: Path) -> None:
    with closing(settled(root, "")) as found:
        assert found.listen_call() is None
        assert found.to_guest == ()
        assert found.powerful == ""


def test_the_left_number_is_the_host_s(root: Path) -> None:
    one = free_port()
    with socket.create_server(("127.0.0.1", one)):
        two = free_port()
    text = f'[network.ports.web]\nhost = [5432, "9000:3000"]\nguest = [{one}, "{two}:4000"]'
    with closing(settled(root, text)) as found:
        assert {guest: each.host for guest, each in found.to_host.items()} == {5432: 5432, 3000: 9000}
        assert [(each.listener.getsockname(), each.guest) for each in found.to_guest] == [
            (("127.0.0.1", one), one), (("127.0.0.1", two), 4000),
        ]  # fmt: skip
        assert found.listen_call() == {"ports": [3000, 5432], "sockets": []}
        socket.create_connection(("127.0.0.1", two)).close()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", two))


def test_a_group_that_is_off_asks_for_nothing(root: Path) -> None:
    text = "[network.ports.a]\nhost = [1]\n[network.ports.b]\nhost = [1]\nenabled = false"
    with closing(settled(root, text)) as found:
        assert found.to_host[1].group == "a"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[network.ports.a]\nhost = [3000, '9000:3000']",
         "2:1: the sandbox's port 3000 is used twice: [network.ports.a] asks for it a second time"),
        ("[network.ports.a]\nhost = [3000]\n[network.ports.b]\nhost = ['9000:3000']",
         "4:1: the sandbox's port 3000 is used twice: [network.ports.a] and [network.ports.b] both ask for it"),
        ("[network.ports.a]\nguest = ['5000:1', '5000:2']", "2:1: port 5000 of 127.0.0.1 is used twice"),
        ("[network.ports.a]\nguest = ['5000:1']\n[network.ports.b]\nguest = [5000]", "4:1: port 5000 of 127.0.0.1"),
        ("[network.ports.a]\nhost = [3000]\n[network.ports.b]\nguest = ['5000:3000']", "4:1: the sandbox's port 3000"),
        ("[network.ports.a]\nhost = ['5000:3000']\nguest = ['5000:4000']", "3:1: port 5000 of 127.0.0.1 is used twice"),
        ("[network.sockets.a]\nhost = '/a:/x'\n[network.sockets.b]\nhost = '/b:/x'", "3:18: /x is also the place of"),
        ("[network.sockets.a]\nhost = '/a:/x'\n[network.sockets.b]\nhost = '/b:/.//x'", "3:18: /x is also the"),
    ],
)  # fmt: skip
def test_what_is_asked_for_twice_is_told_with_who_asked(root: Path, text: str, said: str) -> None:
    assert refusal(root, text).startswith(said)


def test_everything_that_clashes_is_told_at_once(root: Path) -> None:
    free = free_port()
    with socket.create_server(("127.0.0.1", 0)) as busy:
        port = busy.getsockname()[1]
        text = (
            f"[network.ports.a]\nhost = [3000, '9000:3000']\nguest = ['{free}:1', '{free}:2', {port}]\n"
            f"[network.ports.b]\nhost = ['9001:3000']\nguest = ['{free}:3', '{port}:3000']\n"
            "[network.sockets.x]\nhost = '/a:/x'\n[network.sockets.y]\nhost = '/b:/x'"
        )
        (root / "airlock.toml").write_text(text)
        with pytest.raises(ConfigError) as caught:
            settle(load_config(root).network, root, [root])
    both = "[network.ports.a] and [network.ports.b] both ask for it"
    assert [str(each).removeprefix(f"{root}/airlock.toml:") for each in caught.value.problems] == [
        "2:1: the sandbox's port 3000 is used twice: [network.ports.a] asks for it a second time",
        f"5:1: the sandbox's port 3000 is used twice: {both}",
        f"3:1: port {free} of 127.0.0.1 is used twice: [network.ports.a] asks for it a second time",
        f"6:1: port {free} of 127.0.0.1 is used twice: {both}",
        f"6:1: port {port} of 127.0.0.1 is used twice: {both}",
        f"6:1: the sandbox's port 3000 is used twice: {both}",
        "9:18: /x is also the place of socket x",
        f"3:1: port {port} of 127.0.0.1, which [network.ports.a] asks for, is in use by another program",
    ]
    socket.create_server(("127.0.0.1", free)).close()


def test_a_busy_port_fails_the_start_and_leaves_no_other_bound(root: Path) -> None:
    free = free_port()
    with socket.create_server(("127.0.0.1", 0)) as busy:
        port = busy.getsockname()[1]
        said = refusal(root, f"[network.ports.web]\nguest = [{free}, {port}]")
    assert said == (
        f"2:1: port {port} of 127.0.0.1, which [network.ports.web] asks for, is in use by another program"
    )
    socket.create_server(("127.0.0.1", free)).close()


def test_another_port_is_one_that_can_be_had(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """None that is taken, that the config asks for as well, or that takes privileges, and it leads to the same port."""
    taken = {80: errno.EACCES, 8080: errno.EADDRINUSE, 5000: errno.EADDRINUSE, 5001: errno.EADDRINUSE}
    taken |= dict.fromkeys(range(65500, 65536), errno.EADDRINUSE)

    def bind(self: socket.socket, address: tuple[str, int]) -> None:
        if address[1] in taken:
            raise OSError(taken[address[1]], os.strerror(taken[address[1]]))

    class Socket(socket.socket):
        def getsockname(self) -> tuple[str, int]:
            return ("127.0.0.1", bound.pop() or 41234)

    bound: list[int] = []
    monkeypatch.setattr(Socket, "bind", lambda self, address: (bind(self, address), bound.append(address[1])))
    monkeypatch.setattr(Socket, "listen", lambda _self, _backlog: None)
    monkeypatch.setattr("airlock_runner.net.settle.socket.socket", Socket)
    (root / "airlock.toml").write_text("[network.ports.a]\nguest = [80, '5000:22', '5002:1', 65500]")
    with pytest.raises(ConfigError) as caught:
        settle(load_config(root).network, root, [root])
    text = "another host port is written left of the sandbox's: "
    assert [each.hint for each in caught.value.problems] == [
        f'{text}"8081:80"', f'{text}"5003:22"', f'{text}"41234:65500"',
    ]  # fmt: skip
    assert "port 80 of 127.0.0.1, which [network.ports.a] asks for, cannot be used: Permission denied" in str(
        caught.value
    )


def test_sockets_are_found_or_warned_of(root: Path, tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "docker.sock"))
        text = (
            '[network.sockets.docker]\nhost = "~/docker.sock:/run/docker.sock"\n'
            f'[network.sockets.mine]\nhost = "{root}/sub/mine.sock:~/mine.sock"'
        )
        with closing(settled(root, text)) as found:
            docker, mine = found.sockets.values()
            assert (docker.path, docker.guarded) == (tmp_path / "docker.sock", None)
            assert (mine.path, mine.guarded) == (root / "sub/mine.sock", root)
            assert found.warnings == (
                f"socket mine: {root}/sub/mine.sock is not there; it works as soon as it is one",
            )
            assert found.powerful == f"forwarded socket docker ({tmp_path}/docker.sock)"
            assert found.listen_call() == {
                "ports": [],
                "sockets": [
                    {"name": "docker", "path": "/run/docker.sock", "up": True},
                    {"name": "mine", "path": "~/mine.sock", "up": False},
                ],
            }


def test_a_daemons_socket_is_known_by_its_name_on_either_side(root: Path) -> None:
    text = '[network.sockets.d]\nhost = "/run/mine.sock:/var/run/docker.sock"'
    with closing(settled(root, text)) as found:
        assert found.powerful == "forwarded socket d (/run/mine.sock)"


def test_a_path_that_cannot_be_looked_at_is_a_socket_that_is_missing(root: Path) -> None:
    text = f'[network.sockets.x]\nhost = "/{"x" * 300}/x.sock:/run/x.sock"'
    with closing(settled(root, text)) as found:
        assert "is not there" in found.warnings[0]
        call = found.listen_call()
        assert call is not None
        assert call["sockets"] == [{"name": "x", "path": "/run/x.sock", "up": False}]


def test_what_the_sandbox_cannot_listen_at_has_keys_in_the_config(root: Path) -> None:
    text = "[network.sockets.a]\nhost = '/a:/dev/log'\n[network.ports.b]\nhost = ['9000:3000']"
    with closing(settled(root, text)) as found:
        assert found.keys_of({"socket": "a"}) == ("network", "sockets", "a", "host")
        assert found.keys_of({"port": 3000}) == ("network", "ports", "b", "host")
        for hostile in ({}, {"socket": "b"}, {"port": 9000}, {"socket": []}, {"port": {}}, {"port": "3000"}):
            assert found.keys_of(hostile) == ()
