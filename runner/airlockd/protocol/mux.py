"""Many flow-controlled streams and calls over one connection, without any I/O of its own.

Both ends of every wire use it: bytes in, events out; commands in, bytes out. The rules that bound memory are
enforced here: a sender may have at most WINDOW unconsumed bytes in flight per stream, a receiver closes the
connection on a sender who sends more than it gave credit for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from airlockd.protocol.frames import MAX_PAYLOAD, Decoder, Header, ProtocolError, encode, pack
from airlockd.protocol.output import Output

if TYPE_CHECKING:
    from collections.abc import Iterator

WINDOW = 1024 * 1024
"""Bytes a sender may have in flight on one stream before the receiver has consumed any."""
NETWORK_WINDOW = WINDOW // 4
"""The same on the port airlock.network, where a thousand streams may be open at once."""
MAX_LENT = 16
"""Streams there that have a whole WINDOW: those that carry much, for as long as they are open."""
MAX_STREAMS = 4096
"""Streams open at once on one connection."""
MAX_STREAM_ID = 2**53


class Message(NamedTuple):
    """A frame that belongs to no stream: a call, a reply, an event."""

    header: Header
    payload: bytes | memoryview


class Data(NamedTuple):
    """Bytes that arrived on a stream; give the credit back with `consumed` once they are written out.

    With `parts` they are a view that holds until the next `receive`.
    """

    stream: int
    data: bytes | memoryview


class End(NamedTuple):
    """The other end will send no more on this stream."""

    stream: int


class Credit(NamedTuple):
    """The other end consumed bytes: there is room to send again."""

    stream: int
    amount: int


class Reset(NamedTuple):
    """The other end dropped the stream, both ways."""

    stream: int


Event = Message | Data | End | Credit | Reset

_CONTROL = frozenset({"call", "reply", "error", "event"})


class _Stream:
    __slots__ = ("consumed", "credit", "owed", "receive_window", "received_end", "sent_end", "window")

    def __init__(self, window: int) -> None:
        self.credit = self.receive_window = self.window = window
        self.owed = self.consumed = 0
        self.received_end = False
        self.sent_end = False


class Mux:
    """The state of one connection. Streams are opened by number, by agreement in a call, on both ends.

    `window`, in bytes, is the same at both ends. `parts`: give out data as it arrives, frames cut anywhere (Decoder).
    """

    def __init__(self, window: int = WINDOW, *, parts: bool = False) -> None:
        self._window = window
        self._lent: set[int] = set()
        self._decoder = Decoder(parts=parts)
        self._streams: dict[int, _Stream] = {}
        # Streams that this end reset: frames for them may still be on their way and are dropped in silence.
        self._forgotten: dict[int, None] = {}
        self.gone: list[int] = []
        """Streams that are closed both ways since somebody looked and emptied the list."""
        self.output = Output()

    # ---- output

    def send(self, header: Header, payload: bytes | memoryview = b"") -> None:
        """Queue a frame that belongs to no stream."""
        self.output.add(encode(header, payload))

    # ---- streams

    def open(self, stream: int) -> None:
        """Know a stream that both ends agreed upon. Raises ProtocolError on a number in use or too many."""
        if not isinstance(stream, int) or isinstance(stream, bool) or not 0 < stream < MAX_STREAM_ID:
            raise ProtocolError(f"bad stream number {stream!r}")
        if stream in self._streams:
            raise ProtocolError(f"stream {stream} is already open")
        if len(self._streams) >= MAX_STREAMS:
            raise ProtocolError("too many streams")
        self._streams[stream] = _Stream(self._window)

    @property
    def windows(self) -> int:
        """Bytes that all open streams together may have in flight."""
        return len(self._streams) * self._window

    def is_open(self, stream: int) -> bool:
        """Whether the stream is known and not yet closed in both directions."""
        return stream in self._streams

    def credit(self, stream: int) -> int:
        """Bytes that may be sent on the stream now; 0 where it is closed."""
        state = self._streams.get(stream)
        return 0 if state is None or state.sent_end else state.credit

    def send_data(self, stream: int, data: bytes | memoryview) -> None:
        """Queue bytes on a stream; at most `credit` of them. Of none, nothing is sent."""
        state = self._streams[stream]
        if state.sent_end or len(data) > state.credit:
            raise ProtocolError(f"no credit to send {len(data)} bytes on stream {stream}")
        state.credit -= len(data)
        view = memoryview(data)
        for start in range(0, len(view), MAX_PAYLOAD):
            self.output.add(pack(b'{"t":"data","s":%d}' % stream, view[start : start + MAX_PAYLOAD]))

    def send_end(self, stream: int) -> None:
        """Say that nothing more comes from this end; harmless when already said or closed."""
        state = self._streams.get(stream)
        if state is not None and not state.sent_end:
            state.sent_end = True
            self.output.add(pack(b'{"t":"end","s":%d}' % stream))
            self._forget_if_done(stream, state)

    def consumed(self, stream: int, count: int) -> None:
        """Give the sender credit for bytes that were written out or dropped."""
        state = self._streams.get(stream)
        if state is None or state.received_end:
            return
        state.owed += count
        state.consumed += count
        # Consumed bytes are gathered before the sender is told: a frame for every small write would cost more.
        if state.owed < state.window // 4:
            return
        more = WINDOW - state.window
        if more and state.consumed >= WINDOW and len(self._lent) < MAX_LENT:
            # The way to the other end and back takes longer than a small window lasts.
            self._lent.add(stream)
            state.window = WINDOW
            state.owed += more
        state.receive_window += state.owed
        self.output.add(pack(b'{"t":"credit","s":%d,"n":%d}' % (stream, state.owed)))
        state.owed = 0

    def finished(self, stream: int) -> None:
        """Nothing that came on the stream is kept any more: another one may have its larger window."""
        self._lent.discard(stream)

    def reset(self, stream: int) -> None:
        """Drop a stream both ways; harmless when it is closed."""
        if self._streams.pop(stream, None) is not None:
            self._forget(stream)
            self.output.add(pack(b'{"t":"reset","s":%d}' % stream))

    # ---- input

    def receive(self, data: bytes | memoryview) -> Iterator[Event]:
        """What these bytes mean. Raises ProtocolError, after which the connection is to be closed.

        One event at a time: serving a call may open the stream that the next frame is about.
        """
        for frame in self._decoder.feed(data):
            event = self._event(frame.header, frame.payload)
            if event is not None:
                yield event

    def _event(self, header: Header, payload: bytes | memoryview) -> Event | None:
        kind = header["t"]
        if kind in _CONTROL:
            return Message(header, payload)
        handler = getattr(self, f"_on_{kind}", None) if kind in ("data", "end", "credit", "reset") else None
        if handler is None:
            raise ProtocolError(f"unknown frame type {kind!r:.40}")
        if payload and kind != "data":
            raise ProtocolError(f"{kind} carries a payload")
        number = header.get("s")
        state = self._streams.get(number) if isinstance(number, int) else None
        if state is None:
            if isinstance(number, int) and number in self._forgotten:
                return None
            raise ProtocolError(f"{kind} for unknown stream {number!r:.40}")
        event: Event | None = handler(number, state, header, payload)
        return event

    def _on_data(self, stream: int, state: _Stream, _header: Header, payload: bytes | memoryview) -> Event:
        if state.received_end:
            raise ProtocolError(f"data after the end of stream {stream}")
        if not payload:
            # The window counts bytes: of such frames there could be any number.
            raise ProtocolError(f"a frame of no data on stream {stream}")
        if len(payload) > state.receive_window:
            raise ProtocolError(f"stream {stream} was sent more than its window")
        state.receive_window -= len(payload)
        return Data(stream, payload)

    def _on_end(self, stream: int, state: _Stream, _header: Header, _payload: bytes | memoryview) -> Event:
        if state.received_end:
            raise ProtocolError(f"stream {stream} ended twice")
        state.received_end = True
        self._forget_if_done(stream, state)
        return End(stream)

    def _on_credit(self, stream: int, state: _Stream, header: Header, _payload: bytes | memoryview) -> Event:
        amount: Any = header.get("n")
        if not isinstance(amount, int) or isinstance(amount, bool) or amount <= 0:
            raise ProtocolError(f"bad credit {amount!r:.40}")
        if state.credit + amount > WINDOW:
            raise ProtocolError(f"credit beyond the window on stream {stream}")
        state.credit += amount
        return Credit(stream, amount)

    def _on_reset(self, stream: int, _state: _Stream, _header: Header, _payload: bytes | memoryview) -> Event:
        del self._streams[stream]
        self.gone.append(stream)
        return Reset(stream)

    def _forget_if_done(self, stream: int, state: _Stream) -> None:
        if state.sent_end and state.received_end:
            del self._streams[stream]
            # Credit for what was still in flight may arrive after the end.
            self._forget(stream)

    def _forget(self, stream: int) -> None:
        self.gone.append(stream)
        self._forgotten.pop(stream, None)
        self._forgotten[stream] = None
        if len(self._forgotten) > MAX_STREAMS:
            del self._forgotten[next(iter(self._forgotten))]
