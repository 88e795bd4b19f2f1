"""Rescue: jobs whose worker is gone come back, and those that take their workers along do not."""

from __future__ import annotations

from datetime import timedelta
from uuid import uuid4

import asyncpg
import pytest

from tests.conftest import Database
from tests.database.project import Project


async def expire(project: Project) -> None:
    await project.owner.execute("update ingest.leases set expires_at = now() - interval '1 second'")


async def rescue(project: Project, connection: asyncpg.Connection | None = None) -> dict[int, str]:
    rows = await (connection or project.worker).fetch("select * from ingest.rescue_jobs()")
    return {row["job_id"]: row["state"] for row in rows}


async def test_a_job_whose_lease_ran_out_comes_back_charged(project: Project) -> None:
    user = await project.user()
    document = await project.upload(user)
    claim = await project.claim_one()
    await project.begin(claim)
    assert await rescue(project) == {}

    await expire(project)
    assert await rescue(project) == {claim["job_id"]: "available"}
    job = await project.job(claim["job_id"])
    assert (job["attempt"], job["rescues"], job["stage"], job["error_code"]) == (1, 1, None, "lease_expired")
    assert (await project.told(document))["state"] == "pending"
    assert await project.events(claim["job_id"]) == ["enqueue", "claim", "rescue"]
    again = await project.claim_one()
    assert (again["attempt"], again["claim"], again["rescues"]) == (2, 2, 1)


async def test_a_running_job_without_a_lease_comes_back(project: Project) -> None:
    (job,) = await project.enqueue(uuid4())
    await project.claim_one()
    await project.owner.execute("delete from ingest.leases")
    assert await rescue(project) == {job: "available"}


async def test_a_lease_whose_job_is_not_running_is_cleared_away(project: Project) -> None:
    (job,) = await project.enqueue(uuid4())
    await project.claim_one()
    await project.owner.execute("update public.jobs set state = 'cancelled', finalized_at = now()")
    await expire(project)
    assert await rescue(project) == {}
    assert await project.owner.fetchval("select count(*) from ingest.leases") == 0
    assert (await project.job(job))["state"] == "cancelled"


async def test_a_renewed_lease_is_not_rescued(project: Project) -> None:
    await project.enqueue(uuid4())
    claim = await project.claim_one()
    await expire(project)
    await project.worker.execute(
        "select ingest.renew_leases($1, $2, $3)", [claim["job_id"]], [claim["claim"]], timedelta(seconds=60)
    )
    assert await rescue(project) == {}


async def lose_workers(project: Project, times: int) -> asyncpg.Record:
    for _ in range(times):
        claim = await project.claim_one()
        await project.begin(claim)
        await expire(project)
        await rescue(project)
    return await project.job(claim["job_id"])


async def test_a_job_that_took_three_workers_along_is_discarded(project: Project) -> None:
    user = await project.user()
    document = await project.upload(user)
    job = await lose_workers(project, 3)
    assert (job["state"], job["error_code"], job["rescues"], job["attempt"]) == ("discarded", "worker_lost", 3, 3)
    told = await project.told(document)
    assert (told["state"], told["error_code"]) == ("failed", "worker_lost")
    assert "contact support" in told["error_message"]
    assert await project.claim() == []


@pytest.mark.parametrize("progress", ["pages stored", "vectors stored"])
async def test_a_durable_stage_resets_the_count_of_lost_workers(project: Project, progress: str) -> None:
    await project.upload(await project.user())
    await lose_workers(project, 2)
    claim = await project.claim_one()
    if progress == "pages stored":
        await project.finish_parse(claim, (await project.begin_parse(claim, "x"))["parse_id"], ["x"])
    else:
        for stage in ("embed", "publish"):
            await project.worker.execute(
                "select ingest.enter_stage($1, $2, $3, 0.5, '1 s')", claim["job_id"], claim["claim"], stage
            )
    await expire(project)
    assert await rescue(project) == {claim["job_id"]: "available"}
    assert (await project.job(claim["job_id"]))["rescues"] == 1


async def test_a_document_that_kills_its_worker_while_it_is_embedded_is_discarded_all_the_same(
    project: Project,
) -> None:
    await project.upload(await project.user())
    for expected in ("available", "available", "discarded"):
        claim = await project.claim_one()
        parse = await project.begin_parse(claim, "poison")
        for stage in ("parse", "chunk", "embed"):
            await project.worker.execute(
                "select ingest.enter_stage($1, $2, $3, 0.5, '1 s')", claim["job_id"], claim["claim"], stage
            )
            if stage == "parse" and parse["outcome"] == "parse":
                await project.finish_parse(claim, parse["parse_id"], ["poison"])
        await expire(project)
        assert await rescue(project) == {claim["job_id"]: expected}


async def test_a_rescue_on_the_last_attempt_is_a_discard(project: Project) -> None:
    await project.upload(await project.user())
    await project.owner.execute("update public.jobs set max_attempts = 1")
    job = await lose_workers(project, 1)
    assert (job["state"], job["error_code"]) == ("discarded", "worker_lost")


async def test_a_rescue_leaves_the_document_of_a_newer_generation_alone(project: Project) -> None:
    document = await project.upload(await project.user())
    await project.claim_one()
    await project.overwrite(document)
    await expire(project)
    await rescue(project)
    told = await project.told(document)
    assert (told["state"], told["error_code"]) == ("pending", None)


async def test_a_rescue_steps_around_leases_that_are_being_settled(project: Project, database: Database) -> None:
    await project.enqueue(uuid4(), 2)
    first, second = await project.claim()
    await expire(project)
    settling = await database.connect("ingest_worker")
    await project.worker.execute("set lock_timeout = '100ms'")
    async with settling.transaction():
        await settling.execute("select ingest.settle_jobs($1, $2, 'complete')", [first["job_id"]], [first["claim"]])
        assert await rescue(project) == {second["job_id"]: "available"}
    assert await rescue(project) == {}
    assert (await project.job(first["job_id"]))["state"] == "completed"


async def test_an_open_transaction_on_one_job_delays_no_other_rescue(project: Project) -> None:
    held, free = await project.enqueue(uuid4()) + await project.enqueue(uuid4())
    await project.claim()
    await expire(project)
    await project.worker.execute("set lock_timeout = '100ms'")
    async with project.owner.transaction():
        await project.owner.execute("update public.jobs set priority = 1 where id = $1", held)
        assert await rescue(project) == {free: "available"}
    assert await rescue(project) == {held: "available"}


async def test_only_one_rescue_runs_at_a_time(project: Project, database: Database) -> None:
    await project.enqueue(uuid4())
    await project.claim_one()
    await expire(project)
    other = await database.connect("ingest_worker")
    async with other.transaction():
        assert len(await rescue(project, other)) == 1
        assert await rescue(project) == {}
