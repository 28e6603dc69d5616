"""Daemons as the config has them: values, order, what is refused, what is told of them."""

from __future__ import annotations

import os
import signal
from typing import TYPE_CHECKING, Any

import pytest

from airlock_runner.config import ProjectConfig, load_config
from airlock_runner.daemons import _NUMBERS, advice, asked, blamed, line, patience
from airlock_store.errors import ConfigError

if TYPE_CHECKING:
    from pathlib import Path

WEB = '[daemons.web]\ncommand = ["/bin/web"]\n'


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HOME", os.fspath(tmp_path / "home"))
    return tmp_path


def load(root: Path, text: str, local: str = "") -> ProjectConfig:
    (root / "airlock.toml").write_text(text)
    (root / "airlock.local.toml").write_text(local)
    return load_config(root, {"TOKEN": "t"}.get)


def test_defaults_are_those_of_the_manual(root: Path) -> None:
    (one,) = asked(load(root, WEB).daemons)
    assert one == {
        "name": "web", "command": ("/bin/web",), "cwd": "/", "user": "root", "env": {}, "harden": True,
        "signal": 15, "timeout": 10.0, "always": True, "max_restarts": 10,
        "ready": None, "ready_timeout": 30.0, "after": (),
    }  # fmt: skip


def test_everything_said(root: Path) -> None:
    text = WEB + (
        'cwd = "/srv"\nsignal = "USR1"\ntimeout = 0\nrestart = "on-failure"\nmax_restarts = 0\nharden = false\n'
        'ready = { tcp = 8080 }\nready_timeout = 1.5\nenv = { A = "${TOKEN}$$" }\n'
    )
    (one,) = asked(load(root, text).daemons)
    assert one["env"] == {"A": "t$"}
    assert (one["signal"], one["timeout"], one["always"], one["ready"]) == (10, 0.0, False, ("tcp", 8080))
    assert patience(load(root, text).daemons) is None
    assert patience(load(root, WEB + "timeout = 2.5\n" + WEB.replace("web]", "db]")).daemons) == 12.5


def test_the_numbers_of_signals_are_linuxs() -> None:
    assert {name: int(signal.Signals[name]) for name in _NUMBERS} == _NUMBERS


@pytest.mark.parametrize("ready", ['command = ["true"]', 'socket = "/run/x"', 'log = "up"'])
def test_the_other_ways_to_be_ready(root: Path, ready: str) -> None:
    (one,) = asked(load(root, f"{WEB}[daemons.web.ready]\n{ready}\n").daemons)
    assert one["ready"][0] == ready.split(maxsplit=1)[0]


def test_they_are_ordered_by_after(root: Path) -> None:
    text = "".join(
        f'[daemons.{name}]\ncommand = ["x"]\nafter = {after}\n'
        for name, after in (("c", ["b", "a"]), ("b", ["a"]), ("a", []), ("d", []))
    )
    order = [each["name"] for each in asked(load(root, text).daemons)]
    assert [name for name in order if name != "d"] == ["a", "b", "c"]
    assert set(order) == set("abcd")


def test_a_command_replaces_that_of_a_weaker_layer(root: Path) -> None:
    config = load(
        root, WEB + 'after = ["db"]\n' + WEB.replace("web]", "db]"), '[daemons.web]\ncommand = ["y", "z"]\n'
    )
    assert config.daemons["web"].command == ("y", "z")
    assert config.daemons["web"].after == ("db",)
    assert config.daemons["db"].command == ("/bin/web",)


def test_one_that_is_null_is_none(root: Path) -> None:
    (root / "airlock.json").write_text('{"daemons": {"web": null, "db": {"command": ["x"], "after": null}}}')
    assert [each["name"] for each in asked(load_config(root).daemons)] == ["db"]


def test_one_that_is_off_is_waited_for_by_nobody(root: Path) -> None:
    config = load(
        root, WEB + 'after = ["db"]\n' + WEB.replace("web]", "db]"), "[daemons.db]\nenabled = false\n"
    )
    assert [each["name"] for each in asked(config.daemons)] == ["web"]
    assert config.daemons["web"].after == ()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[daemons.web]", "1:10: missing key 'command' in [daemons.web]"),
        ("[daemons.web]\ncommand = []", "2:1: 'command': expected an array with a program"),
        ('[daemons.web]\ncommand = "x"', "2:1: 'command': expected an array with a program"),
        (WEB + 'signal = "STOP"', "3:1: 'signal': expected one of TERM, INT, HUP"),
        (WEB + "timeout = -1", "3:1: 'timeout': expected a number of seconds"),
        (WEB + "timeout = inf", "3:1: 'timeout': expected a number of seconds"),
        (WEB + "timeout = true", "3:1: 'timeout': expected a number of seconds"),
        (WEB + "max_restarts = -1", "3:1: 'max_restarts': expected an integer"),
        (WEB + 'restart = "never"', "3:1: 'restart': expected one of 'always', 'on-failure', found 'never'"),
        (WEB + 'cwd = "srv"', "3:1: 'cwd': 'srv' is not absolute"),
        (WEB + "ready = {}", "3:1: ready needs exactly one of"),
        (WEB + 'ready = { tcp = 1, log = "x" }', "3:1: ready needs exactly one of"),
        (WEB + "ready = { tcp = 70000 }", "3:11: 'tcp': expected the number of a port"),
        (WEB + 'env = { A = "${NOT}" }', "3:9: 'A': the variable NOT is not defined"),
        (WEB + 'after = ["db"]', "3:10: daemon web is to start after 'db', which is none"),
        (WEB + 'after = ["web"]', "3:1: daemons wait for each other in a circle: web → web"),
        (
            WEB + 'after = ["b"]\n[daemons.b]\ncommand = ["x"]\nafter = ["web"]',
            "daemons wait for each other in a circle: ",
        ),
    ],
)
def test_what_is_wrong_is_told_at_its_place(root: Path, text: str, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        asked(load(root, text).daemons)
    assert said in str(caught.value).removeprefix(f"{root}/airlock.toml:")


def test_what_a_guest_says_of_its_daemons_is_made_safe() -> None:
    for state in ("up", "ended", "backoff", "failed", "late", "killed", "stopped"):
        event = {"daemon": "\x1b[2J", "state": state}
        for key in ("how", "restarts", "delay", "timeout", "said"):
            event[key] = "a\x1b]0;x\x07\nb" * 200
        text = line(event)
        assert text is not None
        assert "\x1b" not in text
        assert "\x07" not in text
        assert len(text) < 1500
    assert line({"daemon": "x", "state": "waiting"}) is None
    assert line({}) is None


@pytest.mark.parametrize(
    ("event", "given"),
    [
        ({"daemon": "web", "state": "backoff"}, True),
        ({"daemon": "web", "state": "failed"}, True),
        ({"daemon": "web", "state": "late"}, True),
        ({"daemon": "web", "state": "up"}, False),
        ({"daemon": "free", "state": "failed"}, False),
        ({"daemon": "unknown", "state": "failed"}, False),
        ({"daemon": ["web"], "state": "failed"}, False),
        ({"daemon": "web", "state": "failed", "how": "exit code 1"}, True),
        ({"daemon": "web", "state": "failed", "how": "harden: Operation not permitted"}, True),
        ({}, False),
    ],
)
def test_who_fails_without_privileges_is_told_of_the_key(
    root: Path, event: dict[str, Any], given: bool
) -> None:
    config = load(root, WEB + '[daemons.free]\ncommand = ["x"]\nharden = false\n')
    text = advice(event, config.daemons)
    assert (text is not None) == given
    assert "[daemons.web] harden = false" in (text or "[daemons.web] harden = false")


@pytest.mark.parametrize("harden", ["true", "false"])
@pytest.mark.parametrize(
    ("how", "key", "hint"),
    [
        ("exec: No such file or directory", "command", "/bin/web has to be a program of the sandbox"),
        ("exec: Permission denied", "command", "/bin/web has to be a program of the sandbox"),
        ("the sandbox has no user x", "user", "root has to be a user of the sandbox"),
        ("/: chdir: No such file or directory", "cwd", "/ has to be a directory that is there"),
    ],
)
def test_one_that_cannot_be_executed_is_not_for_lack_of_privileges(
    root: Path, how: str, key: str, hint: str, harden: str
) -> None:
    config = load(root, WEB + f"harden = {harden}\n")
    event = {"daemon": "web", "state": "failed", "how": how}
    assert blamed(event) == ("daemons", "web", key)
    assert (advice(event, config.daemons) or "").startswith(hint)


@pytest.mark.parametrize("event", [{"how": 1}, {"daemon": []}, {"state": "backoff"}, {"how": "exit code 1"}])
def test_nothing_else_is_to_blame(event: dict[str, Any]) -> None:
    assert blamed({"daemon": "web", "state": "failed", "how": "exec: x", **event}) == ()
