"""cli.sock between a client and airlockd, both of which are the test: what is too much for one call ends no more."""

from __future__ import annotations

import errno
import os
import resource
import socket
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest
from handlers import Ignoring

from airlock_runner import server as server_module
from airlock_runner.attach import NotRunningError, connect
from airlock_runner.control import Control, TooLargeError
from airlock_runner.defaults import CommandDefaults
from airlock_runner.project import SOCKET, Project
from airlock_runner.server import LISTED, NO_ROOM, STARTING, UNAVAILABLE, Server
from airlock_runner.sockets import connect_in
from airlock_runner.stdio import RemoteCommand, Terminal, TooLongError
from airlockd.protocol.frames import MAX_HEADER
from airlockd.protocol.link import Link
from airlockd.protocol.loop import Loop
from airlockd.protocol.output import BACKLOG

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from airlockd.protocol.mux import Message


def ignore(_value: object) -> None:
    pass


class Wires:
    """A session's server, the guest that it asks, and clients."""

    def __init__(self, root: Path, environment: dict[str, str], *, up: bool = True) -> None:
        self.loop = Loop()
        self.asked: list[dict[str, Any]] = []
        self.stops: list[int] = []
        self.events: list[dict[str, Any]] = []
        ours, theirs = socket.socketpair()
        self.control = Control(self.loop, ours.detach(), ignore, ignore)
        self.guest = Link(self.loop, theirs.detach(), self._serve, ignore)
        self.project = Project(root)
        self.project.prepare()
        defaults = CommandDefaults(environment, "root", harden=True)
        self.server = Server(
            self.loop, self.project, on_stop=lambda: self.stops.append(1), on_net=lambda _header: {}
        )
        if up:
            self.server.serve(self.control, defaults)
        self.clients: list[Control] = []

    def client(self) -> Control:
        with self.project.at() as directory:
            fd = connect_in(directory, SOCKET).detach()
        self.clients.append(Control(self.loop, fd, self.events.append, lambda _reason: self.loop.stop()))
        return self.clients[-1]

    def until_it_is_closed(self, client: Control) -> None:
        while not client.link.closed:
            self.loop.run()

    def ask(self, client: Control, op: str, **arguments: Any) -> dict[str, Any]:
        answers: list[dict[str, Any]] = []

        def answered(header: dict[str, Any]) -> None:
            answers.append(header)
            self.loop.stop()

        client.call(op, arguments, answered, answered)
        self.loop.run()
        return answers[0]

    def spawn(self, client: Control, argv: list[str], env: dict[str, str] | None = None) -> dict[str, Any]:
        streams = [client.number() for _ in range(3)]
        for stream in streams:
            client.link.open(stream, Ignoring())
        call = {"argv": argv, "cwd": "/", "env": env or {}, "login": False, "size": None}
        return self.ask(client, "spawn", **call, process=client.number(), streams=streams)

    def close(self) -> None:
        self.server.close()
        for client in self.clients:
            client.link.close()
        self.control.link.close()
        self.guest.close()
        self.loop.close()

    def _serve(self, message: Message) -> None:
        header = message.header
        self.asked.append(header)
        for stream in header.get("streams", ()):
            self.guest.open(stream, Ignoring())
        self.guest.mux.send({"t": "reply", "id": header["id"], "daemons": [], "pid": len(self.asked)})


@contextmanager
def no_descriptors() -> Iterator[None]:
    """Every one that this process may have is in use."""
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    held: list[int] = []
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(map(int, os.listdir("/proc/self/fd"))) + 20, limits[1]))
    try:
        with pytest.raises(OSError, match="Too many open files"):
            while True:
                held.append(os.open(os.devnull, os.O_RDONLY))
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
        for each in held:
            os.close(each)


@pytest.fixture
def wires(tmp_path: Path) -> Iterator[Wires]:
    wires = Wires(tmp_path, {"LARGE": "x" * (MAX_HEADER // 2)})
    yield wires
    wires.close()


def test_a_symlink_in_place_of_the_socket_leads_to_no_other_sandbox(tmp_path: Path) -> None:
    """What ran in a sandbox can make one where it sees `.airlock`, or a directory of that name below the project."""
    (tmp_path / "theirs").mkdir()
    (tmp_path / "ours").mkdir()
    theirs, ours = Wires(tmp_path / "theirs", {}), Project(tmp_path / "ours")
    ours.prepare()
    (ours.directory / SOCKET).symlink_to(theirs.project.directory / SOCKET)
    try:
        with pytest.raises(NotRunningError):
            connect(ours)
        os.close(connect(theirs.project))
    finally:
        theirs.close()


def test_a_command_that_is_too_long_with_the_sandboxs_variables_is_refused_alone(wires: Wires) -> None:
    client, other = wires.client(), wires.client()
    refused = wires.spawn(client, ["x", "y" * (MAX_HEADER // 2)])
    assert (refused["t"], refused["errno"], refused["stage"]) == ("error", errno.E2BIG, "exec")
    assert wires.asked == []
    assert wires.server.commands == {}
    # What it sent on its streams already is no breach of protocol.
    assert not any(client.link.mux.is_open(number) for number in range(1, 10))
    for each in (client, other):
        assert wires.spawn(each, ["x"])["t"] == "reply"
    assert not wires.control.link.closed


def test_a_command_that_ended_is_listed_no_more(wires: Wires) -> None:
    client = wires.client()
    assert wires.spawn(client, ["x"])["t"] == "reply"
    assert [each["argv"] for each in wires.ask(client, "list")["commands"]] == [["x"]]
    wires.server.exited({"process": wires.asked[0]["process"], "code": 0})
    assert wires.ask(client, "list")["commands"] == []


class Collecting(Ignoring):
    """Keeps what comes, and how it ended."""

    def __init__(self) -> None:
        self.data, self.ended = bytearray(), ""

    def on_data(self, data: bytes) -> None:
        self.data += data

    def on_end(self) -> None:
        self.ended = "end"

    def on_reset(self) -> None:
        self.ended = "reset"


@pytest.mark.parametrize("how", ["end", "reset"])
def test_a_client_that_does_not_read_costs_no_frame_for_each_byte(how: str) -> None:
    """However small the pieces are that a guest sends. Once it reads, all of it is there, and how it ended."""
    loop = Loop()
    pairs = [[Link(loop, end.detach(), ignore, ignore) for end in socket.socketpair()] for _ in range(2)]
    (guest, inner), (outer, client) = pairs
    server_module._relay(inner, 1, outer, 1)
    guest.open(1, Ignoring())
    received = Collecting()
    client.open(1, received)
    loop.on_readable(client._fd, None)
    data, sent, most = os.urandom(300_000), 0, 0

    def go_on() -> None:
        nonlocal sent, most
        most = max(most, outer.mux.output.size)
        for byte in data[sent : sent + 5000]:
            guest.mux.send_data(1, bytes((byte,)))
        sent += 5000
        if sent == len(data):
            guest.mux.send_end(1) if how == "end" else guest.mux.reset(1)
            loop.call_later(0.2, lambda: loop.on_readable(client._fd, client._read))
        if received.ended:
            loop.stop()
        else:
            loop.call_later(0.001, go_on)

    go_on()
    loop.run()
    assert received.ended == how
    assert received.data == data
    assert most < 2 * BACKLOG
    for link in (guest, inner, outer, client):
        link.close()
    loop.close()


def test_who_comes_while_the_sandbox_is_stopped_is_told_so(wires: Wires) -> None:
    client = wires.client()
    assert wires.spawn(client, ["x"])["t"] == "reply"
    wires.server.refuse()
    refused = wires.spawn(client, ["x"])
    assert (refused["t"], refused["message"]) == ("error", "exec: the sandbox is being stopped")
    assert len(wires.asked) == 1
    with pytest.raises(FileNotFoundError):
        wires.client()


def test_without_a_descriptor_clients_are_turned_away_with_a_word(wires: Wires) -> None:
    clients = [wires.client() for _ in range(3)]
    # Some have said something already.
    for client in clients[:2]:
        client.call("list", {"x": "y" * 100_000}, ignore, ignore)
        client.link.flush()
    with no_descriptors():
        for client in clients:
            wires.until_it_is_closed(client)
    assert wires.events == [{"t": "event", "name": UNAVAILABLE, "message": NO_ROOM}] * 3
    assert wires.spawn(wires.client(), ["x"])["t"] == "reply"


def test_without_even_the_reserve_the_server_waits_and_does_not_spin(
    wires: Wires, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server_module, "PAUSE_SECONDS", 0.0)
    os.close(wires.server._reserve)
    wires.server._reserve = -1
    client = wires.client()
    with no_descriptors():
        wires.server._accept()
        assert wires.server._socket.fileno() not in wires.loop._watched
    assert wires.spawn(client, ["x"])["t"] == "reply"
    assert wires.events == []
    wires.server._accept()


def test_before_the_sandbox_is_up_it_can_be_stopped_and_nothing_else(tmp_path: Path) -> None:
    wires = Wires(tmp_path, {}, up=False)
    try:
        for op in ("list", "net", "spawn"):
            client = wires.client()
            before = len(wires.events)
            client.call(op, {}, ignore, ignore)
            while len(wires.events) == before:
                wires.loop._round()
        assert wires.events == [{"t": "event", "name": UNAVAILABLE, "message": STARTING}] * 3
        assert wires.stops == []
        wires.client().call("stop", {}, ignore, ignore)
        while not wires.stops:
            wires.loop._round()
        wires.server.serve(wires.control, CommandDefaults({}, "root", harden=True))
        assert wires.spawn(wires.client(), ["x"])["t"] == "reply"
    finally:
        wires.close()


def test_who_has_sent_more_than_the_call_hears_that_the_sandbox_is_starting(tmp_path: Path) -> None:
    """Standard input that has ended goes out together with the call, to streams that nobody opened."""
    wires = Wires(tmp_path, {}, up=False)
    try:
        client = wires.client()
        stream = client.number()
        client.call("spawn", {"streams": [stream]}, ignore, ignore)
        client.link.open(stream, Ignoring())
        client.link.mux.send_end(stream)
        wires.until_it_is_closed(client)
        assert wires.events == [{"t": "event", "name": UNAVAILABLE, "message": STARTING}]
    finally:
        wires.close()


def test_however_many_and_long_the_commands_they_are_listed(wires: Wires) -> None:
    client = wires.client()
    long = ["word", "word", "\x01" * 10_000]
    for _ in range(LISTED + 10):
        assert wires.spawn(client, long)["t"] == "reply"
    found = wires.ask(client, "list")["commands"]
    assert len(found) == LISTED
    assert found[0]["argv"][:2] == ["word", "word"]
    assert found[0]["argv"][2:] == ["\x01" * 190 + "…"]
    assert not client.link.closed


def test_a_command_that_is_too_long_is_told_before_anything_is_sent(wires: Wires) -> None:
    terminal = Terminal()
    before = len(os.listdir("/proc/self/fd"))
    call = {"argv": ["x" * MAX_HEADER], "cwd": "/", "env": {}, "login": False}
    with pytest.raises(TooLongError, match="argument list too long") as caught:
        RemoteCommand(wires.control, terminal, call, ignore, ignore)
    assert caught.value.exit_code == 126
    assert len(os.listdir("/proc/self/fd")) == before
    assert not wires.control.link.mux.output.size
    with pytest.raises(TooLargeError):
        wires.control.call("daemons", {"x": "y" * MAX_HEADER}, ignore, ignore)
