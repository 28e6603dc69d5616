"""cli.sock: serves `airlock exec`, by relaying its calls and streams to airlockd and back. The session owns one."""

from __future__ import annotations

import errno
import os
import signal
import socket
from collections import deque
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any

from airlock_runner.control import integer, outcome
from airlock_runner.project import SOCKET, Project
from airlock_runner.sockets import bind_in
from airlockd.protocol.frames import Header, ProtocolError, encode
from airlockd.protocol.link import Link
from airlockd.protocol.loop import NO_DESCRIPTORS
from airlockd.protocol.mux import MAX_STREAM_ID
from airlockd.protocol.output import keep

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from airlock_runner.control import Control
    from airlock_runner.defaults import CommandDefaults
    from airlockd.protocol.loop import Loop
    from airlockd.protocol.mux import Message

BACKLOG = 128
PAUSE_SECONDS = 1.0
"""For a socket at which nobody can be accepted, not even to be turned away."""
UNAVAILABLE, WAITING = "unavailable", "waiting"
"""The event that a client is turned away with. Its `message` says why."""
STARTING = "the sandbox is still starting"
NO_ROOM = "the session of the sandbox has no descriptor left for another client"
LISTED, SHOWN = 200, 200
"""Commands that are listed, and characters that are told of one: all of it goes into one frame."""


class Server:
    """Listens until `close`. Credit is relayed, not granted: memory stays bounded by the two ends' windows.

    Until `serve` is called, the sandbox can be stopped and nothing else.
    """

    def __init__(
        self,
        loop: Loop,
        project: Project,
        *,
        on_stop: Callable[[], None],
        on_net: Callable[[Header], Header],
    ) -> None:
        """`on_stop` is called when a client asks that the sandbox be stopped, `on_net` for what `airlock net` asks."""
        self.on_stop, self.on_net = on_stop, on_net
        self.commands: dict[int, Attached] = {}
        self.loop = loop
        self._up: tuple[Control, CommandDefaults] | None = None
        self.processes: dict[int, _Client] = {}
        self._project = project
        self.root = os.fspath(project.root)
        """Where the project was at the start, and is in the sandbox."""
        self.refusing = False
        project.forget(SOCKET)
        with project.at() as directory:
            self._socket = bind_in(directory, SOCKET)
        self._socket.listen(BACKLOG)
        self._socket.setblocking(False)
        self._clients: set[_Client] = set()
        self._reserve = _spare()
        self._listen()

    def serve(self, control: Control, defaults: CommandDefaults) -> None:
        """The sandbox is up: take commands."""
        self._up = control, defaults

    @property
    def up(self) -> bool:
        """Whether it takes commands."""
        return self._up is not None

    @property
    def control(self) -> Control:
        """The link to airlockd, once it is up."""
        assert self._up is not None
        return self._up[0]

    @property
    def defaults(self) -> CommandDefaults:
        """What commands get, once it is up."""
        assert self._up is not None
        return self._up[1]

    def exited(self, header: Header) -> None:
        """airlockd says that a process ended; pass it on to whose it was."""
        number = integer(header, "process", 1, MAX_STREAM_ID)
        self.commands.pop(number, None)
        client = self.processes.pop(number, None)
        if client is not None:
            client.exited(number, outcome(header))

    def refuse(self) -> None:
        """Take no new commands: the sandbox is going down."""
        self.refusing = True
        self._unlisten()

    def waits(self, text: str) -> None:
        """Tell whoever asked for the end what it waits for."""
        for client in list(self._clients):
            if client.stopping:
                client.tell(WAITING, text)

    def close(self) -> None:
        """Close every client and the socket."""
        self._unlisten()
        for client in list(self._clients):
            client.link.close()
        if self._reserve >= 0:
            os.close(self._reserve)
            self._reserve = -1

    def forget(self, client: _Client) -> None:
        """The client is gone."""
        self._clients.discard(client)

    def _accept(self) -> None:
        try:
            connection, _ = self._socket.accept()
        except OSError as error:
            if error.errno in NO_DESCRIPTORS:
                self._turn_away()
            return
        self._clients.add(_Client(self, connection))

    def _listen(self) -> None:
        # It may have been closed meanwhile.
        if self._socket.fileno() >= 0:
            self.loop.on_readable(self._socket.fileno(), self._accept)

    def _turn_away(self) -> None:
        """There is no descriptor for whoever waits but the one that is kept for telling so."""
        if self._reserve >= 0:
            os.close(self._reserve)
        try:
            connection, _ = self._socket.accept()
            with connection:
                connection.setblocking(False)
                said = {"t": "event", "name": UNAVAILABLE, "message": NO_ROOM}
                connection.sendmsg(encode(said))
                # What it says and nobody reads would make the end a reset, which overtakes our word.
                connection.shutdown(socket.SHUT_RD)
                while connection.recv(65536):
                    pass
        except OSError as error:
            if error.errno in NO_DESCRIPTORS:
                self.loop.on_readable(self._socket.fileno(), None)
                self.loop.call_later(PAUSE_SECONDS, self._listen)
        self._reserve = _spare()

    def _unlisten(self) -> None:
        if self._socket.fileno() >= 0:
            self.loop.forget(self._socket.fileno())
            self._socket.close()
            with suppress(OSError):
                self._project.forget(SOCKET)


@dataclass(slots=True)
class Attached:
    """A command that a client runs; `pid` is that in the sandbox, once it has one."""

    argv: list[str]
    pid: int = 0


class _Client:
    """One `airlock exec`. Its numbers for processes and streams are its own; here they are translated."""

    def __init__(self, server: Server, connection: socket.socket) -> None:
        self._server = server
        self._processes: dict[int, int] = {}
        self.stopping = False
        """It asked for the end."""
        self.link = Link(server.loop, connection.detach(), self._on_message, self._on_close)

    def exited(self, number: int, how: dict[str, int]) -> None:
        """Tell the client, under its own number."""
        for theirs, ours in list(self._processes.items()):
            if ours == number:
                del self._processes[theirs]
                self._say({"t": "event", "name": "exit", "process": theirs, **how})

    def tell(self, name: str, message: str) -> None:
        """Tell the client, in words for its user."""
        self._say({"t": "event", "name": name, "message": message})

    def _say(self, header: Header) -> None:
        """What cannot be said ends this connection and nobody else's."""
        if not self.link.closed:
            try:
                self.link.mux.send(header)
            except ProtocolError as error:
                self.link.close(str(error))

    def _on_message(self, message: Message) -> None:
        header = message.header
        number, op = header.get("id"), header.get("op")
        if header["t"] != "call" or op not in ("spawn", "signal", "resize", "list", "stop", "net"):
            self.link.close("protocol error: unexpected message")
            return

        def answer(reply: Header) -> None:
            self._say({**reply, "id": number})

        if op == "stop":
            # The end of the connection is the answer.
            self.stopping = True
            self._server.on_stop()
        elif not self._server.up:
            # It closes the connection: what it says meanwhile would make our end of it a reset. It has to hear this
            # before we read on, because what it sent to streams that nobody opened ends the connection.
            self.tell(UNAVAILABLE, STARTING)
            self.link.flush()
        elif op == "net":
            try:
                answer(self._server.on_net(header))
            except ValueError as error:
                answer({"t": "error", "message": str(error)})
        elif op == "list":
            self._server.control.call("list", {}, lambda reply: answer(self._with_commands(reply)), answer)
        else:
            self._pass_on(str(op), header, answer)

    def _pass_on(self, op: str, header: Header, answer: Callable[[Header], None]) -> None:
        """A call about a command, to airlockd under our own numbers."""
        try:
            arguments = self._spawn(header) if op == "spawn" else self._about_process(header)
        except (KeyError, TypeError, ValueError, ProtocolError) as error:
            answer({"t": "error", "message": f"bad call: {error}"})
            return
        except OSError as error:
            # It may have sent on them already.
            self.link.refuse(header["streams"])
            answer(
                {"t": "error", "errno": error.errno, "stage": "exec", "message": f"exec: {error.strerror}"}
            )
            return
        if arguments is None:
            answer({"t": "reply"})
            return

        def done(reply: Header) -> None:
            command = self._server.commands.get(arguments["process"])
            if op == "spawn" and command is not None and isinstance(reply.get("pid"), int):
                command.pid = reply["pid"]
            answer(reply)

        def refused(reply: Header) -> None:
            if op == "spawn":
                process = self._processes.pop(int(header["process"]), 0)
                self._server.processes.pop(process, None)
                self._server.commands.pop(process, None)
            answer(reply)

        self._server.control.call(op, arguments, done, refused)

    def _with_commands(self, reply: Header) -> Header:
        commands = [
            {"argv": each.argv, "pid": each.pid} for each in islice(self._server.commands.values(), LISTED)
        ]
        return {**reply, "commands": commands}

    def _spawn(self, header: Header) -> dict[str, Any]:
        server = self._server
        if server.refusing:
            raise OSError(errno.ESHUTDOWN, "the sandbox is being stopped")
        process = server.control.number()
        theirs = [int(stream) for stream in header["streams"]]
        ours = [server.control.number() for _ in theirs]
        if len(theirs) != 3 or int(header["process"]) in self._processes:
            raise ValueError("bad streams or process")
        arguments = {
            "process": process,
            "streams": ours,
            "argv": header["argv"],
            "cwd": _in_sandbox(header["cwd"], header.get("root"), server.root),
            "size": header["size"],
            "login": header["login"],
            **server.defaults.call(header["env"]),
        }
        if not server.control.fits("spawn", arguments):
            # With the sandbox's own variables, it is.
            raise OSError(errno.E2BIG, os.strerror(errno.E2BIG))
        used = theirs if header["size"] is None else theirs[:2]
        for their_stream, our_stream in zip(used, ours, strict=False):
            _relay(self.link, their_stream, server.control.link, our_stream)
        self._processes[int(header["process"])] = process
        server.processes[process] = self
        server.commands[process] = Attached(_shortened(header["argv"]))
        return arguments

    def _about_process(self, header: Header) -> dict[str, Any] | None:
        process = self._processes.get(int(header["process"]))
        if process is None:
            return None
        names = ("signal",) if header["op"] == "signal" else ("rows", "columns")
        return {"process": process, **{name: int(header[name]) for name in names}}

    def _on_close(self, _reason: str | None) -> None:
        """The client is gone: what it ran is told so, as by a terminal that was closed."""
        server = self._server
        server.forget(self)
        for process in self._processes.values():
            server.processes.pop(process, None)
            server.commands.pop(process, None)
            if not server.control.link.closed:
                hangup = {"process": process, "signal": int(signal.SIGHUP)}
                server.control.call("signal", hangup, _ignore, _ignore)
        self._processes.clear()


def _spare() -> int:
    """A descriptor that can be closed to have one, or -1."""
    try:
        return os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return -1


def _in_sandbox(directory: object, project: object, root: str) -> object:
    """A directory of the project as the sandbox has it, for which that is at `root`, wherever it was moved since."""
    if isinstance(directory, str) and isinstance(project, str) and f"{directory}/".startswith(f"{project}/"):
        return root + directory[len(project) :]
    return directory


def _shortened(argv: Sequence[object]) -> list[str]:
    words: list[str] = []
    room = SHOWN
    for word in map(str, argv):
        if len(word) >= room:
            return [*words, f"{word[:room]}…"]
        words.append(word)
        room -= len(word) + 1
    return words


class _Relay:
    """One direction's handler of a pair of streams; what arrives here goes out there."""

    def __init__(self, here: Link, here_stream: int, there: Link, there_stream: int) -> None:
        self._here, self._here_stream = here, here_stream
        self._there, self._there_stream = there, there_stream
        self._pending: deque[memoryview] = deque()

    def on_data(self, data: bytes | memoryview) -> None:
        output = self._there.mux.output
        if self._there.closed or not (self._pending or output.congested):
            self._send(data)
            return
        # As a frame it would cost many times its bytes, if they are few.
        keep(self._pending, data)
        output.when_clear(self._send_pending)

    def _send_pending(self) -> None:
        self._there.mux.output.forget(self._send_pending)
        while self._pending:
            self._send(self._pending.popleft())

    def _send(self, data: bytes | memoryview) -> None:
        mux = self._there.mux
        if self._there.closed or mux.credit(self._there_stream) < len(data):
            # The other side takes no more: drop, and let our sender go on until it learns.
            self._here.mux.consumed(self._here_stream, len(data))
        else:
            mux.send_data(self._there_stream, data)

    def on_end(self) -> None:
        self._send_pending()
        if not self._there.closed:
            self._there.mux.send_end(self._there_stream)

    def on_credit(self, amount: int) -> None:
        if not self._there.closed:
            self._there.mux.consumed(self._there_stream, amount)

    def on_reset(self) -> None:
        self._send_pending()
        if not self._there.closed:
            self._there.mux.reset(self._there_stream)


def _relay(first: Link, first_stream: int, second: Link, second_stream: int) -> None:
    first.open(first_stream, _Relay(first, first_stream, second, second_stream))
    second.open(second_stream, _Relay(second, second_stream, first, first_stream))


def _ignore(_header: Header) -> None:
    pass
