"""One attempt at one claim: runs the pipeline, and settles what the class of its ending decides."""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
import traceback
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Protocol

from loguru import logger

from worker import metrics
from worker.db.pool import Database
from worker.errors import (
    IngestError,
    Interrupted,
    Misconfigured,
    OverBudget,
    OverQuota,
    Rejected,
    StaleClaim,
    Superseded,
    Throttled,
    Transient,
    Unavailable,
    Waiting,
)
from worker.model import Claim, JobId
from worker.queue.leases import Held
from worker.telemetry import about

_RETRY_BASE_SECONDS = 5.0
_RETRY_CAP_SECONDS = 900.0
_MISCONFIGURED_SECONDS = 300.0
_UNAVAILABLE_SECONDS = 10.0
_LONGEST_SNOOZE_SECONDS = 3600.0
_DAY_SECONDS = 86_400.0
_ALERTS_REMEMBERED = 10_000
_SETTLE_TRIES = 4
NOW = timedelta(0)


class Work(Protocol):
    """What is to be done with a claim; `worker.pipeline.ingest.Ingest` is one."""

    def __call__(self, claim: Claim, path: Path, settling: Callable[[bool], None]) -> Awaitable[None]: ...


def backoff(attempt: int, randomness: random.Random) -> timedelta:
    """Return how long to wait after a failed attempt: doubling from 5 s to 15 min, of it a half to the whole.

    The jitter is wide because jobs that failed together in a provider's outage must not come back together.
    """
    ceiling = min(_RETRY_CAP_SECONDS, _RETRY_BASE_SECONDS * 2 ** min(attempt - 1, 30))
    return timedelta(seconds=ceiling * (0.5 + randomness.random() / 2))


@dataclass(frozen=True, slots=True)
class Attempts:
    """Runs attempts; `directory` holds the files under work, named by job and claim, never by object."""

    db: Database
    work: Work
    directory: Path
    job_seconds: float
    randomness: random.Random
    alerted: dict[JobId, str] = field(default_factory=dict, repr=False)
    """Jobs that met a misconfiguration here, and the subject of its alert."""

    async def run(self, held: Held) -> timedelta | None:
        """Work on a claim until it is settled, or known to be another's; return after how long it is due again."""
        claim = held.claim
        log = logger.bind(**about(claim))
        log.info("claim")
        started = time.monotonic()
        path = self.directory / f"{claim.job_id}-{claim.number}"
        try:
            error = await self._attempt(held, path)
        finally:
            path.unlink(missing_ok=True)
        seconds = round(time.monotonic() - started, 3)
        if error is None:
            metrics.JOBS.labels("complete").inc()
            log.bind(seconds=seconds).info("complete")
            await self._works_again(claim)
            return None
        held.settling = True
        verdict, delay = await self._settle(claim, error)
        metrics.JOBS.labels(verdict or "stale").inc()
        told = log.bind(seconds=seconds, code=error.code, detail=error.detail)
        told.log("WARNING" if verdict in ("retry", "discard") else "INFO", verdict or "stale claim")
        return delay if verdict in ("retry", "snooze") else None

    async def _alert(self, claim: Claim, error: Misconfigured) -> None:
        """Tell the operators, without the detail: vendors quote keys in it."""
        if len(self.alerted) >= _ALERTS_REMEMBERED:
            self.alerted.clear()  # the sweep resolves what nobody reports any more
        self.alerted[claim.job_id] = error.code
        with contextlib.suppress(IngestError):  # it is raised again with the next snooze
            await self.db.fetchval("raise_alert", "misconfigured", error.code, error.public_message)

    async def _works_again(self, claim: Claim) -> None:
        """Resolve the alert that this very job raised: another may not need what was wrong."""
        subject = self.alerted.pop(claim.job_id, None)
        if subject is not None:
            with contextlib.suppress(IngestError):
                await self.db.fetchval("resolve_alert", "misconfigured", subject)

    async def _attempt(self, held: Held, path: Path) -> IngestError | None:
        """Run the pipeline; return what ended it, None when it published."""

        def settling(yes: bool) -> None:
            held.settling = yes

        deadline = asyncio.timeout(self.job_seconds)
        try:
            if held.alone is not None and not held.alone.is_set():
                await self._wait_alone(held.claim, held.alone)
            async with deadline:
                await self.work(held.claim, path, settling)
        except asyncio.CancelledError:
            if held.ending is None:
                raise  # not our doing: the process is being torn down
            return _ended(held)
        except IngestError as exc:
            return exc
        except TimeoutError as exc:
            if deadline.expired():
                return Transient(
                    "job_timeout",
                    "The file took too long. It is tried again; if it stays so, split it into smaller files.",
                    detail=f"over {self.job_seconds:.0f} s",
                )
            return _internal(exc)
        except Exception as exc:  # noqa: BLE001 - the class decides the verdict, and this is the class of all others
            logger.bind(**about(held.claim)).opt(exception=exc).error("internal error")
            return _internal(exc)
        return None

    async def _wait_alone(self, claim: Claim, alone: asyncio.Event) -> None:
        """Wait until nothing else runs here; whatever ends this worker until then was not this job."""
        await self.db.fetchval("mark_begun", claim.job_id, claim.number, False)
        await alone.wait()
        await self.db.fetchval("mark_begun", claim.job_id, claim.number, True)

    async def _settle(self, claim: Claim, error: IngestError) -> tuple[str | None, timedelta]:
        """Write the verdict, if the claim still stands; rescue finds the job if the database stays away."""
        for left in reversed(range(_SETTLE_TRIES)):
            try:
                return await self._verdict(claim, error)
            except Transient:
                if left:
                    await asyncio.sleep(0.2 * (_SETTLE_TRIES - left))
            except IngestError as exc:
                logger.bind(**about(claim), detail=exc.detail).error("verdict refused")
                return None, NOW
        return None, NOW

    async def _verdict(self, claim: Claim, error: IngestError) -> tuple[str | None, timedelta]:
        delay = NOW
        ids = (claim.job_id, claim.number)
        code, message, raw = error.code, error.public_message, str(error)
        verdict: str | None
        match error:
            case StaleClaim():
                return None, NOW
            case Superseded():
                verdict = await self.db.fetchval("cancel_job", *ids, code, message)
            case Rejected():
                verdict = await self.db.fetchval("discard_job", *ids, code, message, raw)
            case OverQuota():
                verdict = await self.db.fetchval("refuse_over_quota", *ids, message)
            case Throttled() | Waiting() as pause:
                # What a server claims may be anything: looked at again within the hour.
                delay = timedelta(seconds=min(max(0.0, pause.retry_after), _LONGEST_SNOOZE_SECONDS))
                verdict = await self.db.fetchval("snooze_job", *ids, delay, code, message, raw, True, False)
            case OverBudget():
                delay = timedelta(seconds=min(max(0.0, error.retry_after), _DAY_SECONDS))
                verdict = await self.db.fetchval("snooze_job", *ids, delay, code, message, raw, False, False)
            case Unavailable():
                # The database lets the pause grow with the outage: half as long as it has lasted.
                delay = timedelta(seconds=_UNAVAILABLE_SECONDS * self.randomness.uniform(0.5, 1.5))
                verdict = await self.db.fetchval("snooze_job", *ids, delay, code, message, raw, True, True)
            case Misconfigured():
                await self._alert(claim, error)
                delay = timedelta(seconds=_MISCONFIGURED_SECONDS)
                verdict = await self.db.fetchval("snooze_job", *ids, delay, code, message, raw, False, False)
            case IngestError(verdict="release"):
                released = await self.db.fetch("release_jobs", [ids[0]], [ids[1]], code)
                verdict = "release" if released else None
            case _:
                delay = backoff(claim.attempt, self.randomness)
                verdict = await self.db.fetchval("retry_job", *ids, delay, code, message, raw)
        return verdict, delay


def _ended(held: Held) -> IngestError:
    if held.ending == "superseded":
        return Superseded("superseded", "The file was deleted or replaced meanwhile.")
    if held.ending == "interrupted":
        return Interrupted("worker_stopped", "The worker was stopped; the file continues on another at once.")
    return StaleClaim("stale_claim", "Another worker owns this job now.")


def _internal(exc: BaseException) -> Transient:
    frame = traceback.extract_tb(exc.__traceback__)[-1] if exc.__traceback__ else None
    where = f" at {Path(frame.filename).name}:{frame.lineno}" if frame else ""
    return Transient(
        "internal",
        "Something went wrong on our side. It is tried again by itself; if it stays so, contact support.",
        detail=f"{type(exc).__name__}{where}",
    )
