"""A terminal on both ends: PTY, raw mode, window size, Ctrl-C, and the user's terminal as it was afterwards."""

from __future__ import annotations

import os
import pty
import select
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import pexpect
import pytest
from sandboxes import COMMAND, running, write_config

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.usefixtures("base_image")

Spawn = Callable[..., pexpect.spawn]


@pytest.fixture
def terminal(project: Path) -> Iterator[Spawn]:
    """Starts the airlock command in a terminal of 33 rows and 111 columns."""
    opened: list[pexpect.spawn] = []

    def spawn(*arguments: str) -> pexpect.spawn:
        child = pexpect.spawn(
            os.fspath(COMMAND),
            list(arguments),
            cwd=project,
            env={**os.environ, "TERM": "xterm"},
            dimensions=(33, 111),
            timeout=120,
            encoding="utf-8",
        )
        opened.append(child)
        return child

    yield spawn
    for child in opened:
        child.close(force=True)


def end(child: pexpect.spawn) -> int:
    child.expect(pexpect.EOF)
    child.wait()
    return int(child.exitstatus if child.exitstatus is not None else 128 + child.signalstatus)


def test_a_terminal_is_the_users(terminal: Spawn, project: Path) -> None:
    project.chmod(0o755)
    write_config(project, 'user = "games"')
    script = "echo one >/dev/stdout; echo two >$(tty); echo three >/dev/tty; stat -c %U $(tty); exit 3"
    child = terminal("start", "--", "sh", "-c", script)
    child.expect("one\r\ntwo\r\nthree\r\ngames\r\n")
    assert end(child) == 3


def test_an_exec_ends_with_its_terminal(project: Path) -> None:
    """Also where its command does not: somebody else may wait for the end of what he has started."""
    write_config(project, "")
    with running(project):
        pid, terminal = pty.fork()
        if not pid:
            os.chdir(project)
            os.execv(COMMAND, [COMMAND, "exec", "sh", "-c", "trap '' HUP; echo up; sleep 1000"])
        end = os.pidfd_open(pid)
        while b"up" not in os.read(terminal, 1000):
            pass
        os.close(terminal)
        assert select.select([end], [], [], 60)[0]
        os.close(end)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 129


def test_a_shell_in_a_terminal(terminal: Spawn) -> None:
    """The image's own command: a shell that has a terminal of the right size, resized and interrupted."""
    child = terminal("start")
    child.expect("# ")
    child.sendline("stty size; stty -a | grep -o '[-]*iutf8'; tty; echo TERM=$TERM; test -t 2 && echo all")
    child.expect("33 111\r\niutf8\r\n")
    child.expect("/dev/pts/0\r\n")
    child.expect("TERM=xterm\r\nall\r\n")
    # Not readline's shell, which runs a trap only at the next line; said in two halves, so that the line's own echo
    # is not taken for the answer.
    child.sendline(
        "sh -c 'trap \"stty size; echo resized; kill \\$!; exit\" WINCH; echo rea''dy; sleep 1000 & wait'"
    )
    child.expect("ready\r\n")
    child.setwinsize(44, 122)
    child.expect("44 122\r\nresized\r\n")
    # Said by the command itself, which then has the terminal: before that, Ctrl-C would be the shell's.
    child.sendline("sh -c 'echo be''gin; exec sleep 1000'")
    child.expect("begin\r\n")
    child.sendintr()
    child.sendline("echo after $?")
    child.expect("after 130\r\n")
    child.sendline("exit 7")
    assert end(child) == 7


def test_exec_has_a_terminal_too(terminal: Spawn, project: Path) -> None:
    with running(project):
        child = terminal("exec", "sh", "-c", "stty size; read line; echo got $line; exit 5")
        child.expect("33 111\r\n")
        child.sendline("words")
        child.expect("got words\r\n")
        assert end(child) == 5


def test_what_goes_to_a_file_is_as_it_was_written(terminal: Spawn, project: Path) -> None:
    """With a terminal for input: no carriage returns, no errors among it, and Ctrl-C all the same."""
    with running(project):
        shell = pexpect.spawn("/bin/sh", timeout=120, encoding="utf-8", cwd=project)
        script = r"printf 'a\nb\n\0'; echo oops >&2; test -t 0 || exit 3"
        shell.sendline(f'{COMMAND} exec sh -c "{script}" > out 2> err; echo code $?')
        shell.expect("code 3\r\n")
        assert (project / "out").read_bytes() == b"a\nb\n\0"
        assert (project / "err").read_bytes() == b"oops\n"
        shell.sendline(f"{COMMAND} exec sh -c 'echo be''gin; exec sleep 1000' | cat")
        shell.expect("begin\r\n")
        shell.sendintr()
        shell.sendline("echo ba''ck")
        shell.expect("back\r\n")
        shell.close(force=True)


def test_the_terminal_is_as_it_was(terminal: Spawn) -> None:
    """Also after an end that was not the command's."""
    shell = pexpect.spawn("/bin/sh", timeout=120, encoding="utf-8", cwd=terminal("--version").cwd)
    shell.sendline("stty -a | cksum; PS1=; echo sh-ready")
    shell.expect(r"(\d+ \d+)\r\n.*sh-ready\r\n")
    before = shell.match[1]
    shell.sendline(
        f"{COMMAND} -q start -- sh -c 'echo in-guest; exec sleep 1000'; stty -a | cksum; echo back"
    )
    shell.expect("in-guest\r\n")
    shell.sendintr()
    shell.expect(r"(\d+ \d+)\r\nback\r\n")
    assert shell.match[1] == before
    shell.close(force=True)


def test_a_terminal_that_is_closed_stops_all_in_order(terminal: Spawn, project: Path) -> None:
    """Though nobody hears any more what is told of that."""
    script = f"trap 'echo in order >{project}/ended; exit' TERM; echo up; while :; do sleep 0.1; done"
    write_config(project, f'[daemons.last]\ncommand = ["sh", "-c", "{script}"]\nready = {{ log = "up" }}\n')
    child = terminal("start", "--", "sh", "-c", "trap '' HUP; echo in-guest; exec sleep 1000")
    child.expect("in-guest\r\n")
    child.ptyproc.fileobj.close()
    child.ptyproc.closed = True
    assert child.wait() == 129
    assert (project / "ended").read_text() == "in order\n"
