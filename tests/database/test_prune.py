"""Pruning: what ended long ago goes, in small batches, and nothing else."""

from __future__ import annotations

from datetime import timedelta
from uuid import uuid4

import asyncpg
import pytest

from tests.conftest import Database
from tests.database.project import Project

WEEK, QUARTER = timedelta(days=7), timedelta(days=90)


async def prune(project: Project, limit: int = 1000) -> int:
    pruned: int = await project.worker.fetchval("select ingest.prune_jobs($1, $2, $3)", WEEK, QUARTER, limit)
    return pruned


async def ended(project: Project, verdict: str, days: float, count: int = 1) -> list[int]:
    """Make jobs that were settled with this verdict so many days ago."""
    await project.enqueue(uuid4(), count)
    claims = await project.claim(1000)
    jobs = [claim["job_id"] for claim in claims]
    await project.worker.execute(
        "select ingest.settle_jobs($1, $2, $3, p_raw => 'for operators')", jobs, [c["claim"] for c in claims], verdict
    )
    await project.owner.execute(
        "update public.jobs set finalized_at = now() - $2::interval where id = any ($1)", jobs, timedelta(days=days)
    )
    return jobs


async def left(project: Project) -> set[int]:
    return {row["id"] for row in await project.owner.fetch("select id from public.jobs")}


async def test_each_kind_of_end_has_its_age_and_the_living_are_left_alone(project: Project) -> None:
    for verdict, days in (("complete", 7.1), ("cancel", 7.1), ("discard", 90.1)):
        await ended(project, verdict, days)
    kept = {
        job
        for verdict, days in (("complete", 6.9), ("cancel", 6.9), ("discard", 89.9))
        for job in await ended(project, verdict, days)
    }
    running, waiting = await project.enqueue(uuid4()), []
    assert len(await project.claim()) == 1
    waiting = await project.enqueue(uuid4())
    await project.owner.execute(
        "update public.jobs set created_at = now() - interval '1 year' where id = any ($1)", running + waiting
    )
    events = await project.owner.fetchval("select count(*) from public.job_events")

    assert await prune(project) == 3

    assert await left(project) == kept | {*running, *waiting}
    details = await project.owner.fetch("select job_id from ingest.job_details")
    assert {row["job_id"] for row in details} == kept  # every end wrote one
    assert await project.owner.fetchval("select count(*) from public.job_events") == events
    assert await prune(project) == 0


async def test_a_batch_is_no_larger_than_asked_and_steps_around_what_others_hold(
    project: Project, database: Database
) -> None:
    jobs = await ended(project, "complete", 8, 25)
    other = await database.connect("postgres")
    async with other.transaction():
        await other.execute("select 1 from public.jobs where id = $1 for update", jobs[0])
        await project.worker.execute("set lock_timeout = '100ms'")
        assert [await prune(project, 10) for _ in range(4)] == [10, 10, 4, 0]
    assert await left(project) == {jobs[0]}


@pytest.mark.parametrize(
    ("age", "discarded_age", "limit"), [("1 minute", "90 days", 10), ("7 days", "0", 10), ("7 days", "90 days", 0)]
)
async def test_nobody_prunes_what_has_just_ended(project: Project, age: str, discarded_age: str, limit: int) -> None:
    with pytest.raises(asyncpg.InvalidParameterValueError, match="prune_jobs: ages"):
        await project.worker.execute(
            "select ingest.prune_jobs($1::text::interval, $2::text::interval, $3)", age, discarded_age, limit
        )


async def test_a_batch_among_fifty_thousand_that_are_kept_reads_only_what_it_deletes(project: Project) -> None:
    await project.owner.execute("alter table public.jobs disable trigger refuse_beginning")
    await project.owner.execute(
        "insert into public.jobs (document_id, tenant_id, generation, state, error_code, finalized_at)"
        " select gen_random_uuid(), gen_random_uuid(), 1, 'discarded', 'x', now() - interval '30 days'"
        "   from generate_series(1, 50000)"
    )
    await project.owner.execute("analyze public.jobs")
    await ended(project, "complete", 8, 5)
    plan = await project.owner.fetch(
        "explain (analyze, buffers, format text) select id from public.jobs where state = 'completed'"
        " and finalized_at < now() - interval '7 days' order by finalized_at limit 1000 for update skip locked"
    )
    text = "\n".join(row[0] for row in plan)
    assert "jobs_final_idx" in text
    assert "Seq Scan" not in text
    assert await prune(project) == 5


async def months(project: Project) -> list[str]:
    rows = await project.owner.fetch(
        "select c.relname from pg_inherits i join pg_class c on c.oid = i.inhrelid"
        " where i.inhparent = 'public.job_events'::regclass order by 1"
    )
    return [row["relname"] for row in rows]


async def old_month(project: Project, name: str, begin: str, end: str) -> None:
    await project.owner.execute(
        f"create table ingest.{name} partition of public.job_events for values from ('{begin}') to ('{end}')"
    )
    await project.owner.execute(
        f"insert into public.job_events (at, job_id, document_id, generation, tenant_id, event, state, attempt, claim)"
        f" values ('{begin}', 1, gen_random_uuid(), 1, gen_random_uuid(), 'claim', 'running', 1, 1)"
    )


async def test_months_of_events_go_when_they_are_old_and_not_a_month_sooner(project: Project) -> None:
    now = await months(project)
    # Months are named by the first day that they hold; both ends of the cut, wherever today is.
    for ago in (15, 14, 13, 12):
        begin, end = await project.owner.fetchrow(  # type: ignore[misc]
            "select date_trunc('month', now(), 'UTC') - make_interval(months => $1),"
            "       date_trunc('month', now(), 'UTC') - make_interval(months => $1 - 1)", ago,
        )  # fmt: skip
        await old_month(project, f"job_events_{begin:%Y_%m}", f"{begin:%Y-%m-%d}+00", f"{end:%Y-%m-%d}+00")
    before = await months(project)

    assert await project.worker.fetchval("select ingest.prune_events()") == 2

    assert set(now) < set(await months(project)) < set(before)
    assert len(before) - len(await months(project)) == 2
    assert await project.owner.fetchval("select min(at) > now() - interval '14 months 1 day' from public.job_events")
    with pytest.raises(asyncpg.InvalidParameterValueError, match="a month at least"):
        await project.worker.execute("select ingest.prune_events('1 day')")


async def test_pruning_events_gives_way_to_whoever_reads_them(project: Project, database: Database) -> None:
    await old_month(project, "job_events_2001_01", "2001-01-01+00", "2001-02-01+00")
    other = await database.connect("postgres")
    async with other.transaction():
        await other.execute("select count(*) from public.job_events")
        assert await project.worker.fetchval("select ingest.prune_events()") == 0
    assert await project.worker.fetchval("select ingest.prune_events()") == 1
