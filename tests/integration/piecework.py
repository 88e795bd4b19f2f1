"""Small work in the pipeline's place, and the attempts that a worker makes at it."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from worker.db.pool import Database
from worker.model import Claim
from worker.queue.attempt import Attempts

WorkFunction = Callable[[Claim], Awaitable[None]]


class Piece:
    """A piece of work whose steps a test can wait for."""

    def __init__(self, do: WorkFunction | None = None) -> None:
        self.begun: asyncio.Queue[Claim] = asyncio.Queue()
        self.ended: list[tuple[int, str]] = []
        self._do = do

    async def __call__(self, claim: Claim, path: Path, settling: Callable[[bool], None]) -> None:
        self.begun.put_nowait(claim)
        try:
            await (self._do(claim) if self._do else asyncio.Event().wait())
            self.ended.append((claim.job_id, "returned"))
        except asyncio.CancelledError:
            self.ended.append((claim.job_id, "cancelled"))
            raise


def attempts(db: Database, work: Any, directory: Path, *, seconds: float = 30) -> Attempts:
    """Let attempts at `work` end after so many seconds."""
    return Attempts(db, work, directory, seconds, random.Random(1))


def loop_time() -> float:
    """Return the running loop's time in seconds."""
    return asyncio.get_running_loop().time()
