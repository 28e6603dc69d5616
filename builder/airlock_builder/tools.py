"""Running other people's programs: streamed output, an end that they cannot miss, errors that say what they said last.

Called by the steps. A child gets its own session, dies with us, and is ended when the build is interrupted.
"""

from __future__ import annotations

import errno
import io
import os
import select
import shutil
import signal
import threading
import time
from collections import deque
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from airlock_store.errors import BuildError, MissingToolError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

COMPILING = {
    "bc": "bc",
    "bison": "bison",
    "flex": "flex",
    "gcc": "gcc",
    "make": "make",
    "strip": "binutils",
    "xz": "xz-utils",
}
"""Those of PACKAGES that only recipes with a compiled kernel need."""
PACKAGES = {
    **COMPILING,
    "aarch64-linux-gnu-gcc": "gcc-aarch64-linux-gnu",
    "apt-cache": "apt",
    "apt-config": "apt",
    "apt-get": "apt",
    "chroot": "coreutils",
    "dpkg-deb": "dpkg",
    "mmdebstrap": "mmdebstrap",
    "mount": "mount",
    "rm": "coreutils",
    "newgidmap": "uidmap",
    "newuidmap": "uidmap",
    "tar": "tar",
    "unshare": "util-linux",
    "x86_64-linux-gnu-gcc": "gcc-x86-64-linux-gnu",
}
"""The Debian package of every program that a step runs from the host."""

SEARCH_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

FULL = "Make room on the disk: that of the store, or of TMPDIR (by default /var/tmp), where trees are built."
_TAIL_LINES = 20
_LINE_END = 32 << 10
"""Bytes that are kept of each end of a line that has more than four times as many."""
_LEFT_OUT = b" [...] "
_LAST_SECONDS = 2.0
_GRACE_SECONDS = 20.0
_REPEAT_SECONDS = 1.0
_PR_SET_PDEATHSIG = 1
_PROXIES = ("http_proxy", "https_proxy", "ftp_proxy", "no_proxy", "all_proxy")


class ToolError(BuildError):
    """A program failed. `tail` has the last lines that it wrote."""

    def __init__(self, message: str, tail: Sequence[str] = (), *, hint: str | None = None) -> None:
        if any(map(_tells_of_no_room, tail)):
            hint = FULL
        super().__init__("\n".join([message, *(f"  {line}" for line in tail)]), hint=hint)
        self.tail = tuple(tail)


def _tells_of_no_room(line: str) -> bool:
    """In a tool's own words, or apt's, because no exit code says it."""
    return os.strerror(errno.ENOSPC) in line or "You don't have enough free space" in line


def find_program(name: str) -> Path:
    """Where the program `name` is. Raises MissingToolError with the package to install."""
    found = look_up(name)
    if found is None:
        package = PACKAGES[name]
        raise MissingToolError(f"{name} is not installed", hint=f"Install the package {package!r}.")
    return found


def look_up(name: str) -> Path | None:
    """Where the program `name` is, if it is installed: in $PATH, or else where the system has its programs.

    Entries that are empty or relative are left out: they would have programs of the current directory run.
    """
    entries = f"{os.environ.get('PATH', '')}:{SEARCH_PATH}".split(":")
    found = shutil.which(name, path=":".join(entry for entry in entries if entry.startswith("/")))
    return Path(found) if found else None


def environment(**extra: str) -> dict[str, str]:
    """What a tool may know about its surroundings: little, and in English. Proxies are passed on."""
    kept = {name: value for name, value in os.environ.items() if name.lower() in _PROXIES}
    return {
        "PATH": SEARCH_PATH,
        "HOME": "/nonexistent",
        "LC_ALL": "C.UTF-8",
        # Tools run in directories of their own, so a relative one would be another for each.
        "TMPDIR": os.path.abspath(os.environ.get("TMPDIR") or "/var/tmp"),
        **kept,
        **extra,
    }


def run(
    argv: Sequence[str | Path],
    *,
    log: Callable[[str], None],
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    name: str | None = None,
    death: signal.Signals = signal.SIGTERM,
) -> None:
    """Run a program to its end; each line of its output goes to `log`. Raises ToolError when it fails.

    Of a line that is very long only the two ends do. `name` is what errors call it, by default the program's own.
    `death` is the signal that it gets when this process is killed.
    """
    import sh

    program, *arguments = [os.fspath(word) for word in argv]
    tail: deque[str] = deque(maxlen=_TAIL_LINES)
    full = False

    def line(text: str) -> None:
        nonlocal full
        # Much may follow until it ends.
        full = full or _tells_of_no_room(text)
        tail.append(text)
        log(text)

    try:
        with _Lines(line) as output:
            _finish(program, arguments, env=env, cwd=cwd, death=death, _out=output, _err=output)
    except sh.ErrorReturnCode as error:
        message = f"{name or Path(program).name} failed ({_end(error.exit_code)})"
        raise ToolError(message, tail, hint=FULL if full else None) from None


def capture(
    argv: Sequence[str | Path], *, env: Mapping[str, str] | None = None, cwd: Path | None = None
) -> str:
    """What a program writes to its standard output. Raises ToolError when it fails."""
    import sh

    program, *arguments = [os.fspath(word) for word in argv]
    # Of what it keeps itself, sh drops the beginning after some megabytes.
    output = io.BytesIO()
    try:
        _finish(program, arguments, env=env, cwd=cwd, _out=output)
    except sh.ErrorReturnCode as error:
        tail = error.stderr.decode(errors="replace").splitlines()[-_TAIL_LINES:]
        raise ToolError(f"{Path(program).name} failed ({_end(error.exit_code)})", tail) from None
    return output.getvalue().decode(errors="replace")


def _finish(program: str, arguments: Sequence[str], **options: Any) -> None:
    """Run to the end; Ctrl-C at any moment ends the program with its children. Raises sh.ErrorReturnCode."""
    with _Interruptions() as pressed:
        command = _start(program, arguments, **options)
        with _end_of(command) as end:
            if end is not None:
                pressed.wait(end, 1, None)
                if pressed.count:
                    _end_group(command, end, pressed)
        command.wait()


class _Lines:
    """Gives what a program writes to `line`, in a thread. sh would gather a line in memory, however long it is."""

    def __init__(self, line: Callable[[str], None]) -> None:
        self._line = line
        self._error: BaseException | None = None
        self._pending = bytearray()
        self._thread = threading.Thread(target=self._follow, daemon=True)

    def __enter__(self) -> int:
        """The handle that the program is to write to."""
        self._output, self._input = os.pipe()
        self._stopped, self._stop = os.pipe()
        self._thread.start()
        return self._input

    def __exit__(self, *_: object) -> None:
        os.close(self._input)
        # What the program wrote last; somebody else may still hold its output.
        self._thread.join(_LAST_SECONDS)
        os.close(self._stop)
        self._thread.join()
        os.close(self._output)
        os.close(self._stopped)
        if self._error is not None:
            raise self._error

    def _follow(self) -> None:
        while self._stopped not in select.select([self._output, self._stopped], [], [])[0]:
            data = os.read(self._output, 1 << 16)
            if not data:
                break
            first, *others = data.split(b"\n")
            self._add(first)
            for each in others:
                self._tell()
                self._add(each)
        if self._pending:
            self._tell()

    def _add(self, data: bytes) -> None:
        self._pending += data
        if len(self._pending) > 4 * _LINE_END:
            # Both ends stay: what a program writes after an unfinished line is the end of that.
            self._pending[_LINE_END:-_LINE_END] = _LEFT_OUT

    def _tell(self) -> None:
        text = self._pending.decode(errors="replace").rstrip("\r")
        self._pending.clear()
        if self._error is None:
            try:
                self._line(text)
            except BaseException as error:
                # The program ends in its own time, and its output must not be in its way.
                self._error = error


class _Interruptions:
    """Keeps Ctrl-C back until the end of the block, and counts how often it was pressed.

    In the middle of sh a KeyboardInterrupt would leave its threads and locks as they are, and the next wait would
    never end. Blocking the signal would not help: any other thread gets it then, and Python raises in this one.
    """

    def __init__(self) -> None:
        self.count = 0

    def __enter__(self) -> _Interruptions:
        self._held = signal.getsignal(signal.SIGINT)
        self._mine = threading.current_thread() is threading.main_thread() and callable(self._held)
        self._awake, self._wake = os.pipe()
        os.set_blocking(self._wake, False)
        if self._mine:
            signal.signal(signal.SIGINT, self._count)
            # A signal that comes just before a wait, or to another thread, would not end it.
            self._woken = signal.set_wakeup_fd(self._wake, warn_on_full_buffer=False)
        return self

    def __exit__(self, *_: object) -> None:
        if self._mine:
            signal.set_wakeup_fd(self._woken)
            signal.signal(signal.SIGINT, self._held)
        os.close(self._awake)
        os.close(self._wake)
        if self.count:
            signal.raise_signal(signal.SIGINT)

    def wait(self, end: int, times: int, seconds: float | None) -> bool:
        """Until `end` is readable, Ctrl-C was pressed so many times or the seconds are over; whether it was `end`."""
        due = None if seconds is None else time.monotonic() + seconds
        while self.count < times:
            left = None if due is None else max(0.0, due - time.monotonic())
            ready = select.select([end, self._awake], [], [], left)[0]
            if self._awake in ready:
                # Of any signal; its handler has run when this returns.
                os.read(self._awake, 512)
            if end in ready or not ready:
                return end in ready
        return False

    def _count(self, _number: int, _frame: object) -> None:
        self.count += 1


@contextmanager
def _end_of(command: Any) -> Iterator[int | None]:
    """A handle that becomes readable when the program ends; None if it has, and sh has noticed."""
    try:
        handle = os.pidfd_open(command.pid)
    except ProcessLookupError:
        yield None
        return
    try:
        yield handle
    finally:
        os.close(handle)


def _start(
    program: str,
    arguments: Sequence[str],
    *,
    env: Mapping[str, str] | None,
    cwd: Path | None,
    death: signal.Signals = signal.SIGTERM,
    **options: Any,
) -> Any:
    import sh

    if cwd is not None:
        options["_cwd"] = os.fspath(cwd)
    return sh.Command(program)(
        *arguments,
        _env=dict(environment() if env is None else env),
        _bg=True,
        _bg_exc=False,
        _tty_out=False,
        _new_session=True,
        _decode_errors="replace",
        _preexec_fn=_die_with_parent(death),
        # What is inheritable is meant to be: locks that hold off the next builder until the last of our programs is
        # gone. Python makes nothing else so.
        _close_fds=False,
        **options,
    )


def _die_with_parent(death: signal.Signals) -> Callable[[], None]:
    """What the child does before it becomes the program. The library is loaded before the fork."""
    import ctypes

    prctl = ctypes.CDLL(None).prctl
    parent = os.getpid()

    def arrange() -> None:
        prctl(_PR_SET_PDEATHSIG, death, 0, 0, 0)
        if os.getppid() != parent:
            os._exit(1)

    return arrange


def _end_group(command: Any, end: int, pressed: _Interruptions) -> None:
    """End a program and all that it started: first politely, because some have mounts to undo.

    Whoever presses Ctrl-C once more does not want to wait for that.
    """
    # It leads a session of its own. Not by sh, which no longer finds the group of a leader that it has reaped.
    with suppress(ProcessLookupError):
        due = time.monotonic() + _GRACE_SECONDS
        ended = False
        while not ended and pressed.count < 2 and time.monotonic() < due:
            # Again and again, because the first of a PID namespace does not get it before it has a handler.
            os.killpg(command.pid, signal.SIGTERM)
            ended = pressed.wait(end, 2, _REPEAT_SECONDS)
        os.killpg(command.pid, signal.SIGKILL)


def _end(exit_code: int) -> str:
    if exit_code < 0:
        return f"killed by {signal.Signals(-exit_code).name}"
    return f"exit code {exit_code}"
