"""Retry, cancel, pause and resume with the worker's login: no deadlock, nothing half done, each act written down."""

from __future__ import annotations

import asyncio
from uuid import UUID

import asyncpg
import pytest

from tests.conftest import Database
from tests.database.project import Project

RETRY = "select job_id, done, why from ingest.retry_by_hand($1)"
CANCEL = "select job_id, done, why from ingest.cancel_by_hand($1)"


async def jobs_of(project: Project, tenant: UUID) -> list[int]:
    rows = await project.owner.fetch("select id from public.jobs where tenant_id = $1 order by id", tenant)
    return [row["id"] for row in rows]


async def give_up_all(project: Project) -> list[int]:
    """Claim what waits, discard it, and return the jobs."""
    claims = await project.claim(limit=100)
    await project.worker.execute(
        "select ingest.settle_jobs($1, $2, 'discard', p_code => 'x', p_message => 'x')",
        [row["job_id"] for row in claims], [row["claim"] for row in claims],
    )  # fmt: skip
    return [row["job_id"] for row in claims]


async def test_retries_and_overwrites_at_the_same_time_never_deadlock(project: Project, database: Database) -> None:
    user, other = await project.user(), await database.connect("ingest_worker")
    stored = [await project.upload(user, f"{number}.txt") for number in range(8)]

    async def retry(jobs: list[int]) -> None:
        for _ in range(6):
            await other.execute(RETRY, jobs)

    async def overwrite() -> None:
        for document in reversed(stored):
            await project.overwrite(document)

    for _ in range(5):
        jobs = await give_up_all(project)
        await asyncio.gather(retry(jobs), overwrite())
    assert await project.owner.fetch("select * from ingest.trigger_failures") == []


async def test_cancels_and_claims_at_the_same_time_leave_no_lease_without_its_job(
    project: Project, database: Database
) -> None:
    other = await database.connect("ingest_worker")
    jobs = await project.enqueue(await project.user(), 60)

    async def cancel() -> None:
        left = jobs
        while left:
            rows = [
                row for start in range(0, len(left), 7) for row in await other.fetch(CANCEL, left[start : start + 7])
            ]
            left = [row["job_id"] for row in rows if row["why"] == "held"]

    async def claim() -> None:
        for _ in range(60):
            await project.claim(limit=1)

    await asyncio.gather(cancel(), claim())
    assert await project.owner.fetchval("select count(*) from public.jobs where state = 'cancelled'") == 60
    assert await project.owner.fetchval("select count(*) from ingest.leases") == 0


async def test_a_job_or_a_document_that_somebody_holds_is_stepped_over(project: Project) -> None:
    user = await project.user()
    for name in ("a.txt", "b.txt", "c.txt"):
        await project.upload(user, name)
    free, by_job, by_document = sorted(await give_up_all(project))
    async with project.owner.transaction():
        await project.owner.execute("select 1 from public.jobs where id = $1 for no key update", by_job)
        await project.owner.execute(
            "select 1 from public.documents where id = (select document_id from public.jobs where id = $1)"
            " for no key update",
            by_document,
        )
        rows = await project.worker.fetch(RETRY, [free, by_job, by_document])
    assert {row["job_id"]: (row["done"], row["why"]) for row in rows} == {
        free: (True, None), by_job: (False, "held"), by_document: (False, "held"),
    }  # fmt: skip
    assert [(await project.job(job))["state"] for job in (free, by_job, by_document)] == [
        "available", "discarded", "discarded",
    ]  # fmt: skip


@pytest.mark.parametrize("sql", [RETRY, CANCEL])
@pytest.mark.parametrize("count", [0, 1001])
async def test_none_and_too_many_are_refused(project: Project, sql: str, count: int) -> None:
    with pytest.raises(asyncpg.InvalidParameterValueError, match="1 to 1000 jobs"):
        await project.worker.fetch(sql, list(range(1, count + 1)))


async def test_each_act_is_written_down_with_the_login_and_what_it_changed(project: Project) -> None:
    user = await project.user()
    await project.upload(user)
    (job,) = await jobs_of(project, user)
    await project.worker.fetch(CANCEL, [job])
    await project.worker.fetch(CANCEL, [job])
    await project.worker.fetch(RETRY, [job])
    await project.worker.fetchval("select ingest.pause_by_hand()")
    await project.worker.fetchval("select ingest.resume_by_hand()")
    rows = await project.owner.fetch("select login, acted_as, actor, action, affected from ingest.audit order by id")
    assert [tuple(row) for row in rows] == [
        ("ingest_worker", "login", None, action, affected)
        for action, affected in (
            ("cancel_jobs", 1), ("cancel_jobs", 0), ("retry_jobs", 1), ("pause_queue", 1), ("resume_queue", 1),
        )
    ]  # fmt: skip
    with pytest.raises(asyncpg.InsufficientPrivilegeError):
        await project.worker.execute("insert into ingest.audit (acted_as, action, affected) values ('login', 'x', 1)")
