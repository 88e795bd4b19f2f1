"""The queue's benchmark in small: a newcomer starts at the first claim, beside a backlog and beside busy tenants."""

from __future__ import annotations

from uuid import uuid4

import pytest

from local.secrets import WORKER_ROLE
from tests.benchmarks.queue import Access, Queue
from tests.conftest import Database
from tests.database.project import Project


@pytest.fixture
async def queue(database: Database) -> Queue:
    return await Queue.open(Access(database.connect, database.url(WORKER_ROLE)))


@pytest.mark.parametrize("others", [0, 50])
async def test_a_newcomers_job_is_in_the_first_claim_beside_a_backlog_and_busy_tenants(
    queue: Queue, others: int
) -> None:
    found = await queue.fairness(2000, others, 20)
    assert found["first"] == 20


async def test_a_newcomer_comes_before_a_thousand_tenants_that_nobody_has_served_yet(project: Project) -> None:
    await project.owner.execute(
        "select ingest.enqueue_job(gen_random_uuid(), md5((n % 1000)::text)::uuid, 1) from generate_series(1, 2000) n"
    )
    for _ in range(3):
        newcomer = uuid4()
        await project.enqueue(newcomer)
        (claimed,) = await project.claim(1)
        assert claimed["tenant_id"] == newcomer


async def test_newcomers_are_served_in_the_order_in_which_they_came(project: Project) -> None:
    crowd = sorted(uuid4() for _ in range(20))
    for tenant in reversed(crowd):
        await project.enqueue(tenant)
    assert [(await project.claim(1))[0]["tenant_id"] for _ in crowd] == crowd[::-1]


async def test_a_claim_that_finds_a_tenant_idle_does_not_read_another_ones_backlog(queue: Queue) -> None:
    await queue.prepare(20_000, 0)
    await queue.owner.execute(
        "insert into ingest.turns (tenant_id) select gen_random_uuid() from generate_series(1, 9)"
    )
    before = await _read(queue)
    assert len(await queue.claim(4)) == 4
    assert await queue.owner.fetchval("select count(*) from ingest.turns") == 1
    assert await _read(queue) - before < 500


async def _read(queue: Queue) -> int:
    await queue.worker.execute("select pg_stat_force_next_flush()")
    read: int = await queue.owner.fetchval(
        "select seq_tup_read + idx_tup_fetch from pg_stat_user_tables where relname = 'jobs'"
    )
    return read
