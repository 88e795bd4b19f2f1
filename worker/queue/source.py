"""A source of wake-ups: what LISTEN and Realtime have in common."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol


class Unheard(Exception):
    """No wake-ups come this way. `why` completes the sentence "… does not serve: …" for operators.

    `for_long`: trying again soon is of no use.
    """

    def __init__(self, why: str, *, for_long: bool = False) -> None:
        super().__init__(why)
        self.why = why
        self.for_long = for_long


class Source(Protocol):
    """A way on which wake-ups may come."""

    async def hear(self, hearing: Callable[[], None], woken: Callable[[], None]) -> None:
        """Call `hearing` once it is proven that wake-ups arrive, and `woken` at each of them.

        Raises Unheard when none come, or no more; returns when it wants to begin anew at once.
        """
