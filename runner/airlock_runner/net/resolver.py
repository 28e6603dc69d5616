"""Names to addresses, in a few threads beside the loop: what `getaddrinfo` says, each name asked for once.

A name is looked up exactly as it is: search domains of the host never make another of it.
"""

from __future__ import annotations

# `getaddrinfo` imports it with the first name, in a thread, and says that there is no such codec where that fails.
import encodings.idna  # noqa: F401
import os
import queue
import socket
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING

from airlock_runner.net.addresses import parse_address

if TYPE_CHECKING:
    from airlock_runner.net.addresses import Address
    from airlockd.protocol.loop import Loop

MAX_THREADS = 32
MAX_ADDRESSES = 16
"""Of one name, in the order in which they are to be tried."""
CACHE_SECONDS = 60.0
MAX_CACHED = 1024
HOSTS_FILE = "/etc/hosts"
NO_NAME = (socket.EAI_NONAME, getattr(socket, "EAI_NODATA", socket.EAI_NONAME))
"""That there is no such name, or none with an address, is an answer. What else `getaddrinfo` may say is a failure."""

Addresses = tuple["Address", ...]
Then = Callable[["Addresses | None"], None]
"""Is called with what a name has, nothing included, or None where the lookup failed."""


class Ticket:
    """A lookup that somebody waits for; `cancel` makes it nobody's."""

    __slots__ = ("then",)

    def __init__(self, then: Then) -> None:
        self.then: Then | None = then

    def cancel(self) -> None:
        """Nobody waits any more."""
        self.then = None


class _Job:
    """A name that is looked up, for all that asked for it meanwhile. `put_aside`: nobody waited any more."""

    __slots__ = ("answer", "name", "put_aside", "tickets")

    def __init__(self, name: str) -> None:
        self.name = name
        self.tickets: list[Ticket] = []
        self.answer: Addresses | None = None
        self.put_aside = False

    @property
    def wanted(self) -> bool:
        return any(ticket.then is not None for ticket in self.tickets)


class Resolver:
    """Asks for names in threads that are made as needed; answers come from the loop. `look_up` does one name."""

    def __init__(self, loop: Loop, look_up: Callable[[str], Addresses] | None = None) -> None:
        self._loop, self._look_up = loop, look_up or look_up_name
        self._waiting: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._done: deque[_Job] = deque()
        self._jobs: dict[str, _Job] = {}
        self._threads = 0
        self._lock = threading.Lock()
        self._cache: dict[str, tuple[float, Addresses]] = {}
        self._read, self._write = os.pipe()
        os.set_blocking(self._read, False)
        os.set_blocking(self._write, False)
        loop.on_readable(self._read, self._deliver)

    def resolve(self, name: str, then: Then) -> Ticket:
        """Call `then` with the addresses of `name`; never at once."""
        ticket = Ticket(then)
        job = self._jobs.get(name)
        if job is None:
            job = self._jobs[name] = _Job(name)
            self._waiting.put(job)
        job.tickets.append(ticket)
        with self._lock:
            if self._threads < min(len(self._jobs), MAX_THREADS):
                self._threads += 1
                try:
                    # A daemon: one that waits for a dead name server does not hold up the end of the sandbox.
                    threading.Thread(target=self._work, name="resolve", daemon=True).start()
                except RuntimeError:
                    # There can be no more now: the name waits for another's, or the next.
                    self._threads -= 1
        return ticket

    def cached(self, name: str) -> Addresses | None:
        """What the last answer was, if it is not older than a minute. A failure is none."""
        found = self._cache.get(name)
        return found[1] if found is not None and found[0] > time.monotonic() else None

    def close(self) -> None:
        """Have the threads end, each when it is done with its name; harmless when closed."""
        if self._read < 0:
            return
        self._loop.forget(self._read)
        os.close(self._read)
        self._read = -1
        with self._lock:
            for _ in range(self._threads):
                self._waiting.put(None)
            if not self._threads:
                os.close(self._write)

    def _work(self) -> None:
        while (job := self._waiting.get()) is not None:
            job.put_aside = not job.wanted
            if not job.put_aside:
                job.answer = self._try(job.name)
            self._done.append(job)
            try:
                os.write(self._write, b"x")
            except OSError:
                # A full pipe is word enough; a closed one is the end.
                pass
        with self._lock:
            self._threads -= 1
            if not self._threads:
                os.close(self._write)

    def _try(self, name: str) -> Addresses | None:
        try:
            return self._look_up(name)
        except socket.gaierror as error:
            return () if error.errno in NO_NAME else None
        except Exception:
            # The thread has other names to see to.
            return None

    def _deliver(self) -> None:
        os.read(self._read, 4096)
        while self._done:
            job = self._done.popleft()
            if job.put_aside and job.wanted:
                # Somebody asked just after it was put aside.
                self._waiting.put(job)
                continue
            del self._jobs[job.name]
            if job.put_aside:
                continue
            if job.answer is not None:
                self._cache.pop(job.name, None)
                if len(self._cache) >= MAX_CACHED:
                    del self._cache[next(iter(self._cache))]
                self._cache[job.name] = (time.monotonic() + CACHE_SECONDS, job.answer)
            for ticket in job.tickets:
                if ticket.then is not None:
                    ticket.then(job.answer)


def look_up_name(name: str) -> Addresses:
    """The addresses of `name` by the hosts file, or else by the system's resolver. Raises OSError for a failure."""
    given = _in_hosts_file(name)
    if given:
        return given[:MAX_ADDRESSES]
    # With its final dot a name is complete, and no search domain is appended.
    found = socket.getaddrinfo(f"{name}.", None, type=socket.SOCK_STREAM)
    addresses: dict[Address, None] = {}
    for family, _, _, _, where in found:
        if family in (socket.AF_INET, socket.AF_INET6):
            try:
                addresses[parse_address(str(where[0]))] = None
            except ValueError:
                continue
    return tuple(addresses)[:MAX_ADDRESSES]


def _in_hosts_file(name: str) -> Addresses:
    """Raises OSError where the file is there and cannot be read just now: not for ever, but for want of descriptors."""
    found: list[Address] = []
    try:
        with open(HOSTS_FILE, encoding="utf-8", errors="replace") as file:
            for line in file:
                address, *names = line.partition("#")[0].split() or [""]
                if any(each.lower().removesuffix(".") == name for each in names):
                    try:
                        found.append(parse_address(address))
                    except ValueError:
                        continue
    except (FileNotFoundError, PermissionError):
        return ()
    return tuple(dict.fromkeys(found))
