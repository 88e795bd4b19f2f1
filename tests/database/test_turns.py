"""Turns: whoever waits has one, and whoever has waited longest comes first."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from datetime import timedelta
from uuid import UUID, uuid4

import asyncpg
import pytest

from tests.conftest import Database
from tests.database.project import Project

HOUR = timedelta(hours=1)
Waiting = Callable[[Project], Awaitable[UUID]]


async def without_a_turn(project: Project) -> list[UUID]:
    """Return the tenants whose waiting jobs no claim would find in time."""
    rows = await project.owner.fetch(
        "select j.tenant_id from public.jobs j left join ingest.turns t using (tenant_id) where j.state = 'available'"
        " group by j.tenant_id, t.tenant_id, t.due_at having t.tenant_id is null or t.due_at > min(j.scheduled_at)"
    )
    return [row["tenant_id"] for row in rows]


async def tidy(connection: asyncpg.Connection, *tenants: UUID) -> None:
    await connection.execute("select ingest.tidy_turns($1, clock_timestamp())", list(tenants))


async def enqueue(connection: asyncpg.Connection, tenant: UUID) -> None:
    await connection.execute("select ingest.enqueue_job(gen_random_uuid(), $1, 1)", tenant)


async def turns(project: Project) -> set[UUID]:
    return {row["tenant_id"] for row in await project.owner.fetch("select tenant_id from ingest.turns")}


async def idle(project: Project) -> UUID:
    """Return a tenant whose turn is left over: it has nothing waiting any more."""
    tenant = uuid4()
    await project.owner.execute("insert into ingest.turns (tenant_id) values ($1)", tenant)
    return tenant


async def sleeping(project: Project) -> UUID:
    """Return a tenant whose only job is due in an hour, while its turn says now."""
    tenant = uuid4()
    await project.enqueue(tenant)
    await project.owner.execute("update public.jobs set scheduled_at = now() + $1::interval", HOUR)
    return tenant


async def test_a_turn_without_work_is_dropped_and_one_without_work_due_is_postponed(project: Project) -> None:
    sleeper = await sleeping(project)
    await tidy(project.owner, await idle(project), sleeper)
    assert await turns(project) == {sleeper}
    assert await project.owner.fetchval("select due_at = (select scheduled_at from public.jobs) from ingest.turns")


@pytest.mark.parametrize("waiting", [idle, sleeping])
@pytest.mark.parametrize("committed", [True, False])
async def test_an_enqueue_before_the_clean_up_keeps_its_turn(
    project: Project, database: Database, waiting: Waiting, committed: bool
) -> None:
    tenant = await waiting(project)
    other = await database.connect("postgres")
    transaction = other.transaction()
    await transaction.start()
    await enqueue(other, tenant)
    await tidy(project.owner, tenant)
    await (transaction.commit() if committed else transaction.rollback())
    assert await without_a_turn(project) == []
    assert len(await project.claim()) == committed


@pytest.mark.parametrize("waiting", [idle, sleeping])
@pytest.mark.parametrize("cleaned", [True, False])
@pytest.mark.parametrize("committed", [True, False])
async def test_an_enqueue_during_the_clean_up_waits_for_it_and_takes_a_turn(
    project: Project, database: Database, waiting: Waiting, cleaned: bool, committed: bool
) -> None:
    tenant = await waiting(project)
    other = await database.connect("postgres")
    clean_up, upload = project.owner.transaction(), other.transaction()
    await clean_up.start()
    await tidy(project.owner, tenant)
    await upload.start()
    enqueued = asyncio.create_task(enqueue(other, tenant))
    assert await project.waits(enqueued, other)
    await (clean_up.commit() if cleaned else clean_up.rollback())
    await enqueued
    await (upload.commit() if committed else upload.rollback())
    assert await without_a_turn(project) == []
    assert len(await project.claim()) == committed


async def test_a_clean_up_between_a_job_and_its_turn_loses_nothing(project: Project, database: Database) -> None:
    tenant = await idle(project)
    other = await database.connect("postgres")
    async with other.transaction():
        await other.execute("insert into jobs (document_id, tenant_id, generation) values ($1, $2, 1)", uuid4(), tenant)
        await tidy(project.owner, tenant)
        assert await turns(project) == set()
        await other.execute("select ingest.take_turn($1)", tenant)
    assert await without_a_turn(project) == []


@pytest.mark.parametrize("seed", range(3))
async def test_whoever_waits_has_a_turn_after_any_interleaving(project: Project, database: Database, seed: int) -> None:
    crowd = [uuid4() for _ in range(4)]

    async def act(number: int) -> None:
        dice = random.Random(seed * 100 + number)
        owner, worker = await database.connect("postgres"), await database.connect("ingest_worker")
        for _ in range(40):
            match dice.randrange(4):
                case 0 | 1:
                    transaction = owner.transaction()
                    await transaction.start()
                    await enqueue(owner, dice.choice(crowd))
                    await asyncio.sleep(0)
                    await (transaction.commit() if dice.random() < 0.7 else transaction.rollback())
                case 2:
                    claims = await project.claim(dice.choice([1, 3]), cap=2, connection=worker)
                    verdict = dice.choice(["complete", "snooze", "retry", "release"])
                    await worker.fetch(
                        "select ingest.settle_jobs($1, $2, $3, $4)",
                        [c["job_id"] for c in claims], [c["claim"] for c in claims], verdict,
                        timedelta(seconds=dice.choice([0, 3600])),
                    )  # fmt: skip
                case _:
                    await tidy(owner, *crowd)

    await asyncio.gather(*(act(number) for number in range(4)))
    assert await without_a_turn(project) == []


async def test_a_tenant_that_begins_to_wait_is_served_by_the_next_claim(project: Project) -> None:
    await project.owner.execute(
        "insert into public.jobs (document_id, tenant_id, generation)"
        " select gen_random_uuid(), md5((n % 300)::text)::uuid, 1 from generate_series(1, 1200) n union all"
        " select gen_random_uuid(), $1, 1 from generate_series(1, 5000)",
        uuid4(),
    )
    await project.owner.execute("select ingest.take_turn(tenant_id) from (select distinct tenant_id from jobs) t")
    # All 301 have begun to wait at once: nobody is passed over while they are served for the first time.
    served: set[UUID] = set()
    for _ in range(8):
        served |= {claim["tenant_id"] for claim in await project.claim(50, cap=2)}
    assert len(served) == 301

    for _ in range(5):
        newcomer = uuid4()
        await project.enqueue(newcomer)
        (claimed,) = await project.claim(1)
        assert claimed["tenant_id"] == newcomer


async def test_tenants_whose_jobs_all_sleep_do_not_fill_the_sample(project: Project) -> None:
    await project.owner.execute(
        "insert into public.jobs (document_id, tenant_id, generation, scheduled_at)"
        " select gen_random_uuid(), md5(n::text)::uuid, 1, now() + interval '1 hour' from generate_series(1, 600) n"
    )
    # The worst case: every one of the turns says that it is due.
    await project.owner.execute("insert into ingest.turns (tenant_id) select tenant_id from public.jobs")
    awake = UUID(int=2**128 - 1)  # the last in line
    await project.enqueue(awake)

    # Each claim puts a whole sample of 256 to sleep, so the third reaches the end of the line.
    claims = [claim for _ in range(3) for claim in await project.claim(10)]
    assert [claim["tenant_id"] for claim in claims] == [awake]

    await project.enqueue(awake)
    assert len(await project.claim(1)) == 1
    assert await without_a_turn(project) == []


async def test_the_longest_unserved_tenant_comes_first(project: Project) -> None:
    crowd = [uuid4() for _ in range(5)]
    for tenant in crowd:
        await project.enqueue(tenant, 2)
    first: list[UUID] = []
    for _ in range(5):
        claims = await project.claim(1)
        first.append(claims[0]["tenant_id"])
        await project.worker.execute(
            "select ingest.settle_jobs($1, $2, 'complete')", [claims[0]["job_id"]], [claims[0]["claim"]]
        )
    assert sorted(first) == sorted(crowd)
    second = [(await project.claim(1))[0]["tenant_id"] for _ in range(5)]
    assert second == first
