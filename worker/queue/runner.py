"""The runner: one claimer that feeds the slots, and an orderly end.

     wait for a wake-up ──► claim as many as slots are free ──► an attempt each ──► wake-up

A finished attempt wakes the claimer too: it freed a slot, and perhaps a document or a tenant's cap.

A job that was rescued weighs as much as all slots: it may be what killed its worker, and must take no
neighbour along a second time. It is claimed by itself, begins when what runs here has ended, and
nothing is claimed until it has. Those behind it wait one attempt at most, and other workers go on.
"""

from __future__ import annotations

import asyncio
import contextlib
from datetime import timedelta
from uuid import UUID

import asyncpg
from loguru import logger

from worker import metrics
from worker.db.pool import Database
from worker.errors import IngestError
from worker.model import Claim
from worker.queue.attempt import Attempts
from worker.queue.leases import Held, Leases
from worker.queue.maintenance import Maintenance
from worker.queue.wakeups import Wakeups

_RELEASE_SECONDS = 10.0
_CLAIM_SECONDS = 10.0
_LINGER_SECONDS = 0.05
_REMEMBERED = timedelta(minutes=1)
"""Who is due again within it is looked for at that moment; later ones are found when the table is looked at."""
_LATE_SECONDS = 0.02
"""A claim takes milliseconds; a connection that went silent would otherwise idle the worker for a minute."""


class Runner:
    """Takes jobs until it is told to stop."""

    def __init__(
        self, db: Database, attempts: Attempts, leases: Leases, wakeups: Wakeups, maintenance: Maintenance,
        *, worker_id: UUID, slots: int, tenant_cap: int, drain_seconds: float,
    ) -> None:  # fmt: skip
        self._db = db
        self._attempts = attempts
        self._leases = leases
        self._wakeups = wakeups
        self._maintenance = maintenance
        self._worker_id = worker_id
        self._slots = slots
        self._tenant_cap = tenant_cap
        self._drain_seconds = drain_seconds
        self._stopping = asyncio.Event()
        self._hurrying = asyncio.Event()
        self._claimed = 0.0
        self._claims_answered = True

    @property
    def draining(self) -> bool:
        """Whether it was told to stop."""
        return self._stopping.is_set()

    @property
    def claiming(self) -> bool:
        """Whether the last claim, if there was one, was answered."""
        return self._claims_answered and not self.draining

    def stop(self) -> None:
        """Stop claiming and drain; called a second time, hand back at once what is still running."""
        if self._stopping.is_set():
            self._hurrying.set()
        self._stopping.set()
        self._wakeups.wake()

    async def run(self) -> None:
        """Work until `stop`, then drain; every job is finished or handed back when this returns."""
        background = [
            asyncio.create_task(self._wakeups.run(), name="wakeups"),
            asyncio.create_task(self._leases.run(), name="leases"),
            asyncio.create_task(self._maintenance.run(), name="maintenance"),
        ]
        claimer = asyncio.create_task(self._claim_for_ever(), name="claimer")
        try:
            # A background task that ends is a bug or a broken promise: die loudly, and be restarted.
            done, _ = await asyncio.wait([claimer, *background], return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
            if claimer not in done:
                raise RuntimeError(f"{next(iter(done)).get_name()} ended by itself")
        finally:
            self._stopping.set()
            self._wakeups.wake()
            # Not cancelled under way: the jobs of an answer that nobody reads would wait for rescue.
            await asyncio.wait([claimer], timeout=_RELEASE_SECONDS)
            claimer.cancel()
            await self._drain()
            for task in background:
                task.cancel()
            await asyncio.gather(claimer, *background, return_exceptions=True)

    async def _claim_for_ever(self) -> None:
        while not self._stopping.is_set():
            await self._wakeups.wait()
            free = await self._worth_a_claim()
            if free <= 0 or self._stopping.is_set():
                continue
            try:
                async with asyncio.timeout(_CLAIM_SECONDS):
                    await self._claim(free)
                self._claims_answered = True
            except TimeoutError:
                self._claims_answered = False
                # Answered or not: what it may have claimed is rescued when its lease ends.
                logger.bind(seconds=_CLAIM_SECONDS).warning("claim was not answered")
            except IngestError as exc:
                self._claims_answered = False
                logger.bind(code=exc.code, detail=exc.detail).warning("claim failed")

    async def _worth_a_claim(self) -> int:
        """Return how many slots are free, a moment later where they are few beside what runs.

        A claim costs the database 2.5 ms whether it brings one job or ten; one for each job that ended was a
        twentieth of all its work.
        """
        clock = asyncio.get_running_loop().time
        while True:
            free = 0 if self._leases.alone() else self._slots - len(self._leases)
            left = self._claimed + _LINGER_SECONDS - clock()
            if not 0 < free < self._slots // 4 or left <= 0 or self._stopping.is_set():
                return free
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(left):
                    await self._wakeups.wait()

    async def _claim(self, free: int) -> None:
        since = self._claimed = asyncio.get_running_loop().time()
        rows = await self._db.fetch("claim_jobs", self._worker_id, free, self._leases.lease, self._tenant_cap)
        metrics.CLAIMS.inc(len(rows))
        for row in rows:
            self._leases.hold(_claim(row), self._start, since)

    def _start(self, held: Held) -> asyncio.Task[None]:
        return asyncio.create_task(self._work(held), name=f"job {held.claim.job_id}")

    async def _work(self, held: Held) -> None:
        delay = None
        try:
            delay = await self._attempts.run(held)
        finally:
            self._leases.drop(held)
            self._wakeups.wake()
        if delay is not None and delay < _REMEMBERED:
            # The table is looked at every few seconds without being woken: after each 429 they were lost.
            asyncio.get_running_loop().call_later(delay.total_seconds() + _LATE_SECONDS, self._wakeups.wake)

    async def _drain(self) -> None:
        """Finish what fits into the drain time, then hand the rest back uncharged."""
        tasks = [held.task for held in self._leases.held() if held.task is not None]
        if not tasks:
            return
        logger.bind(running=len(tasks), seconds=self._drain_seconds).info("draining")
        hurry = asyncio.create_task(self._hurrying.wait())
        finished = asyncio.create_task(_finish(tasks))
        await asyncio.wait({finished, hurry}, timeout=self._drain_seconds, return_when=asyncio.FIRST_COMPLETED)
        hurry.cancel()
        for held in self._leases.held():
            if not held.settling:  # a publish under way is a moment from its end
                held.end("interrupted")
        await asyncio.wait({finished}, timeout=_RELEASE_SECONDS)


async def _finish(tasks: list[asyncio.Task[None]]) -> None:
    await asyncio.wait(tasks)


def _claim(row: asyncpg.Record) -> Claim:
    return Claim(
        job_id=row["job_id"],
        number=row["claim"],
        document_id=row["document_id"],
        tenant_id=row["tenant_id"],
        generation=row["generation"],
        attempt=row["attempt"],
        max_attempts=row["max_attempts"],
        rescues=row["rescues"],
    )
