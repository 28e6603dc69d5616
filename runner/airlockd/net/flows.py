"""The flow table: which connection of the guest is which connection to our listener. Pure; service.py drives it.

A packet of the guest from A:p to D:q is put back into airlock0 as one from GATEWAY:f to DEVICE:listener, where f is
the flow's own port, and the listener's answer as one from D:q to A:p. So the guest's kernel ends every connection.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Any, Protocol

from airlockd.net.packet import FIN, RST, Rewrite, back, rewriting

if TYPE_CHECKING:
    from collections.abc import Iterator

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
    """What keeps rewrites too: fastpath.py."""

    def add(self, tuple_: bytes, how: Rewrite) -> None:
        """Packets of the tuple are rewritten so."""

    def remove(self, tuple_: bytes) -> None:
        """They are not any more."""


class Flows:
    """All flows, by the guest's tuple and by port."""

    def __init__(
        self, listener: int, first: int = FIRST_PORT, last: int = LAST_PORT, *, mirror: Mirror | None = None
    ) -> None:
        """`mirror` hears of what comes into `rewrites` and leaves it."""
        self._mirror = mirror
        self.rewrites: dict[bytes, Rewrite] = {}
        """What to do with packets of established flows, by tuple, in both directions."""
        self._listener = listener.to_bytes(2, "big")
        self._by_tuple: dict[bytes, Flow] = {}
        self._by_port: dict[int, Flow] = {}
        self._answers: dict[bytes, Flow] = {}
        self._free: deque[int] = deque(range(first, last + 1))
        self._quiet: deque[tuple[float, Flow]] = deque()

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
        self._answers[answer] = flow
        for tuple_, to in ((flow.tuple, inner), (answer, back(flow.tuple))):
            self.rewrites[tuple_] = how = rewriting(tuple_, to)
            if self._mirror is not None:
                self._mirror.add(tuple_, how)

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
        """Forget the flows that have been quiet for long enough, and give them; call it now and then."""
        gone = []
        while self._quiet and self._quiet[0][0] <= now:
            flow = self._quiet.popleft()[1]
            if self._by_port.get(flow.port) is flow:
                self.remove(flow)
                gone.append(flow)
        return gone

    def remove(self, flow: Flow) -> None:
        """Forget a flow; harmless when it is not known any more."""
        if self._by_port.get(flow.port) is not flow:
            return
        del self._by_port[flow.port], self._by_tuple[flow.tuple]
        self._free.append(flow.port)
        rewrite = self.rewrites.pop(flow.tuple, None)
        if rewrite is not None:
            answer = back(rewrite.tuple)
            del self.rewrites[answer], self._answers[answer]
            if self._mirror is not None:
                self._mirror.remove(flow.tuple)
                self._mirror.remove(answer)
