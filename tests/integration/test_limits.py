"""What providers' limits and our own mistakes do to jobs: waits in place, snoozes, alerts, and never an attempt."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path

import pytest

from tests.database.project import Project
from tests.database.situations import claim_of
from worker.db.pool import Database
from worker.errors import Misconfigured, Throttled, Unavailable, Waiting
from worker.model import Claim
from worker.pipeline.limits import Limits
from worker.queue.attempt import Attempts
from worker.queue.leases import Held


@dataclass
class Time:
    """Lets time pass in the database where somebody sleeps."""

    sql: Project
    slept: list[float] = field(default_factory=list)
    passes: bool = True

    async def __call__(self, seconds: float) -> None:
        self.slept.append(seconds)
        if self.passes:
            await self.sql.owner.execute(
                "update ingest.rate_limits set refilled_at = refilled_at - $1::interval,"
                " blocked_until = blocked_until - $1::interval",
                timedelta(seconds=seconds),
            )


@pytest.fixture
def time(sql: Project) -> Time:
    return Time(sql)


@pytest.fixture
def limits(db: Database, time: Time) -> Limits:
    return Limits(db, random.Random(1), time)


async def configure(sql: Project, requests: int, tokens: int | None = None) -> None:
    await sql.owner.execute("select ingest.configure_rate_limit('vendor', $1, $2)", requests, tokens)


async def test_a_short_wait_is_slept_in_place_and_then_granted(sql: Project, limits: Limits, time: Time) -> None:
    await configure(sql, 60)
    for _ in range(10):
        await limits.take("vendor")
    assert time.slept == []
    await limits.take("vendor", requests=2)
    assert 1.5 < sum(time.slept) < 5


async def test_a_long_wait_is_no_sleep_but_throttles_the_job(sql: Project, limits: Limits, time: Time) -> None:
    await configure(sql, 600, 600)
    await limits.take("vendor", tokens=600)
    with pytest.raises(Throttled) as caught:
        await limits.take("vendor", tokens=80)
    assert 7 < caught.value.retry_after <= 8 * 1.25
    assert time.slept == []


async def test_waits_that_others_outrun_end_in_a_snooze(sql: Project, limits: Limits, time: Time) -> None:
    await configure(sql, 60)
    await limits.take("vendor", requests=10)
    time.passes = False
    with pytest.raises(Throttled):
        await limits.take("vendor", requests=1)
    assert sum(time.slept) < 5
    assert len(time.slept) >= 3


async def test_after_a_429_no_worker_asks_before_the_provider_said(
    sql: Project, limits: Limits, db: Database, time: Time
) -> None:
    error = await limits.blocked("vendor", 60.0)
    assert (error.code, error.retry_after) == ("provider_rate_limited", 60.0)
    other = Limits(db, random.Random(2), time)
    with pytest.raises(Throttled) as caught:
        await other.take("vendor")
    assert 55 < caught.value.retry_after <= 60 * 1.25
    await other.take("another vendor")
    await time(61)
    await other.take("vendor")


@pytest.mark.parametrize("said", [1e12, float("inf"), float("nan"), -3.0])
async def test_whatever_a_server_says_of_waiting_is_bounded(limits: Limits, said: float) -> None:
    assert 0 <= (await limits.blocked("vendor", said)).retry_after <= 3600


async def uploaded(sql: Project) -> Claim:
    await sql.upload(await sql.user())
    return claim_of(await sql.claim_one())


class Steps:
    """Work that ends as told, attempt by attempt; None completes nothing but returns."""

    def __init__(self, db: Database, directory: Path) -> None:
        self.attempts = Attempts(db, self, directory, 30, random.Random(1))
        self.ending: Exception | None = None

    async def __call__(self, claim: Claim, path: Path, settling: Callable[[bool], None]) -> None:
        if self.ending is not None:
            raise self.ending

    async def end(self, claim: Claim, ending: Exception | None) -> None:
        self.ending = ending
        await self.attempts.run(Held(claim))


async def due_again(sql: Project, days: float = 0) -> Claim:
    """Let the snooze and `days` more pass, and claim the job again."""
    await sql.owner.execute(
        "update public.jobs set scheduled_at = now(), snoozing_since = snoozing_since - $1::interval,"
        " created_at = created_at - $1::interval",
        timedelta(days=days),
    )
    await sql.owner.execute("update ingest.turns set due_at = now()")
    return claim_of(await sql.claim_one())


@pytest.mark.parametrize(
    "pause",
    [
        Throttled("provider_rate_limited", "Wait.", retry_after=30),
        Waiting("parse_in_progress", "Wait.", retry_after=30),
        Unavailable("storage_unreachable", "Wait."),
    ],
    ids=["Throttled", "Waiting", "Unavailable"],
)
async def test_a_limit_is_never_an_attempt_and_ends_a_day_after_the_first(
    sql: Project, db: Database, tmp_path: Path, pause: Throttled | Waiting | Unavailable
) -> None:
    steps, claim = Steps(db, tmp_path), await uploaded(sql)
    for _ in range(8):  # more often than there are attempts
        await steps.end(claim, pause)
        claim = await due_again(sql, days=1 / 10)
        assert (claim.attempt, (await sql.job(claim.job_id))["state"]) == (1, "running")
    await sql.owner.execute("update public.jobs set snoozing_since = now() - interval '24 hours 1 minute'")
    await steps.end(claim, pause)
    job = await sql.job(claim.job_id)
    assert (job["state"], job["error_code"]) == ("discarded", pause.code)


@pytest.mark.parametrize(("since", "least", "most"), [(0, 5, 15), (60, 30, 30), (600, 300, 300), (36_000, 900, 900)])
async def test_pauses_grow_with_an_outage_to_a_quarter_of_an_hour(
    sql: Project, db: Database, tmp_path: Path, since: int, least: int, most: int
) -> None:
    steps, claim = Steps(db, tmp_path), await uploaded(sql)
    outage = Unavailable("storage_unreachable", "Storage did not answer.")
    await steps.end(claim, outage)
    claim = await due_again(sql)
    await sql.owner.execute("update public.jobs set snoozing_since = now() - $1::interval", timedelta(seconds=since))

    await steps.end(claim, outage)

    left = (await sql.job(claim.job_id))["scheduled_at"] - await sql.owner.fetchval("select now()")
    assert least - 1 <= left.total_seconds() <= most + 1


async def test_a_wrong_key_of_ours_never_ends_a_job_and_alerts_once(sql: Project, db: Database, tmp_path: Path) -> None:
    steps, claim = Steps(db, tmp_path), await uploaded(sql)
    wrong = Misconfigured("provider_key", "Our key is wrong.", detail="sk-live-0123456789 was refused")
    for _ in range(8):
        await steps.end(claim, wrong)
        job = await sql.job(claim.job_id)
        assert (job["state"], job["attempt"], job["error_code"]) == ("available", 0, "provider_key")
        left = job["scheduled_at"] - await sql.owner.fetchval("select now()")
        assert timedelta(minutes=4) < left <= timedelta(minutes=5)
        claim = await due_again(sql, days=2)
    row = await sql.owner.fetchrow("select * from ingest.alerts")
    assert row is not None
    assert (row["kind"], row["subject"], row["count"]) == ("misconfigured", "provider_key", 8)
    assert (row["message"], row["resolved_at"]) == ("Our key is wrong.", None)

    # A day of our own mistake is no day of the provider's limit.
    await steps.end(claim, Throttled("provider_rate_limited", "Wait.", retry_after=1))
    assert (await sql.job(claim.job_id))["state"] == "available"


async def test_the_alert_ends_when_the_job_that_raised_it_gets_through_and_not_with_another(
    sql: Project, db: Database, tmp_path: Path
) -> None:
    steps, claim = Steps(db, tmp_path), await uploaded(sql)
    await steps.end(claim, Misconfigured("provider_key", "Our key is wrong."))
    alive = "select resolved_at is null from ingest.alerts"
    other = await uploaded(sql)
    await steps.end(other, None)
    assert await sql.owner.fetchval(alive)

    await steps.end(await due_again(sql), None)
    assert not await sql.owner.fetchval(alive)


async def test_a_provider_that_asks_for_a_year_is_asked_again_within_the_hour(
    sql: Project, db: Database, tmp_path: Path
) -> None:
    for asked in (3e7, float("inf"), float("nan")):
        steps, claim = Steps(db, tmp_path), await uploaded(sql)
        await steps.end(claim, Throttled("provider_rate_limited", "Wait.", retry_after=asked))
        job = await sql.job(claim.job_id)
        assert job["state"] == "available"
        left = job["scheduled_at"] - await sql.owner.fetchval("select now()")
        assert left <= timedelta(hours=1)
