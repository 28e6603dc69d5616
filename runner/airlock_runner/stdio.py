"""Our terminal or pipes, connected to one command on the other end of a control link.

The session uses it for the main command, `airlock exec` for an attached one.
"""

from __future__ import annotations

import errno
import os
import signal
import stat
import sys
import termios
import tty
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from airlock_runner.config import place_if_said
from airlock_runner.control import outcome
from airlock_runner.text import one_line, printable
from airlock_store.errors import AirlockError
from airlockd.protocol.frames import MAX_HEADER
from airlockd.protocol.pumps import Sink, Source

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from airlock_runner.control import Control
    from airlockd.protocol.frames import Header

FORWARDED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2)


class Signals:
    """Signals as loop events: `on_signal(number)` is called from the loop, never from a handler."""

    def __init__(self, control_loop: Any, on_signal: Callable[[int], None]) -> None:
        self._loop = control_loop
        self._read, self._write = os.pipe()
        os.set_blocking(self._read, False)
        os.set_blocking(self._write, False)
        self._previous = {
            number: signal.signal(number, lambda _number, _frame: None)
            for number in (*FORWARDED, signal.SIGWINCH)
        }
        self._wakeup = signal.set_wakeup_fd(self._write, warn_on_full_buffer=False)

        def woken() -> None:
            for number in os.read(self._read, 512):
                on_signal(number)

        self._loop.on_readable(self._read, woken)

    def close(self) -> None:
        """Handle signals as before."""
        signal.set_wakeup_fd(self._wakeup)
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._loop.forget(self._read)
        os.close(self._read)
        os.close(self._write)


def on_terminal() -> bool:
    """Whether a command gets a terminal: where both its input and its output are one.

    With output in a file or a pipe it has none, or what it writes would have carriage returns in it, and its errors.
    """
    return os.isatty(0) and os.isatty(1)


class Terminal:
    """The user's terminal, where the command gets one: raw while the command has it, and its size."""

    def __init__(self) -> None:
        self.present = on_terminal()
        self._saved: list[Any] | None = None

    def size(self) -> tuple[int, int] | None:
        """(rows, columns), or None without a terminal."""
        if not self.present:
            return None
        try:
            columns, rows = os.get_terminal_size(0)
        except OSError:
            return (24, 80)
        return (rows or 24, columns or 80)

    def raw(self) -> None:
        """Every key goes to the command, Ctrl-C too."""
        if self.present and self._saved is None:
            # One that was closed has nothing to be set: its end is told by SIGHUP, and is no error of ours.
            with suppress(termios.error):
                self._saved = termios.tcgetattr(0)
                tty.setraw(0, termios.TCSADRAIN)

    def gone(self) -> bool:
        """Whether there was one, which is closed by now."""
        if self.present:
            try:
                termios.tcgetattr(0)
            except termios.error:
                return True
        return False

    def restore(self) -> None:
        """As the user had it; harmless when nothing was changed."""
        if self._saved is not None:
            saved, self._saved = self._saved, None
            with suppress(termios.error):
                termios.tcsetattr(0, termios.TCSADRAIN, saved)


class TooLongError(AirlockError):
    """A command with its arguments and variables is more than one call to the sandbox holds."""

    exit_code = 126

    def __init__(self, argv: Sequence[str]) -> None:
        super().__init__(
            f"{_name(argv)}: argument list too long",
            hint=f"arguments and variables may have {MAX_HEADER >> 10} KB together; more goes through standard input",
        )


def _ignore(_header: Header) -> None:
    pass


class RemoteCommand:
    """One command at the other end, with our stdio. `finished(code)` comes after all its output is written.

    `started` comes when it is executed, `failed` instead where it cannot be. Raises TooLongError.
    """

    def __init__(
        self,
        control: Control,
        terminal: Terminal,
        arguments: Mapping[str, Any],
        finished: Callable[[int], None],
        failed: Callable[[Header], None],
        *,
        started: Callable[[Header], None] = _ignore,
    ) -> None:
        self._control, self._terminal, self._finished = control, terminal, finished
        self._code: int | None = None
        self._lost = False
        self.process = control.number()
        streams = [control.number() for _ in range(3)]
        size = terminal.size()
        call = {**arguments, "process": self.process, "size": size, "streams": streams}
        if not control.fits("spawn", call):
            raise TooLongError(arguments["argv"])
        link = control.link
        self._input = Source(link, os.dup(0), streams[0])
        outputs = (1,) if size else (1, 2)
        self._outputs = [
            Sink(link, _output(fd), streams[fd], self._maybe_finish, self._cannot_write) for fd in outputs
        ]
        terminal.raw()

        def refused(header: Header) -> None:
            self.close()
            failed(header)

        control.call("spawn", call, started, refused)

    def signal(self, number: int) -> None:
        """Pass a signal on, or the window's new size."""
        size = self._terminal.size()
        if number == signal.SIGWINCH:
            if size:
                self._call("resize", rows=size[0], columns=size[1])
        else:
            self._call("signal", signal=int(number))

    def exited(self, header: Header) -> None:
        """The other end says how it ended."""
        how = outcome(header)
        self._code = how["code"] if "code" in how else 128 + how["signal"]
        self._maybe_finish()

    def close(self) -> None:
        """Let go of stdio and give the terminal back."""
        self._input.stop()
        for sink in self._outputs:
            sink.stop()
        self._terminal.restore()

    def _maybe_finish(self) -> None:
        if self._code is not None and all(sink.done for sink in self._outputs):
            code, self._code = self._code, None
            self.close()
            # Who reads the exit code must not take a file that was cut short for a whole one.
            self._finished(code or int(self._lost))

    def _cannot_write(self, error: OSError) -> None:
        # Who no longer reads a pipe or a terminal knows that.
        if error.errno not in (errno.EPIPE, errno.EIO):
            self._lost = True
            tell(f"the command's output cannot be written: {error.strerror}")

    def _call(self, op: str, **arguments: int) -> None:
        self._control.call(op, {"process": self.process, **arguments}, _ignore, _ignore)


def _output(number: int) -> int:
    """A descriptor of our own for an output, non-blocking where that does not change it for others."""
    if stat.S_ISFIFO(os.fstat(number).st_mode):
        try:
            # Opened anew, a pipe has flags of its own: large writes never block the loop.
            return os.open(f"/proc/self/fd/{number}", os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError:
            pass
    return os.dup(number)


def command_environment(argv_env: Mapping[str, str]) -> dict[str, str]:
    """What a command needs to know of our terminal, under what the user set for it."""
    names = ("TERM", "COLORTERM") if on_terminal() else ()
    return {**{name: os.environ[name] for name in names if name in os.environ}, **argv_env}


def spawn_error_code(header: Header) -> int:
    """The exit code for a command that could not be started, as shells have it: 127 not found, 126 otherwise."""
    return 127 if header.get("errno") == 2 and header.get("stage") == "exec" else 126


def tell(text: str) -> None:
    """A line of ours on stderr. Where nobody reads it any more, the sandbox still has to end in an orderly manner."""
    try:
        # Names of directories are in it that a sandbox may have given.
        sys.stderr.write(f"airlock: {printable(text, 20_000)}\n")
        sys.stderr.flush()
    except BlockingIOError:
        pass
    except OSError:
        # The terminal was closed, or the pipe: what Python still holds for it goes nowhere, and all that follows.
        null = os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)
        os.dup2(null, 2)
        os.close(null)


def complain(argv: Sequence[str], header: Header, root: Path) -> None:
    """Tell the user why a command did not start in the sandbox of the project at `root`."""
    message = one_line(str(header.get("message", "it could not be started")), 300)
    # No call of the kernel failed: the sandbox does not have the user.
    at = place_if_said(root, "vm", "user") if header.get("errno") == 0 else None
    tell(f"{at}: {_name(argv)}: {message}" if at else f"{_name(argv)}: {message}")


def _name(argv: Sequence[str]) -> str:
    return one_line(argv[0], 200) if argv else "login shell"
