"""The flow table: which connection of the guest is which connection to our listener. Pure; service.py drives it.

A packet of the guest from A:p to D:q is put back into airlock0 as one from GATEWAY:f to DEVICE:listener, where f is
the flow's own port, and the listener's answer as one from D:q to A:p. So the guest's kernel ends every connection.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Any, Protocol

from airlockd.net.packet import FIN, RST, Rewrite, back, rewriting

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

DEVICE, GATEWAY = bytes((192, 168, 77, 1)), bytes((192, 168, 77, 2))
FIRST_PORT, LAST_PORT = 1024, 65535
BOTH = 3
"""`Flow.ends` of a flow that is over."""
QUIET = 10.0
"""Seconds that a flow is known after both ends said FIN, or one RST: their last words may still be under way."""


class Flow:
    """One connection. `tuple` is that of the guest's packets, `port` its own, `broken` says that a RST was seen.

    `state` belongs to service.py.
    """

    __slots__ = ("broken", "ends", "port", "state", "tuple")

    def __init__(self, tuple_: bytes, port: int, state: Any) -> None:
        self.tuple, self.port, self.state = tuple_, port, state
        self.ends = 0
        self.broken = False

    @property
    def target(self) -> bytes:
        """The address that it goes to."""
        return self.tuple[4:8]

    @property
    def target_port(self) -> int:
        """The port that it goes to."""
        return int.from_bytes(self.tuple[10:12], "big")


class Mirror(Protocol):
    """What rewrites packets before they come here: fastpath.py."""

    def add(self, rewrites: Sequence[tuple[bytes, Rewrite]]) -> None:
        """Packets of these tuples are rewritten so."""

    def remove(self, tuples: Sequence[bytes]) -> None:
        """They are not any more."""

    def seen(self, tuple_: bytes) -> int:
        """FIN and RST, where packets of the tuple that did not come here had them."""


class Flows:
    """All flows, by the guest's tuple and by port."""

    def __init__(
        self, listener: int, first: int = FIRST_PORT, last: int = LAST_PORT, *, mirror: Mirror | None = None
    ) -> None:
        """`mirror` hears of what comes into `rewrites` and leaves it, and is asked what has ended."""
        self._mirror = mirror
        self.rewrites: dict[bytes, Rewrite] = {}
        """What to do with packets of established flows, by tuple, in both directions."""
        self._listener = listener.to_bytes(2, "big")
        self._by_tuple: dict[bytes, Flow] = {}
        self._by_port: dict[int, Flow] = {}
        self._answers: dict[bytes, Flow] = {}
        self._free: deque[int] = deque(range(first, last + 1))
        self._quiet: deque[tuple[float, Flow]] = deque()
        self._limits: dict[Flow, float] = {}

    def __len__(self) -> int:
        return len(self._by_tuple)

    def __iter__(self) -> Iterator[Flow]:
        return iter(tuple(self._by_tuple.values()))

    def find(self, tuple_: bytes) -> Flow | None:
        """The flow of a packet of the guest."""
        return self._by_tuple.get(tuple_)

    def by_port(self, port: int) -> Flow | None:
        """The flow whose connection the listener sees come from `port`."""
        return self._by_port.get(port)

    def open(self, tuple_: bytes, state: Any) -> Flow | None:
        """A new flow, which replaces one of the same tuple; None where no port is left."""
        old = self._by_tuple.get(tuple_)
        if old is not None:
            self.remove(old)
        if not self._free:
            return None
        # The port that was free for the longest time: the kernel may remember its last connection.
        flow = Flow(tuple_, self._free.popleft(), state)
        self._by_tuple[tuple_] = self._by_port[flow.port] = flow
        return flow

    def establish(self, flow: Flow) -> None:
        """From now on its packets are rewritten."""
        inner = GATEWAY + DEVICE + flow.port.to_bytes(2, "big") + self._listener
        answer = back(inner)
        there = rewriting(flow.tuple, inner)
        # The same words the other way round.
        home = Rewrite(back(flow.tuple), -there.address_delta % 0xFFFF, -there.delta % 0xFFFF)
        self._answers[answer] = flow
        self.rewrites[flow.tuple], self.rewrites[answer] = there, home
        if self._mirror is not None:
            self._mirror.add(((flow.tuple, there), (answer, home)))

    def limit(self, flow: Flow, until: float | None) -> None:
        """`tidy` is to forget the flow then, should it not have ended before; with None it has no such limit."""
        if until is None:
            self._limits.pop(flow, None)
        elif self._by_port.get(flow.port) is flow:
            self._limits[flow] = until

    def look(self, flow: Flow, now: float) -> None:
        """Learn from the mirror what has ended of the flow."""
        how = self.rewrites.get(flow.tuple)
        if self._mirror is None or how is None:
            return
        for side, tuple_ in ((1, flow.tuple), (2, back(how.tuple))):
            if not flow.ends & side:
                self.ended(tuple_, self._mirror.seen(tuple_), now)

    def ended(self, tuple_: bytes, flags: int, now: float) -> None:
        """A packet of the tuple, in either direction, had these TCP flags, FIN or RST among them."""
        flow = self._by_tuple.get(tuple_)
        side = 1
        if flow is None:
            flow, side = self._answers.get(tuple_), 2
        if flow is None or flow.ends == BOTH:
            return
        if flags & RST:
            flow.broken = True
            flow.ends = BOTH
        elif flags & FIN:
            flow.ends |= side
        if flow.ends == BOTH:
            self._quiet.append((now + QUIET, flow))

    def tidy(self, now: float) -> list[Flow]:
        """Forget the flows whose limit is past, or that have been quiet for long enough, and give them.

        To be called now and then.
        """
        gone = []
        for flow, until in tuple(self._limits.items()):
            self.look(flow, now)
            if flow.ends == BOTH:
                del self._limits[flow]
            elif until <= now:
                gone.append(flow)
        while self._quiet and self._quiet[0][0] <= now:
            flow = self._quiet.popleft()[1]
            if self._by_port.get(flow.port) is flow:
                gone.append(flow)
        self._remove(gone)
        return gone

    def remove(self, flow: Flow) -> None:
        """Forget a flow; harmless when it is not known any more."""
        if self._by_port.get(flow.port) is flow:
            self._remove([flow])

    def _remove(self, flows: Sequence[Flow]) -> None:
        mirrored: list[bytes] = []
        for flow in flows:
            del self._by_port[flow.port], self._by_tuple[flow.tuple]
            self._free.append(flow.port)
            self._limits.pop(flow, None)
            rewrite = self.rewrites.pop(flow.tuple, None)
            if rewrite is not None:
                answer = back(rewrite.tuple)
                del self.rewrites[answer], self._answers[answer]
                mirrored += (flow.tuple, answer)
        if mirrored and self._mirror is not None:
            self._mirror.remove(mirrored)
