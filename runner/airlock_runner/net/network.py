"""A sandbox's network as its session sees it: begin, listen, take commands, close.

Little is imported and nothing is served before the guest says its first word on the port.
"""

from __future__ import annotations

import os
import socket
from typing import TYPE_CHECKING, Any

from airlock_runner.net.settle import settle
from airlock_runner.text import one_line
from airlockd.protocol.link import Link

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from airlock_runner.config.network_model import NetworkConfig
    from airlock_runner.net.journal import Journal
    from airlock_runner.net.policy import Policy
    from airlock_runner.net.record import Record
    from airlock_runner.net.service import Service
    from airlock_runner.project import Project
    from airlockd.protocol.frames import Header
    from airlockd.protocol.loop import Loop, Timer
    from airlockd.protocol.mux import Message

WATCH_SECONDS = 0.5
"""How often the sockets that are forwarded are looked for."""
MAX_LIVE = 1000
"""Patterns that `airlock net allow` and `deny` may add to a running sandbox."""


class Network:
    """One session's. Making it binds the forwarded ports; raises ConfigError as `settle` does."""

    def __init__(self, config: NetworkConfig, project: Project, writable: Sequence[Path]) -> None:
        """`writable` are the directories of the host that the sandbox can write to."""
        self._settled, self._project = settle(config, project.root, writable), project
        self._note: Callable[[str], None] = lambda _text: None
        self._up: dict[str, bool] = {}
        self._timer: Timer | None = None
        self._loop: Loop | None = None
        self._link: Link | None = None
        self._packets = -1
        self._service: Service | None = None
        self._journal: Journal | None = None
        self._policy: Policy | None = None
        self._closing = False

    @property
    def warnings(self) -> tuple[str, ...]:
        """What its user should know before the start."""
        return self._settled.warnings

    @property
    def powerful(self) -> str:
        """The forwarded sockets that amount to the host itself, in words."""
        return self._settled.powerful

    def begin(self, loop: Loop, ports: tuple[int, int], note: Callable[[str], None]) -> None:
        """Serve the guest on its ports for streams and for packets, descriptors that are closed in the end.

        `note` tells the user something.
        """
        streams, self._packets = ports
        self._loop, self._note = loop, note
        self._link = Link(loop, streams, self._on_message, self._on_close, bulk=True)
        if self._settled.to_guest:
            self._serve()
        else:
            loop.on_readable(self._packets, self._on_packets)

    def listen_call(self) -> dict[str, Any] | None:
        """The arguments of airlockd's `listen`, or None where it has nothing to do."""
        call = self._settled.listen_call()
        if call is not None and call["sockets"]:
            self._up = {each["name"]: each["up"] for each in call["sockets"]}
            assert self._loop is not None
            self._timer = self._loop.call_later(WATCH_SECONDS, self._watch_sockets)
        return call

    def keys_of(self, refused: Header) -> tuple[str, ...]:
        """Where the config asks for what airlockd cannot listen at."""
        return self._settled.keys_of(refused)

    def close(self) -> None:
        """End all connections and release the ports."""
        self._closing = True
        if self._timer is not None:
            self._timer.cancel()
        if self._link is not None:
            self._link.close()
        if self._packets >= 0 and self._loop is not None:
            self._loop.forget(self._packets)
            os.close(self._packets)
        self._settled.close()
        if self._journal is not None:
            self._journal.close()

    @property
    def policy(self) -> Policy:
        """What holds for the next connection."""
        if self._policy is None:
            self._policy = policy_of(self._settled.config)
        return self._policy

    def command(self, header: Header) -> Header:
        """What a user of `airlock net` asks of the running sandbox; gives the reply.

        Keys: `set` a mode, or `allow` or `deny` a pattern, or nothing to see what holds. In the reply, `void` is what
        decides against the pattern all the same. Raises ValueError.
        """
        from dataclasses import replace

        from airlock_runner.net.patterns import parse_pattern
        from airlock_runner.net.policy import LIVE, MODES, with_live, without_effect

        policy = self.policy
        if "set" in header:
            mode = next((each for each in MODES if each == header["set"]), None)
            if mode is None:
                raise ValueError(f"a policy is one of {', '.join(MODES)}")
            policy = replace(policy, mode=mode)
        void = None
        for verb in ("allow", "deny"):
            if verb in header:
                pattern = parse_pattern(str(header[verb]))
                policy = with_live(policy, verb, pattern)
                void = without_effect(policy, verb, pattern)
        if sum(len(rule.allow) + len(rule.deny) for rule in policy.rules if rule.name == LIVE) > MAX_LIVE:
            raise ValueError(f"more than {MAX_LIVE} patterns")
        self._policy = policy
        if self._service is not None:
            self._service.policy = policy
        return {
            "t": "reply",
            "policy": policy.mode,
            "void": void,
            "rules": [
                {"name": rule.name, "allow": [each.text for each in rule.allow],
                 "deny": [each.text for each in rule.deny]}
                for rule in policy.rules
            ],
        }  # fmt: skip

    def _watch_sockets(self) -> None:
        """Tell the guest when a socket of the host comes or goes: without one, connecting to it is refused there."""
        assert self._loop is not None
        assert self._link is not None
        if self._link.closed:
            return
        for name, each in self._settled.sockets.items():
            up = each.is_there
            if up != self._up[name]:
                self._up[name] = up
                self._link.mux.send({"t": "call", "op": "socket", "id": 0, "name": name, "up": up})
        self._timer = self._loop.call_later(WATCH_SECONDS, self._watch_sockets)

    def _on_message(self, message: Message) -> None:
        self._serve().on_message(message)

    def _on_packets(self) -> None:
        """The first one, or the end: the service reads it."""
        assert self._loop is not None
        with socket.socket(fileno=os.dup(self._packets)) as port:
            if port.recv(1, socket.MSG_PEEK):
                self._serve()
            else:
                # Nobody has used the network: nothing is imported to see its end.
                self._loop.forget(self._packets)

    def _serve(self) -> Service:
        if self._service is None:
            from airlock_runner.net.journal import Journal
            from airlock_runner.net.service import Service

            assert self._loop is not None
            assert self._link is not None
            self._journal = Journal(self._project, self._note)
            packets, self._packets = self._packets, -1
            self._service = Service(
                self._loop, self._link, packets, self._settled, self.policy, log=self._log
            )
        return self._service

    def _log(self, record: Record) -> None:
        assert self._journal is not None
        self._journal.write(record.values())

    def _on_close(self, reason: str | None) -> None:
        if self._service is not None:
            self._service.close()
        if reason is not None and not self._closing:
            self._note(f"the sandbox goes on without network: {one_line(reason, 300)}")


def policy_of(config: NetworkConfig) -> Policy:
    """The policy that a config begins with."""
    from airlock_runner.net.addresses import parse_address
    from airlock_runner.net.names import canonical
    from airlock_runner.net.patterns import parse_pattern
    from airlock_runner.net.policy import Policy, Rule

    rules = tuple(
        Rule(name, tuple(map(parse_pattern, each.allow)), tuple(map(parse_pattern, each.deny)))
        for name, each in config.rules.items()
    )
    hosts = {
        canonical(name): tuple(parse_address(each) for each in ([given] if isinstance(given, str) else given))
        for name, given in config.hosts.items()
    }
    return Policy(config.policy, rules, hosts)
