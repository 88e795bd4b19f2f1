"""Limits of providers, shared by all workers: asked for before a request is sent, and told of a 429."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import timedelta

from worker.db.pool import Database
from worker.errors import Throttled

IN_PLACE_SECONDS = 5.0
"""What is waited for where the request stands; whoever must wait longer snoozes."""
_LONGEST_BLOCK_SECONDS = 3600.0


@dataclass(frozen=True, slots=True)
class Limits:
    """The token buckets in the database. `key` names one of a provider's keys, and is never the key itself."""

    db: Database
    randomness: random.Random
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep

    async def take(self, provider: str, *, requests: int = 1, tokens: int = 0, key: str = "default") -> None:
        """Return when the provider lets us send; waits up to 5 s here, all in all.

        A longer wait raises Throttled, which snoozes the job uncharged. No transaction may be open.
        """
        waited = 0.0
        while True:
            wait: timedelta = await self.db.fetchval("take_tokens", provider, requests, tokens, key)
            if not wait:
                return
            # Those who ask together must not come back together.
            seconds = wait.total_seconds() * self.randomness.uniform(1.0, 1.25)
            if waited + seconds >= IN_PLACE_SECONDS:
                raise _throttled(provider, seconds)
            await self.sleep(seconds)
            waited += seconds

    async def blocked(self, provider: str, retry_after: float, *, key: str = "default") -> Throttled:
        """Keep every worker from asking for `retry_after` seconds, an hour at most, and return the error to raise."""
        seconds = min(max(0.0, retry_after), _LONGEST_BLOCK_SECONDS)
        await self.db.fetchval("block_provider", provider, timedelta(seconds=seconds), key)
        return _throttled(provider, seconds)


def _throttled(provider: str, seconds: float) -> Throttled:
    return Throttled(
        "provider_rate_limited",
        "The service that reads the files asked us to wait. The file continues by itself; nothing needs to be done.",
        retry_after=seconds,
        detail=f"{provider}: {seconds:.1f} s",
    )
