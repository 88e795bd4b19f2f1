"""Following documents on their channels; the tables are read where a channel does not come up, and now and then."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from local.demo.progress import Row

# Without a channel a person still sees things move; with one the tables are a net under what gets lost.
_LOOK_SECONDS = 0.25
_NET_SECONDS = 5.0
_FINAL = ("completed", "cancelled", "discarded")


class Following:
    """What is heard about these rows; `messages` counts it."""

    def __init__(self, rows: Sequence[Row]) -> None:
        self.messages = 0
        self._rows = rows
        self._live: set[str] = set()
        self._counters: dict[str, int] = {}
        self._stirred = asyncio.Event()
        self._look = True

    def hear(self, told: dict[str, Any]) -> None:
        """Take over a message, or that a channel is open or not; messages older than what is shown are dropped."""
        document, message = told["document"], told.get("progress")
        if message is None:
            # What moved before the channel was open is in the tables; a closed one has to be made up for by them.
            self._look = True
            (self._live.add if told["state"] == "SUBSCRIBED" else self._live.discard)(document)
        elif message["counter"] > self._counters.get(document, 0):
            self.messages += 1
            self._counters[document] = message["counter"]
            self._show(document, message)
        self._stirred.set()

    def _show(self, document: str, message: dict[str, Any]) -> None:
        if message["state"] in _FINAL:
            self._look = True  # pages, chunks and the reason of a failure are in the tables only
            return
        for row in self._rows:
            if row.id == document:
                row.hear(message)

    async def stirred(self) -> bool:
        """Wait until something was heard or the tables are due, and return whether they have to be read."""
        waiting = any(not row.settled and row.id not in self._live for row in self._rows)
        try:
            async with asyncio.timeout(_LOOK_SECONDS if waiting else _NET_SECONDS):
                await self._stirred.wait()
        except TimeoutError:
            self._look = True
        self._stirred.clear()
        look, self._look = self._look, False
        return look
