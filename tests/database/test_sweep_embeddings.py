"""Vectors outlive their chunks by a day, and never go from under a document that is being published."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from uuid import UUID

import asyncpg
import pytest

from tests.callers import as_user
from tests.conftest import Database
from tests.database.project import NO_VECTOR, Project

DAY = timedelta(days=1)
TEXTS = ["one", "two"]


async def sweep(project: Project, connection: asyncpg.Connection | None = None) -> int:
    removed: int = await (connection or project.worker).fetchval("select ingest.sweep_embeddings($1)", DAY)
    return removed


async def vectors(project: Project) -> int:
    count: int = await project.owner.fetchval("select count(*) from ingest.embeddings")
    return count


@pytest.fixture
async def user(project: Project) -> UUID:
    return await project.user()


async def grow_old(project: Project) -> None:
    await project.owner.execute("update ingest.embeddings set created_at = now() - interval '2 days'")


async def test_a_vector_that_a_chunk_uses_is_kept_however_old(project: Project, user: UUID) -> None:
    await project.ready(user, "a.txt", *TEXTS)
    await grow_old(project)
    assert (await sweep(project), await vectors(project)) == (0, 2)


async def test_a_vector_that_nothing_uses_goes_after_a_day(project: Project, user: UUID) -> None:
    stored = await project.ready(user, "a.txt", *TEXTS)
    await project.ready(user, "b.txt", TEXTS[0])
    await project.remove(user, stored)
    assert (await sweep(project), await vectors(project)) == (0, 2)
    await grow_old(project)
    assert (await sweep(project), await vectors(project)) == (1, 1)


async def test_another_tenants_chunk_keeps_no_vector_of_mine(project: Project, user: UUID) -> None:
    await project.ready(await project.user(), "a.txt", *TEXTS)
    await project.embed(user, TEXTS)
    await grow_old(project)
    assert await sweep(project) == 2
    assert await project.owner.fetchval("select count(*) from ingest.embeddings where tenant_id = $1", user) == 0


async def test_the_sweep_takes_no_vector_between_a_publishs_check_and_its_commit(
    project: Project, database: Database, user: UUID
) -> None:
    await project.upload(user)
    claim = await project.claim_one()
    parse = await project.prepare(claim, TEXTS)
    await grow_old(project)
    sweeping = await database.connect("ingest_worker")
    await sweeping.execute("set lock_timeout = '100ms'")
    async with project.worker.transaction():
        await project.place_chunks(TEXTS)
        await project.publish_placed(claim, parse)
        assert await sweep(project, sweeping) == 0
    assert (await sweep(project), await vectors(project)) == (0, 2)


async def test_a_publish_that_waits_for_the_sweep_goes_back_to_embed(
    project: Project, database: Database, user: UUID
) -> None:
    await project.upload(user)
    claim = await project.claim_one()
    parse = await project.prepare(claim, TEXTS)
    await grow_old(project)
    async with project.owner.transaction():
        assert await sweep(project, project.owner) == 2
        publishing = asyncio.create_task(project.publish(claim, parse, TEXTS))
        assert await project.waits(publishing, project.worker)
    with pytest.raises(asyncpg.PostgresError) as refused:
        await publishing
    assert refused.value.sqlstate == NO_VECTOR
    await project.embed(user, TEXTS)
    assert await project.publish(claim, parse, TEXTS) == "published"


async def test_a_publish_that_commits_while_the_sweep_looks_keeps_its_vectors(
    project: Project, database: Database, user: UUID
) -> None:
    # The sweep stands still inside its first statement: a policy that waits, for a role that policies bind.
    await project.owner.execute(
        """
        grant select, update, delete on ingest.embeddings to authenticated;
        grant execute on function ingest.sweep_embeddings(interval, integer) to authenticated;
        create function public.pause() returns boolean language plpgsql as
          $$ begin perform pg_advisory_xact_lock_shared(1); return true; end $$;
        create policy pause on ingest.embeddings as restrictive for select to authenticated using (public.pause());
        create policy updates on ingest.embeddings for update to authenticated using (true);
        create policy deletes on ingest.embeddings for delete to authenticated using (true);
        """
    )
    await project.upload(user)
    claim = await project.claim_one()
    parse = await project.prepare(claim, TEXTS)
    await grow_old(project)

    async def sweep_as_user() -> int:
        async with as_user(project.admin, user):
            return await sweep(project, project.admin)

    await project.owner.execute("select pg_advisory_lock(1)")
    sweeping = asyncio.create_task(sweep_as_user())
    assert await project.waits(sweeping, project.admin)
    assert await project.publish(claim, parse, TEXTS) == "published"
    await project.owner.execute("select pg_advisory_unlock(1)")
    assert (await sweeping, await vectors(project)) == (0, 2)
