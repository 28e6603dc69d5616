"""Which packet belongs to which connection: the table of airlock0.py, against a model of it in two dictionaries."""

from __future__ import annotations

import socket
import struct

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule
from tcp_peer import segment
from test_net_airlock0 import Ends

from airlock_runner.net import packet

PORTS = st.integers(40000, 40002)
NUMBERS = st.sampled_from([0, 7, 0xFFFFFFFF])
ERRORS = st.sampled_from([None, None, "ECONNREFUSED", "EHOSTUNREACH", "ETIMEDOUT"])


class Table(RuleBasedStateMachine):
    """`live` has the number of each connection's SYN by the program's port, `silent` that of what timed out."""

    def __init__(self) -> None:
        super().__init__()
        self.ends = Ends()
        self.live: dict[int, int] = {}
        self.silent: dict[int, int] = {}
        self.asked = 0
        self.servers: list[socket.socket] = []

    def say(self, flags: int, port: int, number: int) -> None:
        data = bytearray(segment(flags, number))
        data[20:22] = struct.pack(">H", port)
        self.ends.say(bytes(data))

    @rule(port=PORTS, number=NUMBERS)
    def syn(self, port: int, number: int) -> None:
        self.say(packet.SYN, port, number)
        if self.live.get(port) == number:
            return
        self.live.pop(port, None)
        if self.silent.get(port) != number:
            self.silent.pop(port, None)
            self.live[port] = number
            self.asked += 1

    @rule(port=PORTS)
    def reset(self, port: int) -> None:
        self.say(packet.RST, port, self.live.pop(port, 0) + 1)

    @rule(error=ERRORS)
    def answer(self, error: str | None) -> None:
        """Of the connection that was asked for last."""
        if not self.ends.asked or self.ends.asked[-1].done or self.ends.asked[-1].answered:
            return
        relay = self.ends.asked[-1]
        if error is None:
            ours, theirs = socket.socketpair()
            self.servers.append(theirs)
            relay.accept(ours)
            return
        relay.refuse(error, "")
        (port,) = struct.unpack_from(">H", relay.key, 8)
        number = self.live.pop(port)
        if error == "ETIMEDOUT":
            self.silent[port] = number

    @invariant()
    def the_same_ones_are_there(self) -> None:
        known = {struct.unpack_from(">H", key, 8)[0]: relay for key, relay in self.ends.end._relays.items()}
        assert {port: relay.tcp.first for port, relay in known.items()} == self.live
        assert len(self.ends.asked) == self.asked
        assert {relay for relay in self.ends.asked if not relay.done} == set(known.values())
        assert self.ends.done == self.asked - len(self.live)

    def teardown(self) -> None:
        self.ends.close()
        for each in self.servers:
            each.close()


Table.TestCase.settings = settings(max_examples=60, stateful_step_count=25)
TestTable = Table.TestCase
