"""Maintenance: what every worker does now and then, idempotent and without a leader."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import timedelta

from loguru import logger

from worker import metrics
from worker.db.pool import Database
from worker.errors import IngestError
from worker.queue.polls import Polls
from worker.queue.reconcile import Reconcile

_RESCUE_PATIENCE_SECONDS = 10.0
_PRUNE_BATCH = 1000
_PRUNE_LULL_SECONDS = 0.2


@dataclass(frozen=True, slots=True)
class _Chore:
    seconds: float
    name: str
    do: Callable[[], Awaitable[int]]
    patience: float | None = None
    """Seconds after which it is given up; what takes long by nature has none, but a limit for each of its calls."""


@dataclass(frozen=True, slots=True)
class Retention:
    """How long what has ended is kept, in days."""

    jobs: int = 7
    discarded_jobs: int = 90
    events: int = 396
    """Dropped a month at a time, so a month more may be there."""


class Maintenance:
    """Runs the chores: polls every 2 s, rescue every 15 s, the sweeps and reconcile now and then, pruning hourly."""

    def __init__(
        self,
        db: Database,
        *,
        randomness: random.Random,
        rescue_seconds: float = 15.0,
        retention: Retention | None = None,
        reconcile: Reconcile | None = None,
        polls: Polls | None = None,
        parse_hours: float = 2.0,
    ) -> None:
        self._db = db
        self._retention = retention or Retention()
        self._parse_age = timedelta(hours=parse_hours)
        self._randomness = randomness
        self._chores: tuple[_Chore, ...] = (
            _Chore(rescue_seconds, "rescue", self.rescue, _RESCUE_PATIENCE_SECONDS),
            _Chore(60, "sweep tombstones", self._tombstones),
            _Chore(60, "expire parses", self.expire_parses),
            _Chore(60, "retry what was over quota", self._over_quota),
            _Chore(300, "sweep parses", self._parses),
            _Chore(1800, "sweep embeddings", self._embeddings),
            _Chore(300, "resolve alerts", self._alerts),
            _Chore(3600, "make event partitions", self._partitions),
            _Chore(3600, "prune jobs", self.prune),
            _Chore(3600, "prune events", self._prune_events),
        )
        if reconcile is not None:
            # Looked at every minute, done by one worker every five.
            self._chores += (_Chore(60, "reconcile", reconcile.take_turn),)
        if polls is not None:
            # How soon a callback is followed; each parse is asked for every 5 s at most.
            self._chores += (_Chore(2, "poll parses", polls.take_turn),)

    async def run(self) -> None:
        """Do every chore at once and then again at its own interval, until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            for chore in self._chores:
                tasks.create_task(self._repeat(chore), name=chore.name)

    async def _repeat(self, chore: _Chore) -> None:
        while True:
            try:
                # A connection that went silent must not keep the next sweep waiting.
                async with asyncio.timeout(chore.patience):
                    count = await chore.do()
                if count:
                    logger.bind(count=count).info(chore.name)
            except IngestError as exc:
                logger.bind(code=exc.code, detail=exc.detail).warning(f"{chore.name} failed")
            except TimeoutError:
                logger.bind(seconds=chore.patience).warning(f"{chore.name} was not answered")
            # Workers that started together must not sweep together; the interval is the longest that anybody waits.
            await asyncio.sleep(chore.seconds * self._randomness.uniform(0.6, 1.0))

    async def rescue(self) -> int:
        """Return jobs whose lease ran out to the queue; another worker may be doing it already."""
        rows = await self._db.fetch("rescue_jobs")
        metrics.RESCUED.inc(len(rows))
        for row in rows:
            logger.bind(job=row["job_id"], state=row["state"]).warning("rescue")
        return 0  # each was logged by itself

    async def _tombstones(self) -> int:
        return int(await self._db.fetchval("sweep_tombstones"))

    async def expire_parses(self) -> int:
        """Give up the parses that a service has not finished in time; also those of a parser that nobody uses now."""
        return int(await self._db.fetchval("expire_parses", self._parse_age))

    async def _over_quota(self) -> int:
        return int(await self._db.fetchval("retry_over_quota"))

    async def _parses(self) -> int:
        return int(await self._db.fetchval("sweep_parses", timedelta(hours=1)))

    async def _embeddings(self) -> int:
        return int(await self._db.fetchval("sweep_embeddings", timedelta(days=1)))

    async def _alerts(self) -> int:
        return int(await self._db.fetchval("tidy_alerts"))

    async def prune(self) -> int:
        """Delete the jobs that ended long ago, in small batches with a lull after each; return how many."""
        kept = timedelta(days=self._retention.jobs), timedelta(days=self._retention.discarded_jobs)
        pruned = 0
        while count := int(await self._db.fetchval("prune_jobs", *kept, _PRUNE_BATCH)):
            pruned += count
            await asyncio.sleep(_PRUNE_LULL_SECONDS)
        return pruned

    async def _prune_events(self) -> int:
        return int(await self._db.fetchval("prune_events", timedelta(days=self._retention.events)))

    async def _partitions(self) -> int:
        return int(await self._db.fetchval("ensure_event_partitions"))
