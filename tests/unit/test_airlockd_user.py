"""Users of the sandbox, by the files that the sandbox has; and how a login shell runs a command."""

from __future__ import annotations

import subprocess
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airlockd.owner import NumberTakenError, renumbered
from airlockd.process import login_argv
from airlockd.user import ROOT, User, look_up, ordinary

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

PASSWD = """\
root:x:0:0:root:/root:/bin/bash
broken:x:one:1::/:/bin/sh
short:x:7
worker:x:1000:1001:Worker,,,:/home/worker:/bin/zsh
bare:x:1002:1002:::
huge:x:99999999999:0::/:/bin/sh
worker:x:0:0::/root:/bin/sh
"""
GROUP = "root:x:0:\nbroken:x:\nsudo:x:27:other,worker\nworker:x:1001:\nusers:x:100:worker\nbad:x:x:worker\n"


@pytest.fixture
def etc(tmp_path: Path) -> str:
    (tmp_path / "passwd").write_text(PASSWD)
    (tmp_path / "group").write_text(GROUP)
    return str(tmp_path)


@pytest.mark.parametrize(
    ("wanted", "user"),
    [
        ("root", User("root", 0, 0, "/root", "/bin/bash")),
        ("0", User("root", 0, 0, "/root", "/bin/bash")),
        ("worker", User("worker", 1000, 1001, "/home/worker", "/bin/zsh", (27, 100))),
        ("1000", User("worker", 1000, 1001, "/home/worker", "/bin/zsh", (27, 100))),
        ("bare", User("bare", 1002, 1002, "/", "/bin/sh")),
        ("4321", User("4321", 4321, 4321, "/", "/bin/sh")),
    ],
)
def test_a_user_is_found_by_name_or_number(etc: str, wanted: str, user: User) -> None:
    assert look_up(wanted, etc) == user


@pytest.mark.parametrize("wanted", ["nobody", "broken", "short", "huge", "99999999999", "-1", "", "²"])
def test_a_user_that_is_not_there_is_an_error(etc: str, wanted: str) -> None:
    with pytest.raises(LookupError, match="the sandbox has no user"):
        look_up(wanted, etc)


def test_root_is_there_without_any_files(tmp_path: Path) -> None:
    assert look_up("root", str(tmp_path)) == look_up("0", str(tmp_path)) == ROOT
    assert ROOT.environment() == {"HOME": "/root", "USER": "root", "LOGNAME": "root", "SHELL": "/bin/sh"}


@given(st.text(), st.text())
def test_no_file_of_a_sandbox_makes_an_id_that_is_none(
    tmp_path_factory: pytest.TempPathFactory, passwd: str, group: str
) -> None:
    etc = tmp_path_factory.mktemp("etc")
    (etc / "passwd").write_text(f"a:x:{passwd}:/h:/s\n", encoding="utf-8", errors="replace")
    (etc / "group").write_text(f"g:x:{group}:a\n", encoding="utf-8", errors="replace")
    try:
        user = look_up("a", str(etc))
    except LookupError:
        return
    assert all(0 <= number < 2**32 - 1 for number in (user.uid, user.gid, *user.groups))


@pytest.mark.parametrize("argv", [["printf", "%s|", "a b", "", "$HOME", "'"], ["true"]])
def test_a_login_shell_passes_every_word_on(argv: Sequence[str]) -> None:
    plain = subprocess.run(argv, capture_output=True, check=True).stdout
    for shell in ("/bin/sh", "/bin/bash"):
        words = login_argv(shell, argv)
        assert words[:2] == [shell, "-l"]
        assert subprocess.run(words, capture_output=True, check=True).stdout == plain


def test_a_login_shell_alone_and_one_that_is_not_posix() -> None:
    assert login_argv("/usr/bin/fish", []) == ["/usr/bin/fish", "-l"]
    assert login_argv("/usr/bin/fish", ["true"])[0] == "/bin/sh"


WITH_AGENT = b"root:x:0:0:root:/root:/bin/bash\nagent:x:1000:1000:A,,,:/home/agent:/bin/bash\nbroken:x\n"
AGENT = User("agent", 1000, 1000, "/home/agent", "/bin/bash")


def test_one_number_in_passwd_is_another() -> None:
    assert renumbered(WITH_AGENT, AGENT, 501) == WITH_AGENT.replace(b":1000:1000:", b":501:1000:")
    twice = WITH_AGENT + b"agent:x:1000:1000::/:/bin/sh\n"
    assert renumbered(twice, AGENT, 501).count(b"501") == 1
    with pytest.raises(NumberTakenError):
        renumbered(WITH_AGENT + b"other:x:501:501::/:/bin/sh\n", AGENT, 501)


@pytest.mark.parametrize("passwd", [b"", b"agent:x:1001:1001::/:/bin/sh\n", WITH_AGENT + b"#" * (1 << 20)])
def test_a_passwd_without_that_line_or_too_long_stays(passwd: bytes) -> None:
    with pytest.raises(OSError, match="/etc/passwd"):
        renumbered(passwd[: 1 << 20], AGENT, 501)


@pytest.mark.parametrize(
    ("uid", "is_one"), [(0, False), (999, False), (1000, True), (59999, True), (65534, False)]
)
def test_numbers_of_people(uid: int, is_one: bool) -> None:
    assert ordinary(uid) is is_one
