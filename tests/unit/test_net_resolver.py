"""Names to addresses: the hosts file, complete names, one lookup for many that ask, and no thread left."""

from __future__ import annotations

import ipaddress
import socket
import subprocess
import sys
import threading
from functools import partial
from typing import TYPE_CHECKING, Any, NoReturn

import pytest
from net_guest import PATIENCE
from test_server import no_descriptors

from airlock_runner.net import resolver as resolver_module
from airlock_runner.net.resolver import MAX_ADDRESSES, Resolver, look_up_name
from airlockd.protocol.loop import Loop

if TYPE_CHECKING:
    from pathlib import Path

    from airlock_runner.net.addresses import Address


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[str]:
    """What the system's resolver is asked; and a hosts file."""
    names: list[str] = []

    def getaddrinfo(name: str, _port: None, **_more: Any) -> list[Any]:
        names.append(name)
        if name.startswith("none"):
            raise socket.gaierror(socket.EAI_NONAME, "no such name")
        kinds = {socket.AF_INET: "1.2.3.{}", socket.AF_INET6: "2606::{}"}
        found = [
            (family, 1, 6, "", (form.format(n), 0)) for n in range(1, 20) for family, form in kinds.items()
        ]
        return [(socket.AF_INET6, 1, 6, "", ("::ffff:9.9.9.9", 0, 0, 0)), *found, found[0]]

    hosts = tmp_path / "hosts"
    hosts.write_text(
        "127.0.0.1 localhost\n10.0.0.9\tNas.Home nas # mine\nfe80::1%lo nas\n::1 localhost.\nbad nas\n\n"
    )
    monkeypatch.setattr(resolver_module, "HOSTS_FILE", str(hosts))
    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    return names


def addresses(*texts: str) -> tuple[Address, ...]:
    return tuple(ipaddress.ip_address(text) for text in texts)


def test_the_hosts_file_comes_first(asked: list[str]) -> None:
    assert look_up_name("nas.home") == look_up_name("nas") == addresses("10.0.0.9")
    assert look_up_name("localhost") == addresses("127.0.0.1", "::1")
    assert asked == []


def test_a_name_is_complete_for_the_system_s_resolver(asked: list[str]) -> None:
    found = look_up_name("intranet")
    assert asked == ["intranet."]
    assert found[:3] == addresses("9.9.9.9", "1.2.3.1", "2606::1")
    assert len(found) == len(set(found)) == MAX_ADDRESSES
    with pytest.raises(OSError, match="no such name"):
        look_up_name("none.test")


def test_a_hosts_file_that_cannot_be_opened_just_now_is_not_an_empty_one(
    asked: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(resolver_module, "HOSTS_FILE", str(tmp_path / "missing"))
    assert look_up_name("nas")
    with no_descriptors(), pytest.raises(OSError, match="Too many open files"):
        look_up_name("nas")
    assert asked == ["nas."]


def test_whatever_a_lookup_raises_is_a_failure_of_that_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """As the codec does that `getaddrinfo` needs, where it is imported with no descriptor left. It is there before."""
    loop = Loop()
    told: dict[str, tuple[Address, ...] | None] = {}

    def look_up(name: str) -> tuple[Address, ...]:
        if name == "a.test":
            raise LookupError("unknown encoding: idna")
        return addresses("1.2.3.4")

    def then(name: str, found: tuple[Address, ...] | None) -> None:
        told[name] = found
        if len(told) == 2:
            loop.stop()

    # One thread does both.
    monkeypatch.setattr(resolver_module, "MAX_THREADS", 1)
    resolver = Resolver(loop, look_up)
    for name in ("a.test", "b.test"):
        resolver.resolve(name, partial(then, name))
    loop.call_later(PATIENCE, loop.stop)
    loop.run()
    assert told == {"a.test": None, "b.test": addresses("1.2.3.4")}
    resolver.close()
    loop.close()
    code = "import airlock_runner.net.resolver, sys; sys.exit('encodings.idna' not in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_without_a_thread_names_wait_for_the_next_one(monkeypatch: pytest.MonkeyPatch) -> None:
    loop, told = Loop(), []

    def then(_found: tuple[Address, ...] | None) -> None:
        told.append(1)
        if len(told) == 2:
            loop.stop()

    def no_thread(_thread: threading.Thread) -> NoReturn:
        raise RuntimeError("can't start new thread")

    resolver = Resolver(loop, lambda _name: addresses("1.2.3.4"))
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", no_thread)
        resolver.resolve("a.test", then)
    resolver.resolve("b.test", then)
    loop.call_later(PATIENCE, loop.stop)
    loop.run()
    assert len(told) == 2
    resolver.close()
    loop.close()


def test_many_that_ask_for_a_name_are_told_by_one_lookup() -> None:
    loop, going_on, calls = Loop(), threading.Event(), []
    told: list[tuple[Address, ...]] = []

    def look_up(name: str) -> tuple[Address, ...]:
        calls.append(name)
        going_on.wait(60)
        return addresses("1.2.3.4") if name == "a.test" else ()

    def then(found: tuple[Address, ...]) -> None:
        told.append(found)
        if len(told) == 100:
            loop.stop()

    resolver = Resolver(loop, look_up)
    resolver.resolve("cancelled.test", then).cancel()
    for _ in range(99):
        resolver.resolve("a.test", then)
    resolver.resolve("b.test", then)
    going_on.set()
    loop.run()
    assert sorted(set(calls) - {"cancelled.test"}) == ["a.test", "b.test"]
    assert calls.count("a.test") == 1
    assert told.count(addresses("1.2.3.4")) == 99
    assert resolver.cached("a.test") == addresses("1.2.3.4")
    assert resolver.cached("b.test") == ()
    assert resolver.cached("c.test") is None
    resolver.close()
    for thread in threading.enumerate():
        if thread.name == "resolve":
            thread.join(60)
            assert not thread.is_alive()
    loop.close()
