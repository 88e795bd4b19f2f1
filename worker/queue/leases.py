"""Keeps what this worker has claimed: renews all leases in one statement, and ends work that lost its own.

held ── renewed: ours ────────────► trusted until (start of that renewal) + lease − margin
  ├──── renewed: superseded ──────► ended: the document is gone or has a newer generation
  ├──── not among the renewed ────► ended: another worker may own the job
  └──── no good renewal in time ──► ended before the lease is, whatever the network does
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Literal

from loguru import logger

from worker.db.pool import Database
from worker.errors import IngestError
from worker.model import Claim, JobId
from worker.telemetry import about

Ending = Literal["lost", "superseded", "interrupted"]


@dataclass(slots=True, eq=False)
class Held:
    """One claim that this worker holds, and the task that works on it."""

    claim: Claim
    task: asyncio.Task[None] | None = None
    alone: asyncio.Event | None = None
    """For a job that was rescued: set once nothing else runs here. Work begins no sooner."""
    settling: bool = False
    ending: Ending | None = None
    timer: asyncio.TimerHandle | None = field(default=None, repr=False)

    def end(self, why: Ending) -> None:
        """Cancel the work, once, and remember why."""
        if self.ending is None and self.task is not None and not self.task.done():
            self.ending = why
            self.task.cancel()


class Leases:
    """The claims that this worker holds.

    `lease_seconds` and `renew_seconds` are settings; work is ended a sixth of a lease, at most ten
    seconds, before the database would give it to another.
    """

    def __init__(self, db: Database, *, lease_seconds: float, renew_seconds: float) -> None:
        self._db = db
        self._lease = lease_seconds
        self._renew = min(renew_seconds, lease_seconds / 3)
        self._margin = min(10.0, lease_seconds / 6)
        self._held: dict[JobId, Held] = {}

    def __len__(self) -> int:
        return len(self._held)

    @property
    def lease(self) -> timedelta:
        """How long a claim is ours without a renewal."""
        return timedelta(seconds=self._lease)

    def held(self) -> list[Held]:
        """Return what is held now."""
        return list(self._held.values())

    def hold(self, claim: Claim, work: Callable[[Held], asyncio.Task[None]], since: float) -> None:
        """Keep a claim from now on; `since` is the loop's time before the claim was sent."""
        held = Held(claim, alone=asyncio.Event() if claim.rescues else None)
        self._held[claim.job_id] = held
        held.task = work(held)
        self._trust(held, since)
        self._let_alone_begin()

    def alone(self) -> bool:
        """Say whether one of the claims must run alone, so that no other may be taken."""
        return any(held.alone is not None for held in self._held.values())

    def drop(self, held: Held) -> None:
        """Stop keeping a claim that was settled or lost."""
        if held.timer is not None:
            held.timer.cancel()
        if self._held.get(held.claim.job_id) is held:
            del self._held[held.claim.job_id]
        self._let_alone_begin()

    def _let_alone_begin(self) -> None:
        if len(self._held) == 1:
            (held,) = self._held.values()
            if held.alone is not None:
                held.alone.set()

    async def run(self) -> None:
        """Renew for ever, until cancelled."""
        while True:
            await asyncio.sleep(self._renew)
            with contextlib.suppress(IngestError):  # logged; trust runs out by itself
                await self.renew()

    async def renew(self) -> None:
        """Renew every lease but those that are being settled, and end what is lost or superseded."""
        asked = [held for held in self._held.values() if not held.settling]
        if not asked:
            return
        since = asyncio.get_running_loop().time()
        try:
            async with asyncio.timeout(self._renew):
                rows = await self._db.fetch(
                    "renew_leases",
                    [held.claim.job_id for held in asked],
                    [held.claim.number for held in asked],
                    self.lease,
                )
        except (IngestError, TimeoutError) as exc:
            logger.bind(held=len(asked), error=getattr(exc, "detail", type(exc).__name__)).warning("renew failed")
            return
        answers = {row["job_id"]: row["answer"] for row in rows}
        for held in asked:
            answer = answers.get(held.claim.job_id)
            if held.settling:
                continue  # it began to settle while we asked
            if answer == "ours":
                self._trust(held, since)
            else:
                why: Ending = "superseded" if answer == "superseded" else "lost"
                logger.bind(**about(held.claim)).info(why)
                held.end(why)

    def _trust(self, held: Held, since: float) -> None:
        if held.timer is not None:
            held.timer.cancel()
        loop = asyncio.get_running_loop()
        held.timer = loop.call_at(since + self._lease - self._margin, self._expire, held)

    def _expire(self, held: Held) -> None:
        if held.settling:
            return  # the database decides: settling begins by deleting the lease
        logger.bind(**about(held.claim)).warning("lease not renewed in time")
        held.end("lost")
