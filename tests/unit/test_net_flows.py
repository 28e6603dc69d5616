"""The flow table against a simple model, and packets through it and back."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from airlockd.net import packet
from airlockd.net.flows import BOTH, DEVICE, GATEWAY, QUIET, Flow, Flows
from airlockd.net.packet import ACK, FIN, RST, Rewrite, back, tuple_of

if TYPE_CHECKING:
    from collections.abc import Sequence

LISTENER = 5555
TUPLES = st.integers(0, 5).map(lambda number: bytes((172, 17, 0, number, 10, 2, 0, 1, 160, number, 1, 187)))
PORTS = 4


class Notes(dict[bytes, tuple[Rewrite, int]]):
    """A mirror: rewrites by tuple, and the flags that it has seen."""

    def add(self, rewrites: Sequence[tuple[bytes, Rewrite]]) -> None:
        self.update({tuple_: (how, 0) for tuple_, how in rewrites})

    def remove(self, tuples: Sequence[bytes]) -> None:
        for tuple_ in tuples:
            del self[tuple_]

    def seen(self, tuple_: bytes) -> int:
        return self[tuple_][1]


class Model(RuleBasedStateMachine):
    """A dict of what is open, and of what is quiet since when; four ports for six programs."""

    def __init__(self) -> None:
        super().__init__()
        self.notes = Notes()
        self.flows = Flows(LISTENER, 2000, 2000 + PORTS - 1, mirror=self.notes)
        self.open: dict[bytes, Flow] = {}
        self.established: set[bytes] = set()
        self.ends: dict[bytes, set[str]] = {}
        self.noted: dict[bytes, set[str]] = {}
        self.quiet: dict[bytes, float] = {}
        self.limits: dict[bytes, float] = {}
        self.now = 0.0

    def forget(self, tuple_: bytes) -> None:
        del self.open[tuple_]
        self.established.discard(tuple_)
        self.ends.pop(tuple_, None)
        self.noted.pop(tuple_, None)
        self.quiet.pop(tuple_, None)
        self.limits.pop(tuple_, None)

    def learn(self, tuple_: bytes, ends: set[str]) -> None:
        known = self.ends.setdefault(tuple_, set())
        known |= ends
        if len(known) == 2:
            self.quiet.setdefault(tuple_, self.now)

    @rule(tuple_=TUPLES)
    def opens(self, tuple_: bytes) -> None:
        if tuple_ in self.open:
            self.forget(tuple_)
        flow = self.flows.open(tuple_, None)
        assert (flow is None) == (len(self.open) == PORTS)
        if flow is not None:
            self.open[tuple_] = flow

    @rule(tuple_=TUPLES)
    def establish(self, tuple_: bytes) -> None:
        if tuple_ in self.open:
            self.flows.establish(self.open[tuple_])
            self.established.add(tuple_)

    @rule(tuple_=TUPLES, flags=st.sampled_from([FIN, RST, FIN | ACK]), answer=st.booleans())
    def end(self, tuple_: bytes, flags: int, answer: bool) -> None:
        seen = tuple_
        if answer and tuple_ in self.established:
            seen = back(self.flows.rewrites[tuple_].tuple)
        elif answer:
            return
        self.flows.ended(seen, flags, self.now)
        if tuple_ in self.open:
            self.learn(tuple_, {"there", "back"} if flags & RST else {"back" if answer else "there"})

    @rule(tuple_=TUPLES, flags=st.sampled_from([FIN, RST]), answer=st.booleans())
    def end_unseen(self, tuple_: bytes, flags: int, answer: bool) -> None:
        """Only the mirror knows of it."""
        if tuple_ in self.established:
            seen = back(self.flows.rewrites[tuple_].tuple) if answer else tuple_
            how, before = self.notes[seen]
            self.notes[seen] = how, before | flags
            noted = self.noted.setdefault(tuple_, set())
            noted |= {"there", "back"} if flags & RST else {"back" if answer else "there"}

    @rule(tuple_=TUPLES)
    def look(self, tuple_: bytes) -> None:
        if tuple_ in self.open:
            self.flows.look(self.open[tuple_], self.now)
            self.learn(tuple_, self.noted.get(tuple_, set()))

    @rule(tuple_=TUPLES, seconds=st.none() | st.floats(0, 3 * QUIET))
    def limit(self, tuple_: bytes, seconds: float | None) -> None:
        if tuple_ in self.open:
            self.flows.limit(self.open[tuple_], None if seconds is None else self.now + seconds)
            self.limits.pop(tuple_, None)
            if seconds is not None:
                self.limits[tuple_] = self.now + seconds

    @rule(seconds=st.floats(0, QUIET))
    def wait(self, seconds: float) -> None:
        self.now += seconds
        for tuple_ in self.limits:
            self.learn(tuple_, self.noted.get(tuple_, set()))
        gone = self.flows.tidy(self.now)
        over = {tuple_ for tuple_, since in self.quiet.items() if since + QUIET <= self.now}
        over |= {
            tuple_ for tuple_, until in self.limits.items() if until <= self.now and tuple_ not in self.quiet
        }
        for tuple_ in self.quiet:
            self.limits.pop(tuple_, None)
        assert sorted(flow.tuple for flow in gone) == sorted(over)
        for tuple_ in over:
            self.forget(tuple_)

    @rule(tuple_=TUPLES)
    def remove(self, tuple_: bytes) -> None:
        flow = self.flows.find(tuple_)
        if flow is not None:
            self.flows.remove(flow)
            self.flows.remove(flow)
            self.forget(tuple_)

    @invariant()
    def same(self) -> None:
        assert {flow.tuple for flow in self.flows} == set(self.open)
        ports = [flow.port for flow in self.flows]
        assert len(set(ports)) == len(ports)
        for tuple_, flow in self.open.items():
            assert self.flows.find(tuple_) is self.flows.by_port(flow.port) is flow
        assert len(self.flows.rewrites) == 2 * len(self.established)
        assert {tuple_: how for tuple_, (how, _) in self.notes.items()} == self.flows.rewrites
        for tuple_, how in self.flows.rewrites.items():
            assert how == packet.rewriting(tuple_, how.tuple)


TestModel = Model.TestCase


def test_one_source_port_toward_several_destinations() -> None:
    """What Linux does once a source port is bound: each is a connection of its own."""
    flows = Flows(LISTENER)
    tuples = [bytes((10, 0, 0, 9, 10, 2, 0, number, 160, 0, 1, 187)) for number in range(3)]
    found = [flows.open(tuple_, number) for number, tuple_ in enumerate(tuples)]
    assert [flow.state for flow in found if flow] == [0, 1, 2]
    assert len({flow.port for flow in found if flow}) == 3


@given(st.binary(min_size=12, max_size=12))
def test_there_and_back(tuple_: bytes) -> None:
    """The listener sees a packet of the gateway; what it answers reaches the program as if from its target."""
    flows = Flows(LISTENER)
    flow = flows.open(tuple_, None)
    assert flow is not None
    flows.establish(flow)
    inner = GATEWAY + DEVICE + flow.port.to_bytes(2, "big") + LISTENER.to_bytes(2, "big")
    data = bytearray(40)
    data[12:24] = tuple_
    packet.rewrite(data, 0, flows.rewrites[tuple_], partial=False)
    assert tuple_of(data) == inner
    data[12:24] = back(inner)
    packet.rewrite(data, 0, flows.rewrites[back(inner)], partial=False)
    assert tuple_of(data) == back(tuple_)


def test_ports_come_back_the_oldest_first() -> None:
    flows = Flows(LISTENER, 1, 3)
    used = []
    for number in range(6):
        flow = flows.open(bytes((number,)) * 12, None)
        assert flow is not None
        used.append(flow.port)
        flows.remove(flow)
    assert used == [1, 2, 3, 1, 2, 3]


def test_an_end_that_only_the_mirror_saw_is_learned_when_tidying() -> None:
    """Long before the limit; and not before both sides have ended and been quiet."""
    notes = Notes()
    flows = Flows(LISTENER, mirror=notes)
    tuple_ = bytes((10, 0, 0, 9, 10, 2, 0, 1, 160, 0, 1, 187))
    flow = flows.open(tuple_, None)
    assert flow is not None
    flows.establish(flow)
    flows.limit(flow, 1000.0)
    for number, seen in enumerate((tuple_, back(flows.rewrites[tuple_].tuple))):
        assert flows.tidy(number) == []
        assert flow.ends != BOTH
        notes[seen] = notes[seen][0], FIN
    assert flows.tidy(2.0) == []
    assert flow.ends == BOTH
    assert flows.tidy(2.0 + QUIET - 0.1) == []
    assert flows.tidy(2.0 + QUIET) == [flow]
    assert not notes
