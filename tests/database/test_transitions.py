"""Transitions: the arrows of the job's picture hold for whoever writes, and an operator's retry is one of them."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from itertools import permutations
from uuid import UUID

import asyncpg
import pytest

from tests.conftest import Database
from tests.database.project import Project

STATES = ("available", "running", "completed", "cancelled", "discarded")
ALLOWED = {
    ("available", "running"), ("available", "cancelled"),
    ("running", "available"), ("running", "completed"), ("running", "cancelled"), ("running", "discarded"),
    ("cancelled", "available"), ("discarded", "available"),
}  # fmt: skip
REFUSED, NOTHING_TO_RETRY = "IG007", "IG008"
FINAL = {"completed": "complete", "cancelled": "cancel", "discarded": "discard"}


async def settle(project: Project, claim: asyncpg.Record, verdict: str) -> None:
    (settled,) = await project.worker.fetch(
        "select * from ingest.settle_jobs($1, $2, $3, p_code => 'some_code')",
        [claim["job_id"]], [claim["claim"]], verdict,
    )  # fmt: skip
    assert settled["verdict"] == verdict


async def job_in(project: Project, state: str, name: str = "a.txt") -> int:
    """Bring the job of a new file to this state, by the functions."""
    document = await project.upload(await project.user(), name)
    job: int = await project.owner.fetchval("select id from public.jobs where document_id = $1", document)
    if state != "available":
        claim = await project.claim_one()
        if state != "running":
            await settle(project, claim, FINAL[state])
    return job


async def retry(project: Project, job: int) -> None:
    await project.worker.execute("select ingest.retry_discarded($1)", job)


@pytest.mark.parametrize("before", STATES)
async def test_only_the_arrows_of_the_picture_are_possible_for_anybody(project: Project, before: str) -> None:
    job = await job_in(project, before)
    for after in STATES:
        if after == before:
            continue
        change = (
            "update public.jobs set state = $2::text::public.job_state, stage = null, claim = 1, started_at = now(),"
            " error_code = 'x',"
            " finalized_at = case when $2::text in ('available', 'running') then null else now() end where id = $1"
        )
        for connection in (project.admin, project.owner, project.worker):
            transaction = connection.transaction()
            await transaction.start()
            try:
                if (before, after) in ALLOWED:
                    await connection.execute(change, job, after)
                else:
                    with pytest.raises(
                        asyncpg.PostgresError, match=f"job {job} cannot go from {before} to {after}"
                    ) as no:
                        await connection.execute(change, job, after)
                    assert no.value.sqlstate == REFUSED
            finally:
                await transaction.rollback()
    assert len(set(permutations(STATES, 2)) - ALLOWED) == 12


@pytest.mark.parametrize("state", STATES[1:])
async def test_a_job_begins_as_available(project: Project, state: str) -> None:
    with pytest.raises(asyncpg.PostgresError, match=f"cannot begin as {state}") as refused:
        await project.owner.execute(
            "insert into public.jobs "
            "(document_id, tenant_id, generation, state, claim, started_at, error_code, finalized_at)"
            " select gen_random_uuid(), gen_random_uuid(), 1, s, 1, now(), 'x', case when s <> 'running' then now() end"
            "   from (select $1::public.job_state as s) given",
            state,
        )
    assert refused.value.sqlstate == REFUSED


async def test_a_job_without_an_attempt_left_cannot_wait(project: Project) -> None:
    job = await job_in(project, "available")
    with pytest.raises(asyncpg.CheckViolationError, match="available_has_an_attempt_left"):
        await project.owner.execute("update public.jobs set attempt = max_attempts where id = $1", job)


@pytest.mark.parametrize("state", ["discarded", "cancelled"])
async def test_an_operator_brings_a_job_back_with_five_more_attempts_and_its_history(
    project: Project, state: str
) -> None:
    job = await job_in(project, state)
    heard: asyncio.Queue[str] = asyncio.Queue()
    await project.owner.add_listener("ingest_wake", lambda *_: heard.put_nowait("wake"))

    await retry(project, job)

    async with asyncio.timeout(5):
        await heard.get()
    row = await project.job(job)
    assert (row["state"], row["attempt"], row["max_attempts"], row["rescues"]) == ("available", 1, 6, 0)
    assert (row["error_code"], row["finalized_at"]) == (None, None)
    assert (await project.told(row["document_id"]))["state"] == "pending"
    claim = await project.claim_one()
    assert (claim["job_id"], claim["attempt"], claim["claim"]) == (job, 2, 2)
    await project.ingest(claim, ["at last"])
    assert await project.events(job) == ["enqueue", "claim", FINAL[state], "retry", "claim", "complete"]
    assert (await project.told(row["document_id"]))["state"] == "ready"


async def test_a_job_cancelled_before_its_first_attempt_can_be_brought_back(project: Project) -> None:
    job = await job_in(project, "available")
    document = (await project.job(job))["document_id"]
    await project.owner.execute("select ingest.cancel_jobs_of($1, 'by_hand', '{available}')", document)
    await retry(project, job)
    assert (await project.claim_one())["max_attempts"] == 5


@pytest.mark.parametrize("state", ["available", "running", "completed"])
async def test_what_has_not_failed_cannot_be_retried(project: Project, state: str) -> None:
    job = await job_in(project, state)
    with pytest.raises(asyncpg.PostgresError, match=f"job {job} cannot be retried: it is {state}") as refused:
        await retry(project, job)
    assert refused.value.sqlstate == NOTHING_TO_RETRY


async def refusal(project: Project, job: int) -> str:
    with pytest.raises(asyncpg.PostgresError) as refused:
        await retry(project, job)
    assert refused.value.sqlstate == NOTHING_TO_RETRY
    return str(refused.value)


async def test_a_retry_of_old_bytes_is_refused_and_says_so(project: Project) -> None:
    job = await job_in(project, "discarded")
    assert "does not exist" in await refusal(project, job + 1000)
    document: UUID = (await project.job(job))["document_id"]
    await project.overwrite(document)
    assert "replaced meanwhile: this job is for generation 1, the file has 2" in await refusal(project, job)
    tenant = (await project.job(job))["tenant_id"]
    await project.remove(tenant, document)
    assert "deleted" in await refusal(project, job)


async def test_a_retry_beside_a_live_job_of_the_same_bytes_is_refused(project: Project, database: Database) -> None:
    job = await job_in(project, "discarded")
    row = await project.job(job)
    other = await database.connect("postgres")
    transaction = other.transaction()
    await transaction.start()
    await other.execute("select ingest.enqueue_job($1, $2, 1)", row["document_id"], row["tenant_id"])
    trying = asyncio.create_task(refusal(project, job))  # the other job is not committed: only the index sees it
    assert await project.waits(trying, project.worker)
    await transaction.commit()
    assert "another job is doing this work already" in await trying
    assert "another job is doing this work already" in await refusal(project, job)
    claim = await project.claim_one()
    await project.ingest(claim, ["x"])
    assert "searchable already" in await refusal(project, job)


async def test_an_overwrite_during_a_retry_wins(project: Project, database: Database) -> None:
    job = await job_in(project, "discarded")
    row = await project.job(job)
    other = await database.connect("supabase_admin")
    transaction = other.transaction()
    await transaction.start()
    await other.execute("update storage.objects set version = 'later' where id = $1", row["document_id"])
    trying = asyncio.create_task(refusal(project, job))
    assert await project.waits(trying, project.worker)
    await transaction.commit()
    assert "deleted or replaced just now" in await trying
    assert (await project.job(job))["state"] == "discarded"
    assert (await project.claim_one())["generation"] == 2


async def test_a_pause_is_seen_by_the_next_claim_and_a_resume_wakes_the_workers(project: Project) -> None:
    running = await job_in(project, "running")
    await project.upload(await project.user(), "b.txt")
    heard: asyncio.Queue[str] = asyncio.Queue()
    since = await project.worker.fetchval("select ingest.pause_queue()")
    assert await project.claim() == []
    assert await project.worker.fetchval("select ingest.pause_queue()") == since
    # What runs goes on.
    lease = await project.owner.fetchrow("select job_id, claim from ingest.leases")
    assert lease is not None
    renewed = await project.worker.fetch(
        "select * from ingest.renew_leases($1, $2, $3)", [lease["job_id"]], [lease["claim"]], timedelta(seconds=60)
    )
    assert [tuple(row) for row in renewed] == [(running, "ours")]

    await project.owner.add_listener("ingest_wake", lambda *_: heard.put_nowait("wake"))
    assert await project.worker.fetchval("select ingest.resume_queue()") is True
    async with asyncio.timeout(5):
        await heard.get()
    assert len(await project.claim()) == 1
    assert await project.worker.fetchval("select ingest.resume_queue()") is False


@pytest.mark.parametrize("verb", ["pause_queue", "resume_queue"])
async def test_a_queue_that_does_not_exist_is_named(project: Project, verb: str) -> None:
    with pytest.raises(asyncpg.InvalidParameterValueError, match='there is no queue "reports"'):
        await project.worker.execute(f"select ingest.{verb}('reports')")
