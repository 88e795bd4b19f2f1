"""The runner on a real database, with small work in the pipeline's place: what wakes it, its slots, and its stop."""

from __future__ import annotations

import asyncio
import random
from pathlib import Path
from typing import Any
from uuid import uuid4

import asyncpg
import pytest

import worker.queue.runner
from tests.conftest import Database as MigratedDatabase
from tests.database.project import Project
from tests.integration.piecework import Piece, attempts, loop_time
from worker.db.pool import Database
from worker.errors import (
    Throttled,
)
from worker.model import Claim
from worker.queue.leases import Leases
from worker.queue.listener import Listener
from worker.queue.maintenance import Maintenance
from worker.queue.runner import Runner
from worker.queue.wakeups import Wakeups


def listening_wakeups(db: Database, database: MigratedDatabase) -> Wakeups:
    listener = Listener(db, database.url("ingest_worker"), name="DATABASE_URL")
    return Wakeups(listener, poll_seconds=300, randomness=random.Random(1))


async def test_a_notification_wakes_and_a_killed_listener_comes_back_and_hears_again(
    sql: Project, db: Database, database: MigratedDatabase
) -> None:
    wakeups = listening_wakeups(db, database)
    await wakeups.wait()  # at the start there may be work already
    listening = asyncio.create_task(wakeups.run())
    async with asyncio.timeout(20):
        await wakeups.wait()  # connected: what was there before it listened
        assert wakeups.hearing
        await sql.upload(await sql.user())
        await wakeups.wait()
        killed = await sql.admin.fetchval(
            "select count(pg_terminate_backend(pid)) from pg_stat_activity"
            " where application_name = 'sluice listener' and datname = current_database()"
        )
        assert killed == 1
        await wakeups.wait()  # reconnected
        await sql.upload(await sql.user(), "b.txt")
        await wakeups.wait()
    listening.cancel()
    await asyncio.wait([listening])


def runner(db: Database, database: MigratedDatabase, work: Piece, directory: Path, **options: Any) -> Runner:
    randomness = random.Random(1)
    settings: dict[str, Any] = {"slots": 2, "tenant_cap": 10, "drain_seconds": 5} | options
    return Runner(
        db,
        attempts(db, work, directory),
        Leases(db, lease_seconds=60, renew_seconds=15),
        listening_wakeups(db, database),
        Maintenance(db, randomness=randomness),
        worker_id=uuid4(),
        **settings,
    )


async def test_jobs_start_as_slots_become_free_and_never_more_than_there_are_slots(
    sql: Project, db: Database, database: MigratedDatabase, tmp_path: Path
) -> None:
    most, now = 0, 0

    async def complete(claim: Claim) -> None:
        nonlocal most, now
        now += 1
        most = max(most, now)
        await db.fetchval("discard_job", claim.job_id, claim.number, "done", "Done.", None)
        now -= 1

    user = await sql.user()
    for number in range(7):
        await sql.upload(user, f"{number}.txt")
    work = Piece(complete)
    running = runner(db, database, work, tmp_path)
    task = asyncio.create_task(running.run())
    async with asyncio.timeout(20):
        claims = [await work.begun.get() for _ in range(7)]
        running.stop()
        await task

    assert len({claim.job_id for claim in claims}) == 7
    assert most <= 2
    assert await sql.owner.fetchval("select count(*) from public.jobs where state = 'discarded'") == 7


async def test_slots_that_become_free_one_after_the_other_are_filled_by_one_claim(
    sql: Project, db: Database, database: MigratedDatabase, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ends: dict[int, asyncio.Event] = {}
    asked: list[int] = []
    fetch = db.fetch

    async def counted(name: str, *arguments: Any) -> list[asyncpg.Record]:
        if name == "claim_jobs":
            asked.append(arguments[1])
        return await fetch(name, *arguments)

    async def until_told(claim: Claim) -> None:
        await ends.setdefault(claim.job_id, asyncio.Event()).wait()
        await db.fetchval("discard_job", claim.job_id, claim.number, "done", "Done.", None)

    user = await sql.user()
    for number in range(11):
        await sql.upload(user, f"{number}.txt")
    monkeypatch.setattr(db, "fetch", counted)
    monkeypatch.setattr(worker.queue.runner, "_LINGER_SECONDS", 30)
    work = Piece(until_told)
    running = runner(db, database, work, tmp_path, slots=8)
    task = asyncio.create_task(running.run())
    async with asyncio.timeout(20):
        first = [await work.begun.get() for _ in range(8)]
        for claim in first[:2]:
            ends[claim.job_id].set()
            await asyncio.sleep(0.1)
        later = [await work.begun.get() for _ in range(2)]
        # The eleventh waits with one slot free, but a stop does not wait for it.
        ends[later[0].job_id].set()
        running.stop()
        for end in ends.values():
            end.set()
        await task

    assert asked == [8, 2]
    assert await sql.owner.fetchval("select count(*) from public.jobs where state = 'discarded'") == 10


async def test_a_job_that_snoozed_goes_on_when_it_is_due_and_not_when_the_table_is_looked_at_next(
    sql: Project, db: Database, database: MigratedDatabase, tmp_path: Path
) -> None:
    async def throttled_once(claim: Claim) -> None:
        if claim.number == 1:
            raise Throttled("provider_rate_limited", "Wait.", retry_after=1)
        await db.fetchval("discard_job", claim.job_id, claim.number, "done", "Done.", None)

    await sql.upload(await sql.user())
    work = Piece(throttled_once)
    running = runner(db, database, work, tmp_path)
    task = asyncio.create_task(running.run())
    async with asyncio.timeout(20):
        first = await work.begun.get()
        began = loop_time()
        again = await work.begun.get()
        waited = loop_time() - began
        running.stop()
        await task

    assert (again.job_id, again.number) == (first.job_id, 2)
    assert 0.9 < waited < 3  # the table is looked at every five minutes here


async def test_a_stop_finishes_what_fits_and_hands_the_rest_back_uncharged(
    sql: Project, db: Database, database: MigratedDatabase, tmp_path: Path
) -> None:
    finish = asyncio.Event()

    async def work_on(claim: Claim) -> None:
        if claim.generation == 1:
            await finish.wait()
            await db.fetchval("discard_job", claim.job_id, claim.number, "done", "Done.", None)
        else:
            await asyncio.Event().wait()

    user = await sql.user()
    await sql.upload(user, "quick.txt")
    slow = await sql.upload(user, "slow.txt")
    await sql.overwrite(slow)
    work = Piece(work_on)
    running = runner(db, database, work, tmp_path, drain_seconds=0.5)
    task = asyncio.create_task(running.run())
    async with asyncio.timeout(20):
        await work.begun.get()
        await work.begun.get()
        await sql.upload(user, "too-late.txt")
        running.stop()
        finish.set()
        await task

    rows = await sql.owner.fetch(
        "select d.name, j.state, j.attempt from public.jobs j join public.documents d"
        " on d.id = j.document_id and d.generation = j.generation order by d.name"
    )
    shown = {row["name"].split("/")[1]: (row["state"], row["attempt"]) for row in rows}
    assert shown["quick.txt"] == ("discarded", 1)
    assert shown["slow.txt"] == ("available", 0)
    assert await sql.owner.fetchval("select count(*) from ingest.leases") == 0


async def test_a_second_stop_does_not_wait_for_the_drain(
    sql: Project, db: Database, database: MigratedDatabase, tmp_path: Path
) -> None:
    await sql.upload(await sql.user())
    work = Piece()
    running = runner(db, database, work, tmp_path, drain_seconds=300)
    task = asyncio.create_task(running.run())
    async with asyncio.timeout(20):
        claim = await work.begun.get()
        running.stop()
        await asyncio.sleep(0)
        running.stop()
        await task

    job = await sql.job(claim.job_id)
    assert (job["state"], job["attempt"]) == ("available", 0)
