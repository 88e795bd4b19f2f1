"""Claiming: whose job is next, how many a tenant may run, and that nobody waits for anybody else's transaction."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Literal
from uuid import UUID, uuid4

import asyncpg
import pytest

from tests.conftest import Database
from tests.database.project import LEASE, WRONG_ISOLATION, Project


@pytest.fixture
async def hurried(database: Database) -> asyncpg.Connection:
    """A worker's connection on which any wait for a lock beyond 100 ms is an error."""
    connection = await database.connect("ingest_worker")
    await connection.execute("set lock_timeout = '100ms'; set statement_timeout = '5s'")
    return connection


async def complete(connection: asyncpg.Connection, claims: list[asyncpg.Record]) -> None:
    """Settle claims without publishing anything."""
    await connection.execute(
        "select ingest.settle_jobs($1, $2, 'complete')", [c["job_id"] for c in claims], [c["claim"] for c in claims]
    )


def tenants(claims: list[asyncpg.Record]) -> list[UUID]:
    return [claim["tenant_id"] for claim in claims]


async def test_tenants_take_turns_before_anybody_has_a_second_job(project: Project) -> None:
    heavy, light, lighter = uuid4(), uuid4(), uuid4()
    await project.enqueue(heavy, 20)
    await project.enqueue(light, 2)
    await project.enqueue(lighter, 1)

    assert Counter(tenants(await project.claim(3))) == {heavy: 1, light: 1, lighter: 1}
    assert Counter(tenants(await project.claim(3))) == {heavy: 2, light: 1}
    assert Counter(tenants(await project.claim(50))) == {heavy: 17}


async def test_inside_a_tenant_priority_comes_first_and_then_age(project: Project) -> None:
    tenant = uuid4()
    old, young = await project.enqueue(tenant), await project.enqueue(tenant)
    urgent = await project.enqueue(tenant, priority=1)
    backfill = await project.enqueue(tenant, priority=4)
    await project.owner.execute("update public.jobs set scheduled_at = now() - interval '1 day' where id = $1", old[0])

    order = [(await project.claim(1))[0]["job_id"] for _ in range(4)]
    assert order == [*urgent, *old, *young, *backfill]


async def test_a_job_that_is_not_due_yet_is_not_claimed(project: Project) -> None:
    (job,) = await project.enqueue(uuid4())
    await project.owner.execute("update public.jobs set scheduled_at = now() + interval '1 minute' where id = $1", job)
    assert await project.claim() == []


async def test_a_batch_holds_one_job_of_a_document_and_later_claims_none_while_it_runs(project: Project) -> None:
    tenant, document = uuid4(), uuid4()
    first, second = await project.enqueue(tenant, 2, document=document)

    (claimed,) = await project.claim()
    assert claimed["job_id"] == first
    assert await project.claim() == []

    await complete(project.worker, [claimed])
    (claimed,) = await project.claim()
    assert claimed["job_id"] == second


async def test_a_claim_charges_an_attempt_and_raises_the_claim_number(project: Project) -> None:
    (job,) = await project.enqueue(uuid4())
    claimed = await project.claim_one()
    row = await project.job(job)
    assert (claimed["attempt"], claimed["claim"]) == (row["attempt"], row["claim"]) == (1, 1)
    assert (row["state"], row["stage"]) == ("running", "fetch")
    assert await project.events(job) == ["enqueue", "claim"]


async def test_the_cap_a_tenant_is_exact_under_eight_racing_claimers(project: Project, database: Database) -> None:
    crowd = [uuid4() for _ in range(3)]
    for tenant in crowd:
        await project.enqueue(tenant, 40)
    claimers = [await database.connect("ingest_worker") for _ in range(8)]

    batches = await asyncio.gather(*(project.claim(7, cap=5, connection=claimer) for claimer in claimers))
    taken = [claim for batch in batches for claim in batch]
    assert Counter(tenants(taken)) == dict.fromkeys(crowd, 5)
    assert len({claim["job_id"] for claim in taken}) == 15


async def test_a_claim_counts_what_the_claim_before_it_took(project: Project, database: Database) -> None:
    await project.enqueue(uuid4(), 10)
    other = await database.connect("ingest_worker")
    async with other.transaction():
        assert len(await project.claim(3, cap=5, connection=other)) == 3
        claiming = asyncio.create_task(project.claim(10, cap=5))
        assert await project.waits(claiming, project.worker)
    assert len(await claiming) == 2


async def test_the_cap_holds_while_claims_and_settlements_race(project: Project, database: Database) -> None:
    crowd = [uuid4() for _ in range(3)]
    for tenant in crowd:
        await project.enqueue(tenant, 40)
    done: list[int] = []
    most = 0

    async def work() -> None:
        connection = await database.connect("ingest_worker")
        while claims := await project.claim(2, cap=3, connection=connection):
            await complete(connection, claims)
            done.extend(claim["job_id"] for claim in claims)

    async def watch() -> None:
        nonlocal most
        while True:
            most = max(most, await project.owner.fetchval(
                "select coalesce(max(n), 0) from (select count(*) as n from ingest.leases group by tenant_id) c"
            ))  # fmt: skip

    watcher = asyncio.create_task(watch())
    for _ in range(40):  # a claimer gives up when all three tenants are at their cap
        await asyncio.gather(*(work() for _ in range(8)))
        if len(done) == 120:
            break
    watcher.cancel()
    assert len(done) == len(set(done)) == 120
    assert 1 <= most <= 3


async def test_a_paused_queue_gives_nothing_and_loses_nothing(project: Project) -> None:
    await project.enqueue(uuid4(), 2)
    await project.owner.execute("update ingest.queues set paused_at = now() where name = 'ingest'")
    assert await project.claim() == []
    await project.owner.execute("update ingest.queues set paused_at = null where name = 'ingest'")
    assert len(await project.claim()) == 2


@pytest.mark.parametrize("isolation", ["repeatable_read", "serializable"])
async def test_a_snapshot_older_than_the_lock_is_refused(
    project: Project, isolation: Literal["repeatable_read", "serializable"]
) -> None:
    await project.enqueue(uuid4())
    with pytest.raises(asyncpg.PostgresError) as refused:
        async with project.worker.transaction(isolation=isolation):
            await project.claim()
    assert refused.value.sqlstate == WRONG_ISOLATION


@pytest.mark.parametrize(
    ("limit", "cap", "lease"), [(0, 1, LEASE), (1001, 1, LEASE), (None, 1, LEASE), (1, 0, LEASE), (1, 1, LEASE * 0)]
)
async def test_a_claim_out_of_range_is_refused(project: Project, limit: int, cap: int, lease: object) -> None:
    await project.enqueue(uuid4())
    with pytest.raises(asyncpg.InvalidParameterValueError):
        await project.worker.fetch("select * from ingest.claim_jobs($1, $2, $3, $4)", uuid4(), limit, lease, cap)


@pytest.mark.parametrize("limit", [1, 10])
async def test_an_open_transaction_on_one_tenants_jobs_delays_no_other_tenant(
    project: Project, hurried: asyncpg.Connection, limit: int
) -> None:
    held, free = UUID(int=1), UUID(int=2)  # the held tenant's turn comes first
    await project.enqueue(held, 20)
    await project.enqueue(free, 20)
    async with project.owner.transaction():
        await project.owner.execute("update public.jobs set priority = 1 where tenant_id = $1", held)
        for _ in range(2):
            claims = await project.claim(limit, connection=hurried)
            assert tenants(claims) == [free] * limit
    assert held in tenants(await project.claim(limit, connection=hurried))


async def test_an_open_transaction_on_a_turn_delays_no_claim(project: Project, hurried: asyncpg.Connection) -> None:
    held, free = UUID(int=1), UUID(int=2)
    await project.enqueue(held)
    await project.enqueue(free)
    async with project.owner.transaction():
        await project.owner.execute("select from ingest.turns where tenant_id = $1 for update", held)
        assert set(tenants(await project.claim(10, connection=hurried))) == {held, free}


async def test_an_upload_that_is_still_open_delays_no_claim(project: Project, hurried: asyncpg.Connection) -> None:
    user, other = await project.user(), uuid4()
    await project.enqueue(other)
    transaction = project.admin.transaction()
    await transaction.start()
    await project.admin.execute("set local role service_role")
    await project.admin.execute(
        "insert into storage.objects (bucket_id, name, version) values ('documents', $1, 'x')", f"{user}/a.txt"
    )
    assert tenants(await project.claim(10, connection=hurried)) == [other]
    await transaction.commit()
    assert tenants(await project.claim(10, connection=hurried)) == [user]


async def test_a_job_reset_by_hand_is_taken_over_and_its_old_claim_is_stale(project: Project) -> None:
    (job,) = await project.enqueue(uuid4())
    old = await project.claim_one()
    await project.owner.execute("update public.jobs set state = 'available', stage = null where id = $1", job)
    new = await project.claim_one()
    assert new["claim"] == old["claim"] + 1
    assert await project.owner.fetchval("select claim from ingest.leases where job_id = $1", job) == new["claim"]
    assert await project.worker.fetch("select * from ingest.settle_jobs($1, $2, 'complete')", [job], [1]) == []
    assert (await project.job(job))["state"] == "running"


async def test_a_claim_reads_few_of_twenty_thousand_waiting_jobs(project: Project) -> None:
    heavy = uuid4()
    await project.owner.execute(
        "insert into public.jobs (document_id, tenant_id, generation)"
        " select gen_random_uuid(), case when n % 20 = 0 then md5((n % 1000)::text)::uuid else $1 end, 1"
        "   from generate_series(1, 20000) n",
        heavy,
    )
    await project.owner.execute("select ingest.take_turn(tenant_id) from (select distinct tenant_id from jobs) t")
    await project.owner.execute("analyze public.jobs")

    async def read() -> asyncpg.Record:
        await project.worker.execute("select pg_stat_force_next_flush()")
        await project.worker.fetchval("select 1")
        row = await project.owner.fetchrow(
            "select t.seq_scan, i.idx_scan, i.idx_tup_read from pg_stat_user_tables t"
            "  join pg_stat_user_indexes i on i.relid = t.relid and i.indexrelname = 'jobs_available_idx'"
            " where t.relname = 'jobs'"
        )
        assert row is not None
        return row

    before = await read()
    assert len(await project.claim(10)) == 10
    after = await read()
    assert after["seq_scan"] == before["seq_scan"]
    # 51 tenants have work. A heap of 20,000 rows read once would be 20,000.
    assert 51 <= after["idx_scan"] - before["idx_scan"] <= 200
    assert after["idx_tup_read"] - before["idx_tup_read"] <= 500
