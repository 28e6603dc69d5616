"""What the guest can reach of the host, and the host of the guest: forwarded ports and sockets. Part of service.py.

The supervisor says what to listen at, and lends the mount namespace that a socket's path is meant in.
"""

from __future__ import annotations

import errno
import json
import os
import socket
import stat
from typing import TYPE_CHECKING, Any

from airlockd import linux
from airlockd.protocol.loop import NO_DESCRIPTORS
from airlockd.protocol.relay import Relay, reset

if TYPE_CHECKING:
    from collections.abc import Callable

    from airlockd.net.service import Network
    from airlockd.protocol.frames import Header

BACKLOG = 1024
_LOOPBACK = ((socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1"))
_NO_IPV6 = (errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL)


class Listeners:
    """Everything that listens for the guest's programs on behalf of the host."""

    def __init__(self, network: Network, supervisor: socket.socket) -> None:
        self._network, self._supervisor = network, supervisor
        self._namespace = -1
        self._sockets: dict[str, tuple[str, socket.socket | None]] = {}
        network.loop.on_readable(supervisor.fileno(), self._on_order)

    # ---- the supervisor's order

    def _on_order(self) -> None:
        text, fds, _, _ = socket.recv_fds(self._supervisor, 256 * 1024, 1)
        if not text:
            self._network.loop.stop()
            return
        order = json.loads(text)
        if fds:
            self._namespace = fds[0]
        at: dict[str, Any] = {}
        try:
            for port in order["ports"]:
                at = {"port": port}
                self._listen_port(int(port))
            for entry in order["sockets"]:
                at = {"socket": entry["name"]}
                self._sockets[str(entry["name"])] = (str(entry["path"]), None)
                if entry.get("up", True):
                    self._listen_socket(str(entry["name"]))
                else:
                    self._bind(str(entry["path"])).close()
            answer: dict[str, Any] = {}
        except OSError as error:
            answer = {"message": f"{error.filename or 'listen'}: {error.strerror}", **at}
        self._supervisor.send(json.dumps(answer).encode())

    def _listen_port(self, port: int) -> None:
        for family, address in _LOOPBACK:
            server = socket.socket(family, socket.SOCK_STREAM)
            try:
                server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                server.bind((address, port))
            except OSError as error:
                server.close()
                if family == socket.AF_INET6 and error.errno in _NO_IPV6:
                    continue
                raise OSError(error.errno, error.strerror, f"port {port} of {address}") from None
            self._serve(server, {"kind": "port", "port": port})

    def _serve(self, server: socket.socket, arguments: dict[str, Any]) -> None:
        server.listen(BACKLOG)
        server.setblocking(False)

        def accept() -> None:
            try:
                connected, _ = server.accept()
            except OSError as error:
                if error.errno in NO_DESCRIPTORS:
                    self._network.pause(server, accept)
                return
            self._forward(connected, arguments)

        self._network.listen(server, accept)

    def _forward(self, connected: socket.socket, arguments: dict[str, Any]) -> None:
        if self._network.full:
            reset(connected)
            return

        def answered(refused: Header | None) -> None:
            if refused is not None or relay.done:
                reset(connected)
            else:
                relay.attach(connected)

        relay = self._network.connect(arguments, answered)

    # ---- sockets

    def switch(self, header: Header) -> None:
        """The host's socket of this name appeared, or went: listen, or refuse."""
        name, up = header.get("name"), bool(header.get("up"))
        if name not in self._sockets:
            return
        path, server = self._sockets[name]
        if up and server is None:
            try:
                self._listen_socket(name)
            except OSError:
                pass
        elif not up and server is not None:
            # The path stays; without a listener, whoever connects is refused.
            self._network.loop.forget(server.fileno())
            server.close()
            self._sockets[name] = (path, None)

    def _listen_socket(self, name: str) -> None:
        path, _ = self._sockets[name]
        server = self._bind(path)
        self._sockets[name] = (path, server)
        self._serve(server, {"kind": "socket", "name": name})

    def _bind(self, path: str) -> socket.socket:
        """A socket at a path of the sandbox; a child makes it there, for this process cannot see it."""
        here, there = socket.socketpair()
        pid = os.fork()
        if not pid:
            self._bind_there(path, there)
        there.close()
        try:
            text, fds, _, _ = socket.recv_fds(here, 1024, 1)
        finally:
            here.close()
            os.waitpid(pid, 0)
        if not fds:
            number = int(text or errno.EIO)
            raise OSError(number, os.strerror(number), path)
        return socket.socket(fileno=fds[0])

    def _bind_there(self, path: str, report: socket.socket) -> None:
        try:
            linux.setns(self._namespace, linux.CLONE_NEWNS)
            os.umask(0o022)
            _refuse_share(os.path.dirname(path))
            os.makedirs(os.path.dirname(path), exist_ok=True)
            try:
                if stat.S_ISSOCK(os.lstat(path).st_mode):
                    os.unlink(path)
            except FileNotFoundError:
                pass
            server = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            server.bind(path)
            # Usable by the sandbox's user, whoever that is: it is the sandbox that is confined.
            os.chmod(path, 0o666)
            socket.send_fds(report, [b"0"], [server.fileno()])
        except OSError as error:
            # Python has no number for a path that is too long for a socket.
            report.send(str(error.errno or errno.ENAMETOOLONG).encode())
        finally:
            os._exit(0)

    # ---- the host's calls

    def dial(self, header: Header) -> None:
        """Connect to a port of the guest's loopback and make a stream of it."""
        number, stream, port = header["id"], header["stream"], int(header["port"])
        mux = self._network.link.mux
        relay = Relay(self._network.link, stream, lambda _relay: None)

        def connected(found: socket.socket) -> None:
            mux.send({"t": "reply", "id": number})
            relay.attach(found)

        def failed(error: int) -> None:
            # Before the reset, after which the host would not ask why.
            name = errno.errorcode.get(error, "EIO")
            mux.send({"t": "error", "id": number, "errno": name, "message": os.strerror(error)})
            if not relay.done:
                relay.abort()

        _Attempt(self._network, relay, port, connected, failed).start()


def _refuse_share(directory: str) -> None:
    """Raise OSError where `directory`, or where it would be made, is the host's: a socket there may be in use by it."""
    while not os.path.exists(directory):
        directory = os.path.dirname(directory)
    device = os.stat(directory).st_dev
    number = b"%d:%d" % (os.major(device), os.minor(device))
    for line in linux.read_file("/proc/self/mountinfo", 1 << 20).splitlines():
        fields = line.split()
        if fields[2] == number and fields[fields.index(b"-") + 1] in (b"9p", b"virtiofs"):
            raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP), directory)


class _Attempt:
    """Dials 127.0.0.1, then ::1, for as long as the relay lives."""

    def __init__(
        self,
        network: Network,
        relay: Relay,
        port: int,
        connected: Callable[[socket.socket], None],
        failed: Callable[[int], None],
    ) -> None:
        self._network, self._relay, self._port = network, relay, port
        self._connected, self._failed = connected, failed
        self._left = list(_LOOPBACK)
        self._first_error = 0

    def start(self) -> None:
        if self._relay.done:
            # The host does not want it any more, but every call has its answer.
            self._failed(errno.ECONNRESET)
            return
        if not self._left:
            self._failed(self._first_error)
            return
        family, address = self._left.pop(0)
        try:
            dialled = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        except OSError as error:
            self._next(error.errno or errno.EIO)
            return
        number = dialled.connect_ex((address, self._port))
        if number not in (0, errno.EINPROGRESS):
            dialled.close()
            self._next(number)
            return

        def settled() -> None:
            self._network.loop.forget(dialled.fileno())
            number = dialled.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
            if number or self._relay.done:
                dialled.close()
                self._next(number)
            else:
                dialled.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                self._connected(dialled)

        self._network.loop.on_writable(dialled.fileno(), settled)

    def _next(self, number: int) -> None:
        self._first_error = self._first_error or number
        self.start()
