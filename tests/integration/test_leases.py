"""Leases under faults, with small work on a real database: a blocked loop, and a suspect that runs alone."""

from __future__ import annotations

import asyncio
import random
import threading
import time
from collections.abc import Callable
from pathlib import Path
from uuid import uuid4

import pytest

from tests.conftest import Database as MigratedDatabase
from tests.database.project import Project
from tests.silent_line import SilentLine
from worker.db.pool import Database
from worker.model import Claim
from worker.queue.attempt import Attempts, Work
from worker.queue.leases import Leases
from worker.queue.listener import Listener
from worker.queue.maintenance import Maintenance
from worker.queue.runner import Runner
from worker.queue.wakeups import Wakeups


@pytest.fixture
async def sql(database: MigratedDatabase) -> Project:
    """The project in plain SQL, with a table of what was done that has no key: doing it twice shows."""
    project = await Project(database).open()
    await project.owner.execute(
        "create table public.effects (job_id bigint, claim bigint); grant all on public.effects to ingest_worker"
    )
    return project


def runner(db: Database, url: str, work: Work, directory: Path, *, lease: float = 60, slots: int = 4) -> Runner:
    chance = random.Random(1)
    return Runner(
        db, Attempts(db, work, directory, 30, chance), Leases(db, lease_seconds=lease, renew_seconds=15),
        Wakeups(Listener(db, url, name="DATABASE_URL"), poll_seconds=300, randomness=chance),
        Maintenance(db, randomness=chance, rescue_seconds=0.2),
        worker_id=uuid4(), slots=slots, tenant_cap=100, drain_seconds=5,
    )  # fmt: skip


async def commit(db: Database, claim: Claim) -> None:
    """Note the effect and complete the claim, together or not at all."""
    async with db.transaction() as session:
        connection = session._connection
        await connection.execute("insert into public.effects values ($1, $2)", claim.job_id, claim.number)
        settled = await connection.fetch(
            "select * from ingest.settle_jobs($1, $2, 'complete')", [claim.job_id], [claim.number]
        )
        if not settled:
            raise RuntimeError("stale")


async def completed(sql: Project, count: int) -> None:
    async with asyncio.timeout(30):
        while True:
            done = await sql.owner.fetchval("select count(*) from public.jobs where state = 'completed'")
            if done == count:
                return
            await asyncio.sleep(0.02)


class Blocking:
    """A worker in a thread of its own, whose work stops its event loop for two leases."""

    def __init__(self, url: str, directory: Path, lease: float) -> None:
        self.endings: list[str] = []
        self.begun = threading.Event()
        self._url, self._directory, self._lease = url, directory, lease
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()))
        self._stop: Callable[[], None] = lambda: None

    async def _run(self) -> None:
        db = await Database.open(self._url, size=4)
        loop = asyncio.get_running_loop()

        async def work(claim: Claim, path: Path, settling: Callable[[bool], None]) -> None:
            self.begun.set()
            time.sleep(2 * self._lease)  # noqa: ASYNC251 - the fault that is tested: nothing else runs in this loop
            try:
                await asyncio.sleep(0)
                await commit(db, claim)
                self.endings.append("committed")
            except asyncio.CancelledError:
                self.endings.append("cancelled")
                raise

        running = runner(db, self._url, work, self._directory, lease=self._lease, slots=1)

        def stop() -> None:
            loop.call_soon_threadsafe(running.stop)

        self._stop = stop
        await running.run()
        await db.close()

    def __enter__(self) -> Blocking:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop()
        self._thread.join(20)
        assert not self._thread.is_alive()


async def test_a_loop_blocked_for_two_leases_loses_its_job_and_nothing_is_done_twice(
    sql: Project, db: Database, database: MigratedDatabase, tmp_path: Path
) -> None:
    url, second = database.url("ingest_worker"), tmp_path / "second"
    second.mkdir()
    await sql.upload(await sql.user())

    async def work(claim: Claim, path: Path, settling: Callable[[bool], None]) -> None:
        await commit(db, claim)

    with Blocking(url, tmp_path, lease=1.0) as blocked:
        assert await asyncio.to_thread(blocked.begun.wait, 10)
        other = runner(db, url, work, second)
        running = asyncio.create_task(other.run())
        await completed(sql, 1)
        other.stop()
        await running

    assert blocked.endings == ["cancelled"]
    effects = await sql.owner.fetch("select claim from public.effects")
    assert [row["claim"] for row in effects] == [2]
    (job,) = await sql.owner.fetch("select * from public.jobs")
    assert (job["state"], job["claim"], job["rescues"]) == ("completed", 2, 1)
    assert await sql.events(job["id"]) == ["enqueue", "claim", "rescue", "claim", "complete"]


async def test_a_suspect_begins_when_its_neighbours_have_ended_and_has_the_worker_to_itself(
    sql: Project, db: Database, database: MigratedDatabase, tmp_path: Path
) -> None:
    go: dict[int, asyncio.Event] = {}
    running_now: set[int] = set()
    together: list[set[int]] = []
    begun: asyncio.Queue[int] = asyncio.Queue()

    async def work(claim: Claim, path: Path, settling: Callable[[bool], None]) -> None:
        running_now.add(claim.job_id)
        together.append(set(running_now))
        begun.put_nowait(claim.job_id)
        await go.setdefault(claim.job_id, asyncio.Event()).wait()
        await commit(db, claim)
        running_now.remove(claim.job_id)

    tenant = uuid4()
    neighbours = await sql.enqueue(tenant, 2)
    worker = runner(db, database.url("ingest_worker"), work, tmp_path)
    running = asyncio.create_task(worker.run())
    async with asyncio.timeout(30):
        assert {await begun.get(), await begun.get()} == set(neighbours)

        (suspect,) = await sql.enqueue_rescued(tenant)
        behind = await sql.enqueue(tenant, 2)
        await sql.until("select stage is null and state = 'running' from public.jobs where id = $1", suspect)
        go[neighbours[0]].set()
        await sql.until("select state = 'completed' from public.jobs where id = $1", neighbours[0])
        assert begun.empty()  # one neighbour is left, and two slots are free
        go[neighbours[1]].set()
        assert await begun.get() == suspect
        await sql.owner.execute("notify ingest_wake")
        assert begun.empty()
        go[suspect].set()
        assert {await begun.get(), await begun.get()} == set(behind)
        for job in behind:
            go[job].set()
        await completed(sql, 5)
    worker.stop()
    await running
    assert {suspect} in together
    assert not [names for names in together if suspect in names and len(names) > 1]


async def test_a_waiting_suspect_is_handed_back_uncharged_when_its_worker_is_stopped_twice(
    sql: Project, db: Database, database: MigratedDatabase, tmp_path: Path
) -> None:
    async def work(claim: Claim, path: Path, settling: Callable[[bool], None]) -> None:
        await asyncio.Event().wait()

    tenant = uuid4()
    (neighbour,) = await sql.enqueue(tenant)
    worker = runner(db, database.url("ingest_worker"), work, tmp_path)
    running = asyncio.create_task(worker.run())
    async with asyncio.timeout(30):
        await sql.until("select state = 'running' from public.jobs where id = $1", neighbour)
        (suspect,) = await sql.enqueue_rescued(tenant)
        await sql.until("select stage is null and state = 'running' from public.jobs where id = $1", suspect)
        worker.stop()
        worker.stop()
        await running
    for job, attempt in ((neighbour, 0), (suspect, 1)):
        row = await sql.job(job)
        assert (row["state"], row["attempt"], row["error_code"]) == ("available", attempt, "worker_stopped")


async def test_a_line_that_went_silent_costs_no_lease(sql: Project, database: MigratedDatabase) -> None:
    async with SilentLine(database.url("ingest_worker")).open() as line:
        db = await Database.open(line.url, size=2)
        leases = Leases(db, lease_seconds=3, renew_seconds=0.5)
        await sql.upload(await sql.user())
        claim = await sql.claim_one()
        since = asyncio.get_running_loop().time()
        values = dict(claim)
        work = asyncio.create_task(asyncio.Event().wait())
        leases.hold(Claim(number=values.pop("claim"), **values), lambda _: work, since)  # type: ignore[arg-type,return-value]
        renewing = asyncio.create_task(leases.run())
        try:
            async with asyncio.timeout(20):
                await sql.owner.execute("update ingest.leases set expires_at = now()")
                await sql.until("select expires_at > now() from ingest.leases")

                assert line.silence() >= 1
                silent = await sql.owner.fetchval("select expires_at from ingest.leases")

                await sql.until("select expires_at > $1::timestamptz + interval '1 second' from ingest.leases", silent)
            assert not work.done()
        finally:
            renewing.cancel()
            await asyncio.gather(renewing, return_exceptions=True)
            for held in leases.held():
                leases.drop(held)
            work.cancel()
            await db.close()
