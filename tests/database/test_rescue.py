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
                'select ingest.enter_stage($1, $2, $3, 0.5, \'[{"stage": "parse", "seconds": 1}]\')',
                claim["job_id"],
                claim["claim"],
                stage,
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
                'select ingest.enter_stage($1, $2, $3, 0.5, \'[{"stage": "parse", "seconds": 1}]\')',
                claim["job_id"],
                claim["claim"],
                stage,
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


async def rescued(project: Project) -> int:
    """Make a job that was rescued once, and return its id."""
    (job,) = await project.enqueue(uuid4())
    await project.claim_one()
    await expire(project)
    await rescue(project)
    return job


async def test_a_rescued_job_comes_alone_and_keeps_its_place_in_the_line(project: Project) -> None:
    first = await project.enqueue(uuid4())
    suspect = await rescued_among(project, first)
    tenant = (await project.job(suspect))["tenant_id"]
    after = await project.enqueue(uuid4(), 2)
    # The tenants that have just begun to wait come first, as ever; then the suspect, by itself.
    claims = [{claim["job_id"] for claim in await project.claim(10)} for _ in range(3)]
    assert claims[0] == {*first, after[0]}
    assert claims[1:] == [{suspect}, {after[1]}]
    assert await project.owner.fetchval("select count(*) from ingest.leases where tenant_id = $1", tenant) == 1


async def rescued_among(project: Project, waiting: list[int]) -> int:
    """Let a job be rescued while these wait untouched."""
    await project.owner.execute("update public.jobs set scheduled_at = now() + interval '1 hour'")
    job = await rescued(project)
    await project.owner.execute("update public.jobs set scheduled_at = created_at where id = any ($1)", waiting)
    await project.owner.execute("update ingest.turns set due_at = now() - interval '1 second'")
    return job


async def test_two_rescued_jobs_never_come_together(project: Project) -> None:
    tenant = uuid4()
    jobs = await project.enqueue(tenant, 3)
    assert len(await project.claim()) == 3
    await expire(project)
    await rescue(project)
    assert [[c["job_id"] for c in await project.claim()] for _ in range(4)] == [[job] for job in jobs] + [[]]


async def test_a_suspect_that_only_waits_to_run_alone_is_not_charged_for_its_workers_death(project: Project) -> None:
    job = await rescued(project)
    for _ in range(5):
        claim = await project.claim_one()
        await mark_begun(project, claim, False)
        await expire(project)
        assert await rescue(project) == {job: "available"}
    row = await project.job(job)
    assert (row["rescues"], row["attempt"], row["claim"]) == (1, 1, 6)

    for expected in ("available", "discarded"):
        claim = await project.claim_one()
        await mark_begun(project, claim, False)
        await mark_begun(project, claim, True)
        await expire(project)
        assert await rescue(project) == {job: expected}


async def mark_begun(project: Project, claim: asyncpg.Record, begun: bool) -> None:
    await project.worker.execute("select ingest.mark_begun($1, $2, $3)", claim["job_id"], claim["claim"], begun)
