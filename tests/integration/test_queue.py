"""The worker's queue on a real database, with small pieces of work in the pipeline's place."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import asyncpg
import pytest

import worker.queue.runner
from tests.conftest import Database as MigratedDatabase
from tests.database.project import Project
from worker.db.pool import Database
from worker.errors import (
    IngestError,
    Interrupted,
    Misconfigured,
    Moved,
    Rejected,
    StaleClaim,
    Superseded,
    Throttled,
    Transient,
    Unavailable,
    Waiting,
)
from worker.model import Claim
from worker.queue.attempt import Attempts
from worker.queue.leases import Held, Leases
from worker.queue.listener import Listener
from worker.queue.maintenance import Maintenance
from worker.queue.runner import Runner
from worker.queue.wakeups import Wakeups

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


@pytest.fixture
async def sql(database: MigratedDatabase) -> Project:
    """The project in plain SQL."""
    return await Project(database).open()


@pytest.fixture
async def db(database: MigratedDatabase) -> AsyncIterator[Database]:
    """The worker's own pool."""
    opened = await Database.open(database.url("ingest_worker"), size=4)
    yield opened
    await opened.close()


def attempts(db: Database, work: Any, directory: Path, *, seconds: float = 30) -> Attempts:
    return Attempts(db, work, directory, seconds, random.Random(1))


def claim_of(row: asyncpg.Record) -> Claim:
    values = dict(row)
    return Claim(number=values.pop("claim"), **values)


async def held_job(sql: Project, leases: Leases, run: Callable[[Held], Awaitable[Any]]) -> tuple[UUID, Held]:
    """Upload a file, claim its job and hold it while `run` works."""
    document = await sql.upload(await sql.user())
    leases.hold(claim_of(await sql.claim_one()), lambda held: asyncio.ensure_future(run(held)), loop_time())
    (held,) = leases.held()
    return document, held


def loop_time() -> float:
    return asyncio.get_running_loop().time()


INVALID = "The file cannot be read."


@pytest.mark.parametrize(
    ("error", "state", "attempt", "code"),
    [
        (Transient("provider_failed", "Later."), "available", 1, "provider_failed"),
        (Unavailable("storage_unreachable", "Later."), "available", 0, "storage_unreachable"),
        (Throttled("provider_rate_limited", "Later.", retry_after=9), "available", 0, "provider_rate_limited"),
        (Waiting("parse_in_progress", "Later.", retry_after=9), "available", 0, "parse_in_progress"),
        (Misconfigured("provider_key", "Our key is wrong."), "available", 0, "provider_key"),
        (Interrupted("worker_stopped", "Stopped."), "available", 0, "worker_stopped"),
        (Moved("object_moved", "Renamed."), "available", 0, "object_moved"),
        (Rejected("file_corrupt", INVALID), "discarded", 1, "file_corrupt"),
        (Superseded("superseded", "Replaced."), "cancelled", 1, "superseded"),
        (RuntimeError("a secret and a https://signed.url/?token=x"), "available", 1, "internal"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else "",
)
async def test_the_class_of_an_error_decides_what_becomes_of_the_job(
    sql: Project, db: Database, tmp_path: Path, error: Exception, state: str, attempt: int, code: str
) -> None:
    async def fail(_claim: Claim) -> None:
        raise error

    await sql.upload(await sql.user())
    claim = claim_of(await sql.claim_one())

    await attempts(db, Piece(fail), tmp_path).run(Held(claim))

    job = await sql.job(claim.job_id)
    assert (job["state"], job["attempt"], job["error_code"]) == (state, attempt, code)
    assert "secret" not in (job["error_message"] or "")
    document = await sql.document(claim.document_id)
    assert document is not None
    shown = {"available": "pending", "discarded": "failed", "cancelled": "cancelled"}
    assert document["state"] == shown[state]
    if isinstance(error, IngestError):
        assert document["error_message"] == (None if error.verdict == "release" else error.public_message)


async def test_a_stale_claim_writes_nothing(sql: Project, db: Database, tmp_path: Path) -> None:
    async def fail(_claim: Claim) -> None:
        raise StaleClaim("stale_claim", "Another's.")

    await sql.upload(await sql.user())
    claim = claim_of(await sql.claim_one())
    before = dict(await sql.job(claim.job_id))

    await attempts(db, Piece(fail), tmp_path).run(Held(claim))

    assert dict(await sql.job(claim.job_id)) == before


async def test_work_that_takes_too_long_is_stopped_and_charged(sql: Project, db: Database, tmp_path: Path) -> None:
    await sql.upload(await sql.user())
    claim, work = claim_of(await sql.claim_one()), Piece()

    await attempts(db, work, tmp_path, seconds=0.05).run(Held(claim))

    job = await sql.job(claim.job_id)
    assert (job["state"], job["attempt"], job["error_code"]) == ("available", 1, "job_timeout")
    assert work.ended == [(claim.job_id, "cancelled")]


async def test_work_whose_lease_another_took_is_ended_by_the_next_renewal(
    sql: Project, db: Database, tmp_path: Path
) -> None:
    leases, work = Leases(db, lease_seconds=60, renew_seconds=15), Piece()
    document, held = await held_job(sql, leases, attempts(db, work, tmp_path).run)
    await work.begun.get()
    await sql.admin.execute("update ingest.leases set expires_at = now() - interval '1 second'")
    await sql.owner.execute("select ingest.rescue_jobs()")
    second = await sql.claim_one()

    await leases.renew()
    assert held.task is not None
    await held.task

    assert work.ended == [(held.claim.job_id, "cancelled")]
    job = await sql.job(second["job_id"])
    assert (job["state"], job["claim"]) == ("running", second["claim"])
    assert document == second["document_id"]


async def test_superseded_work_is_ended_by_the_next_renewal_and_cancelled(
    sql: Project, db: Database, tmp_path: Path
) -> None:
    leases, work = Leases(db, lease_seconds=60, renew_seconds=15), Piece()
    document, held = await held_job(sql, leases, attempts(db, work, tmp_path).run)
    await work.begun.get()
    await sql.overwrite(document)

    await leases.renew()
    assert held.task is not None
    await held.task

    assert (await sql.job(held.claim.job_id))["state"] == "cancelled"
    newer = await sql.claim_one()
    assert (newer["document_id"], newer["generation"]) == (document, 2)
    row = await sql.document(document)
    assert row is not None
    assert row["state"] == "pending"


async def test_work_ends_before_its_lease_when_no_renewal_gets_through(
    sql: Project, db: Database, tmp_path: Path
) -> None:
    class Unreachable:
        async def fetch(self, *_arguments: object) -> list[asyncpg.Record]:
            raise Transient("database_unreachable", "No answer.")

    leases = Leases(Unreachable(), lease_seconds=1.2, renew_seconds=0.1)  # type: ignore[arg-type]
    work, began = Piece(), loop_time()
    _, held = await held_job(sql, leases, attempts(db, work, tmp_path).run)
    renewing = asyncio.create_task(leases.run())
    assert held.task is not None
    await held.task
    renewing.cancel()

    assert work.ended == [(held.claim.job_id, "cancelled")]
    assert loop_time() - began < 1.2


async def test_a_job_that_settles_is_left_out_of_renewals(sql: Project, db: Database, tmp_path: Path) -> None:
    leases, work = Leases(db, lease_seconds=60, renew_seconds=15), Piece()
    _, held = await held_job(sql, leases, attempts(db, work, tmp_path).run)
    await work.begun.get()
    held.settling = True
    await sql.admin.execute("delete from ingest.leases")

    await leases.renew()

    assert held.ending is None
    held.end("lost")
    assert held.task is not None
    await held.task


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
