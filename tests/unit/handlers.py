"""Handlers of streams for tests that look at something else."""

from __future__ import annotations


class Ignoring:
    """Takes all and does nothing."""

    def on_data(self, data: bytes) -> None:
        pass

    def on_credit(self, amount: int) -> None:
        pass

    def on_end(self) -> None:
        pass

    def on_reset(self) -> None:
        pass
