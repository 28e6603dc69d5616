"""A sandbox that runs in the background for as long as a test, or a module of tests, needs it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

COMMAND = Path(sys.executable).with_name("airlock")
UP = b"sandbox-is-up"


class Running:
    """`airlock start` in the background, past the point where its command runs."""

    def __init__(
        self,
        project: Path,
        script: str = "",
        env: Mapping[str, str] | None = None,
        through: Sequence[str] = (),
    ) -> None:
        """`script` is run by sh after word that it is up was given; by default it waits to be stopped.

        `through` is a command that runs the sh, given as its last arguments.
        """
        self.project = project
        self.process = subprocess.Popen(
            [
                *(COMMAND, "start", "--", *through),
                *("sh", "-c", f"echo {UP.decode()}; {script or 'exec sleep infinity'}"),
            ],
            cwd=project,
            env={**os.environ, **(env or {})},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        line = self.stdout.readline()
        if line.strip() != UP:
            raise AssertionError(f"the sandbox did not start: {line!r} {self.stderr.read()!r}")

    @property
    def stdout(self) -> IO[bytes]:
        assert self.process.stdout is not None
        return self.process.stdout

    @property
    def stderr(self) -> IO[bytes]:
        assert self.process.stderr is not None
        return self.process.stderr

    def qemu(self) -> int:
        """The pid of its QEMU, the only child of `airlock start`."""
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        (child,) = [int(pid) for pid in children]
        return child

    def exec(
        self, *argv: str, input: bytes = b"", cwd: Path | None = None
    ) -> subprocess.CompletedProcess[bytes]:
        """`airlock exec` in it, to its end."""
        return subprocess.run(
            [COMMAND, "exec", *argv],
            cwd=cwd or self.project,
            input=input,
            capture_output=True,
            timeout=300,
            check=False,
        )

    def sh(self, script: str) -> str:
        """What a script says in it; the script must succeed."""
        done = self.exec("sh", "-c", script)
        assert done.returncode == 0, done.stderr.decode()
        return done.stdout.decode()

    def wait(self) -> tuple[int, bytes, bytes]:
        """Its exit code, and what it printed since."""
        out, err = self.process.communicate(timeout=300)
        # Why it ended, for a test that fails by that.
        print(err.decode(errors="replace"))
        return self.process.returncode, out, err

    def stop(self) -> int:
        """End it as a user would; gives its exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.wait()[0]


@contextmanager
def running(
    project: Path, script: str = "", env: Mapping[str, str] | None = None, through: Sequence[str] = ()
) -> Iterator[Running]:
    """A sandbox for a block; stopped at its end if it still runs."""
    sandbox = Running(project, script, env, through)
    try:
        yield sandbox
    finally:
        if sandbox.process.poll() is None:
            sandbox.process.terminate()
            try:
                sandbox.process.wait(60)
            except subprocess.TimeoutExpired:
                sandbox.process.kill()
        sandbox.process.communicate()


def log_of(project: Path, *, packets: bool = False) -> list[dict[str, Any]]:
    """Every connection, or all packets that were refused, as `airlock net log` has them."""
    done = subprocess.run([COMMAND, "net", "log", "--json"], cwd=project, capture_output=True, check=True)
    entries = [json.loads(line) for line in done.stdout.splitlines()]
    return [each for each in entries if (each["kind"] == "packet") == packets]


def write_config(project: Path, text: str) -> None:
    """Write airlock.toml with small `[vm]` settings, `text` following in the same table."""
    (project / "airlock.toml").write_text(f'[vm]\nimage = "base"\nmemory = "512 MB"\ncpus = 1\n{text}\n')
