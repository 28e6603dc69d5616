"""What a hostile guest says on the network port is a request or a breach, which closes the link with a reason."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from net_guest import guest
from servers import echo, serving

from airlock_runner.config.network_model import NetworkConfig, PortPair, PortsConfig
from airlock_runner.net.requests import Answer, Connect, parse
from airlockd.protocol.frames import ProtocolError

if TYPE_CHECKING:
    from pathlib import Path


CALL: dict[str, Any] = {"t": "call", "op": "connect", "id": 1, "stream": 1, "kind": "port", "port": 3000}
"""Nothing is wrong with it."""
BAD = [
    CALL | {"stream": 2},
    CALL | {"port": -1},
    CALL | {"port": "1"},
    CALL | {"port": 0},
    CALL | {"kind": "tcp", "name": None, "address": "1.1.1.1"},
    CALL | {"kind": "socket", "name": 7},
    CALL | {"kind": "socket", "name": "x" * 2000},
    {"t": "call", "op": "connect", "id": 1, "stream": 1, "kind": "port", "port": 22},
    {"t": "call", "op": "connect", "id": 1, "stream": 1, "kind": "socket", "name": "docker"},
    {"t": "call", "op": "connect", "id": True, "stream": 1, "kind": "port", "port": 22},
    {"t": "call", "op": "connect", "id": -1, "stream": 1, "kind": "port", "port": 22},
    {"t": "call", "op": "name", "id": 1, "name": "a.test"},
    {"t": "call", "op": "spawn", "id": 1, "argv": ["sh"]},
    {"t": "reply", "id": 1},
    {"t": "error", "id": 99, "errno": "EEK"},
    {"t": "event", "name": "exit"},
    {"t": "data", "s": 7},
]


def test_what_the_breaches_are_made_of_is_a_request() -> None:
    assert isinstance(parse(CALL), Connect)


@pytest.mark.parametrize("frame", BAD, ids=str)
def test_a_breach_closes_the_link_with_a_reason(tmp_path: Path, frame: dict[str, Any]) -> None:
    with guest(NetworkConfig(), tmp_path) as sandbox:
        sandbox.link.mux.send(frame)
        sandbox.until(lambda: sandbox.closed)
        assert str(sandbox.closed[0]).startswith("protocol error: ")
        assert not sandbox.service.connections


def test_a_stream_that_is_in_use_is_a_breach(tmp_path: Path) -> None:
    with serving(echo) as port:
        config = NetworkConfig(ports={"p": PortsConfig(host=(PortPair(port, 3000),))})
        with guest(config, tmp_path) as sandbox:
            sandbox.answered(sandbox.ask({"kind": "port", "port": 3000}))
            sandbox.link.mux.send(CALL | {"id": 9})
            sandbox.until(lambda: sandbox.closed)
            assert "in use" in str(sandbox.closed[0])
            assert sandbox.records[-1]["state"] == "reset"


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-2, 2**54) | st.text(max_size=8), lambda each: st.lists(each, max_size=2)
)  # fmt: skip
KEYS = st.sampled_from(["id", "stream", "kind", "name", "address", "port", "op", "errno"])


@given(
    st.dictionaries(
        KEYS, JSON | st.sampled_from(["tcp", "port", "socket", "connect", "name", "1.1.1.1", 1, 3, 65536])
    ),
    st.sampled_from(["call", "reply", "error", "event"]),
)
def test_any_frame_is_a_request_or_a_breach(header: dict[str, Any], kind: str) -> None:
    try:
        request = parse({**header, "t": kind})
    except ProtocolError:
        return
    assert isinstance(request, Connect | Answer)
    if isinstance(request, Connect):
        assert request.stream % 2
        assert (request.kind == "port") == (0 < request.port <= 65535)
        assert (request.kind == "socket") == (request.name is not None)
