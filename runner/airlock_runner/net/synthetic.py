"""Synthetic addresses: one per name that was asked for, given out by age. Pure; airlock0.py has them."""

from __future__ import annotations

from collections import OrderedDict

NETWORK = bytes((10, 2))
"""10.2.0.0/16, of which the first and the last address are not given out."""
FIRST, LAST = 1, 65534


class Names:
    """Name ↔ address. A pair stays while it is in use; when all are taken, the one longest unused goes."""

    def __init__(self, first: int = FIRST, last: int = LAST) -> None:
        self._next, self._last = first, last
        # Both in order of use, the oldest first.
        self._numbers: OrderedDict[str, int] = OrderedDict()
        self._names: dict[int, str] = {}
        self._users: dict[int, int] = {}

    def address(self, name: str) -> bytes | None:
        """The address of a name, 4 bytes; None where every address is in use."""
        number = self._numbers.get(name)
        if number is None:
            number = self._free()
            if number is None:
                return None
            self._names[number] = name
            self._numbers[name] = number
        self._numbers.move_to_end(name)
        return NETWORK + number.to_bytes(2, "big")

    def name(self, address: bytes) -> str | None:
        """The name that an address stands for, if any."""
        return self._names.get(int.from_bytes(address[2:], "big")) if address[:2] == NETWORK else None

    def use(self, address: bytes) -> str | None:
        """The name for a connection to the address, if it has one: keep the pair until as many `release` came."""
        name = self.name(address)
        if name is not None:
            number = self._numbers[name]
            self._users[number] = self._users.get(number, 0) + 1
            self._numbers.move_to_end(name)
        return name

    def release(self, address: bytes) -> None:
        """A connection is over for which `use` gave a name."""
        number = int.from_bytes(address[2:], "big")
        self._users[number] -= 1
        self._numbers.move_to_end(self._names[number])
        if not self._users[number]:
            del self._users[number]

    def _free(self) -> int | None:
        if self._next <= self._last:
            self._next += 1
            return self._next - 1
        for name, number in self._numbers.items():
            if number not in self._users:
                del self._numbers[name]
                return number
        return None
