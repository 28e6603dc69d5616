"""A connection, or packets that were refused, as net.log has them. Journal and `airlock net log` use it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

State = Literal["denied", "failed", "open", "closed", "reset", "refused"]
PACKET = "packet"
"""The `kind` of packets that are not delivered."""


@dataclass(slots=True)
class Record:
    """`sent` and `received` are bytes, as the program that connected counts them; `seconds` since it asked.

    `kind`: `tcp`, or a forwarded `port` or `socket`, or `forward` for one from the host into the sandbox, or PACKET.
    `rule` is what decided. `error` is the errno that the program was told. `count` is that of packets.
    """

    id: str
    kind: str
    name: str | None = None
    address: str | None = None
    port: int | None = None
    verdict: Literal["allow", "deny", "refused"] = "allow"
    rule: str = ""
    state: State = "open"
    error: str | None = None
    sent: int = 0
    received: int = 0
    seconds: float = 0.0
    protocol: str = "tcp"
    count: int = 1

    def values(self) -> dict[str, Any]:
        """As JSON has it."""
        return {key: getattr(self, key) for key in self.__slots__}
