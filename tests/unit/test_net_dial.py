"""Connecting to several addresses: which is tried when, and what is told where none answers."""

from __future__ import annotations

import errno
import ipaddress
import socket
import time

import pytest
from servers import echo, free_port, serving

from airlock_runner.net import dial
from airlock_runner.net.dial import Dial, Endpoint, errno_name
from airlockd.protocol.loop import Loop

HERE = ipaddress.ip_address("127.0.0.1")


class Dialled:
    """What came of it."""

    def __init__(self, *endpoints: Endpoint) -> None:
        self.loop = Loop()
        self.found: list[Endpoint] = []
        self.errors: list[int] = []
        self.dial = Dial(self.loop, endpoints, self._connected, self.errors.append)
        self.dial.start()

    def _connected(self, connected: socket.socket, endpoint: Endpoint) -> None:
        connected.close()
        self.found.append(endpoint)


def test_the_next_address_has_its_turn_where_one_does_not_answer() -> None:
    with socket.socket() as silent, socket.socket() as waiting, serving(echo) as port:
        silent.bind(("127.0.0.1", 0))
        silent.listen(0)
        waiting.connect(silent.getsockname())
        good = Endpoint(HERE, port)
        dialled = Dialled(Endpoint(HERE, silent.getsockname()[1]), good)
        dialled.dial.tick(time.monotonic() + dial.ATTEMPT_SECONDS - 1)
        assert (dialled.found, dialled.errors) == ([], [])
        dialled.dial.tick(time.monotonic() + dial.ATTEMPT_SECONDS + 1)
        assert dialled.found == [good]
        dialled.loop.close()


@pytest.mark.parametrize(
    ("outcomes", "told"),
    [
        ((errno.ECONNREFUSED, errno.ENETUNREACH), "ECONNREFUSED"),
        ((errno.ENETUNREACH, errno.ECONNREFUSED), "ECONNREFUSED"),
        ((errno.EHOSTUNREACH, errno.EADDRNOTAVAIL), "EHOSTUNREACH"),
        ((errno.ENETUNREACH,), "ENETUNREACH"),
        ((errno.EADDRNOTAVAIL,), "ENETUNREACH"),
        ((errno.ETIMEDOUT,), "ETIMEDOUT"),
        # The host's packet filter.
        ((errno.EPERM,), "EACCES"),
        ((errno.EACCES,), "EACCES"),
        # Whatever else there may be.
        ((errno.ENOBUFS,), "EHOSTUNREACH"),
    ],
)
def test_what_is_told_is_what_an_address_answered(
    monkeypatch: pytest.MonkeyPatch, outcomes: tuple[int, ...], told: str
) -> None:
    left = list(outcomes)
    monkeypatch.setattr(dial, "_connect", lambda _handle, _target: left.pop(0))
    (error,) = Dialled(*[Endpoint(HERE, 80)] * len(outcomes)).errors
    assert errno_name(error) == told


def test_a_port_at_which_nobody_listens_does_not_answer_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the kernel gives our own end that very port."""
    connect = dial._connect

    def from_there(handle: socket.socket, target: Endpoint) -> int:
        handle.bind((str(target.address), target.port))
        return connect(handle, target)

    monkeypatch.setattr(dial, "_connect", from_there)
    dialled = Dialled(Endpoint(HERE, free_port()))
    assert (dialled.found, dialled.errors) == ([], [errno.ECONNREFUSED])
