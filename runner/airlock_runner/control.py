"""Calls, replies and events on a link: the session talks so to airlockd, and `airlock exec` to the session."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from airlock_store.errors import AirlockError
from airlockd.protocol.frames import Header, ProtocolError, encode
from airlockd.protocol.link import Link

if TYPE_CHECKING:
    from airlockd.protocol.loop import Loop
    from airlockd.protocol.mux import Message

Answer = Callable[[Header], None]


def integer(header: Header, key: str, low: int, high: int) -> int:
    """The number at `key`, from `low` to `high`. Raises ProtocolError: the other end may send what it likes."""
    value = header.get(key)
    if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
        raise ProtocolError(f"bad {key} {value!r:.40}")
    return value


def outcome(header: Header) -> dict[str, int]:
    """How a process ended, by its `exit` event: its `code`, or the `signal`. Raises ProtocolError."""
    if header.get("code") is not None:
        return {"code": integer(header, "code", 0, 255)}
    return {"signal": integer(header, "signal", 1, 127)}


class TooLargeError(AirlockError):
    """More was to be said in one call than a frame holds."""


class Control:
    """The calling end of a link. Numbers for processes and streams are given out here, never twice."""

    def __init__(
        self, loop: Loop, fd: int, on_event: Callable[[Header], None], on_close: Callable[[str | None], None]
    ) -> None:
        self.link = Link(loop, fd, self._on_message, on_close)
        self.heard = 0
        self._on_event = on_event
        self._calls: dict[int, tuple[Answer, Answer]] = {}
        self._number = 0

    def number(self) -> int:
        """A fresh number."""
        self._number += 1
        return self._number

    def call(
        self, op: str, arguments: Mapping[str, Any], then: Answer, failed: Answer, payload: bytes = b""
    ) -> None:
        """Send a call; `then` gets its reply, or `failed` the error, whose `message` is hostile text.

        Raises TooLargeError.
        """
        number = self.number()
        try:
            self.link.mux.send({**arguments, "t": "call", "op": op, "id": number}, payload)
        except ProtocolError as error:
            raise TooLargeError(f"the call {op} cannot be sent to the sandbox: {error}") from error
        self._calls[number] = (then, failed)

    def fits(self, op: str, arguments: Mapping[str, Any]) -> bool:
        """Whether a call of this is small enough."""
        try:
            encode({**arguments, "t": "call", "op": op, "id": self._number})
        except ProtocolError:
            return False
        return True

    def _on_message(self, message: Message) -> None:
        self.heard += 1
        header = message.header
        kind = header["t"]
        if kind == "event":
            self._on_event(header)
            return
        number = header.get("id")
        call = self._calls.pop(number, None) if isinstance(number, int) else None
        if call is None or kind == "call":
            self.link.close(f"protocol error: unexpected {kind}")
            return
        then, failed = call
        (then if kind == "reply" else failed)(header)
