"""Whatever is broken on our side, Storage's writes pass, deleted files are hidden at once, and a sweep mends."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from uuid import UUID

import asyncpg
import pytest

from tests.callers import as_user
from tests.conftest import Database
from tests.database.project import Project, vector_of

Break = Callable[[Project], Awaitable[Callable[[], Awaitable[object]]]]


async def broken_function(project: Project) -> Callable[[], Awaitable[object]]:
    """Let the function behind the trigger raise; return what repairs it."""
    whole = await project.owner.fetchval("select pg_get_functiondef('ingest.apply_object_change'::regproc)")
    await project.owner.execute(
        "create or replace function ingest.apply_object_change(p_old jsonb, p_new jsonb, p_priority smallint default 2)"
        " returns void language plpgsql set search_path = '' as $$ begin raise exception 'broken on purpose'; end $$"
    )
    return lambda: project.owner.execute(whole)


async def missing_table(project: Project) -> Callable[[], Awaitable[object]]:
    """Take the job table away."""
    await project.owner.execute("alter table public.jobs rename to jobs_away")
    return lambda: project.owner.execute("alter table public.jobs_away rename to jobs")


async def held_lock(project: Project) -> Callable[[], Awaitable[object]]:
    """Hold every document longer than the trigger waits; it waits 2 s in earnest, less here."""
    await project.owner.execute("alter function ingest.object_changed() set lock_timeout = '20ms'")
    holder = await project.database.connect()
    transaction = holder.transaction()
    await transaction.start()
    await holder.execute("select from public.documents for update")
    return transaction.rollback


@dataclass
class Broken:
    project: Project
    repair: Callable[[], Awaitable[object]]
    user: UUID
    other: UUID
    stored: UUID
    kept: UUID

    async def failures(self) -> list[str]:
        rows = await self.project.owner.fetch("select operation from ingest.trigger_failures order by id")
        return [row["operation"] for row in rows]

    async def seen(self) -> tuple[int, int, int, int]:
        """Count what the user sees: documents, chunks, pages and search hits."""
        admin = self.project.admin
        async with as_user(admin, self.user):
            counts = [
                await admin.fetchval(f"select count(*) from public.{table}")
                for table in ("documents", "chunks", "pages")
            ]
            hits = await admin.fetch("select * from public.search('first second', $1)", vector_of("first"))
        return counts[0], counts[1], counts[2], len(hits)

    async def sweep(self) -> int:
        swept: int = await self.project.worker.fetchval("select ingest.sweep_tombstones()")
        return swept


@pytest.fixture(params=[broken_function, missing_table, held_lock])
async def broken(project: Project, request: pytest.FixtureRequest) -> Broken:
    """A project with two published documents, in which something is broken."""
    user = await project.user()
    other = await project.organisation(editor=user)
    stored = await project.ready(user, "a.txt", "first", "first again")
    kept = await project.ready(user, "b.txt", "second")
    breaking: Break = request.param
    return Broken(project, await breaking(project), user, other, stored, kept)


async def test_a_deletion_passes_and_hides_the_document_at_once(broken: Broken) -> None:
    assert await broken.seen() == (2, 3, 3, 3)
    assert await broken.project.remove(broken.user, broken.stored) == 1
    assert await broken.failures() == ["DELETE"]
    assert await broken.project.document(broken.stored) is not None
    assert await broken.seen() == (1, 1, 1, 1)

    await broken.repair()
    assert await broken.sweep() == 1
    assert await broken.project.document(broken.stored) is None
    assert await broken.project.owner.fetchval("select count(*) from public.chunks") == 1
    assert await broken.project.owner.fetchval("select count(*) from ingest.tombstones") == 0
    assert await broken.seen() == (1, 1, 1, 1)


async def test_a_move_to_another_tenant_passes_and_is_carried_out_by_the_sweep(broken: Broken) -> None:
    await broken.project.move(broken.stored, f"{broken.other}/a.txt")
    assert await broken.failures() == ["UPDATE"]
    assert await broken.seen() == (1, 1, 1, 1)

    await broken.repair()
    assert await broken.sweep() == 1
    document = await broken.project.document(broken.stored)
    assert document is not None
    assert (document["tenant_id"], document["state"], document["published_generation"]) == (
        broken.other, "pending", None,
    )  # fmt: skip
    assert (await broken.project.claim_one())["tenant_id"] == broken.other
    assert await broken.seen() == (2, 1, 1, 1)


async def test_a_move_out_of_the_bucket_passes_and_hides_the_document(broken: Broken) -> None:
    await broken.project.owner.execute("insert into storage.buckets (id, name) values ('other', 'other')")
    await broken.project.move(broken.stored, f"{broken.user}/a.txt", "other")
    assert await broken.seen() == (1, 1, 1, 1)
    await broken.repair()
    assert await broken.sweep() == 1
    assert await broken.project.document(broken.stored) is None


async def test_an_overwrite_and_a_rename_pass_and_hide_nothing(broken: Broken) -> None:
    await broken.project.overwrite(broken.stored)
    await broken.project.move(broken.kept, f"{broken.user}/c.txt")
    assert set(await broken.failures()) == {"UPDATE"}  # a rename touches no job, so it may have succeeded
    assert await broken.project.owner.fetchval("select count(*) from ingest.tombstones") == 0
    assert await broken.seen() == (2, 3, 3, 3)


@pytest.mark.parametrize("breaking", [broken_function, missing_table])
async def test_an_upload_passes_and_the_failure_is_recorded(project: Project, breaking: Break) -> None:
    user = await project.user()
    await breaking(project)
    stored = await project.upload(user)
    rows = await project.owner.fetch("select object_id, operation, sqlstate, message from ingest.trigger_failures")
    assert [(row["object_id"], row["operation"]) for row in rows] == [(stored, "INSERT")]
    assert rows[0]["sqlstate"] in ("P0001", "42P01")
    assert len(rows[0]["message"]) > 5


async def test_writes_pass_although_not_even_the_failure_can_be_recorded(project: Project) -> None:
    user = await project.user()
    stored = await project.ready(user, "a.txt", "first")
    await broken_function(project)
    await project.owner.execute("alter table ingest.trigger_failures rename to failures_away")
    heard: list[str] = []
    project.admin.add_log_listener(lambda _, message: heard.append(str(message)))
    assert await project.upload(user, "b.txt")
    assert await project.remove(user, stored) == 1
    await project.admin.fetchval("select 1")
    assert len(heard) == 2
    assert all("was not recorded" in message for message in heard)


async def test_a_lock_that_is_gone_at_the_second_try_leaves_no_tombstone(project: Project, database: Database) -> None:
    user = await project.user()
    stored = await project.ready(user, "a.txt", "first")
    await project.owner.execute("alter function ingest.object_changed() set lock_timeout = '300ms'")
    holder = await database.connect()
    transaction = holder.transaction()
    await transaction.start()
    await holder.execute("select from public.documents for update")
    removing = asyncio.create_task(project.remove(user, stored))
    tries: set[object] = set()
    while len(tries) < 2:
        started = await project.owner.fetchval(
            "select waitstart from pg_locks where pid = $1 and not granted", project.admin.get_server_pid()
        )
        tries |= {started} - {None}
        assert not removing.done()
    await transaction.rollback()
    assert await removing == 1
    assert await project.document(stored) is None
    assert await project.owner.fetchval("select count(*) from ingest.tombstones") == 0


async def test_one_tombstone_that_cannot_be_carried_out_keeps_no_other(project: Project, database: Database) -> None:
    user = await project.user()
    stuck, free = await project.ready(user, "a.txt", "first"), await project.ready(user, "b.txt", "second")
    await project.admin.execute("alter table storage.objects disable trigger sluice_object_changed")
    await project.remove(user, stuck, free)
    await project.owner.execute(
        "insert into ingest.tombstones (object_id, error) values ($1, 'x'), ($2, 'x')", stuck, free
    )
    await project.worker.execute("set lock_timeout = '50ms'")
    warnings: list[asyncpg.PostgresLogMessage] = []
    project.worker.add_log_listener(lambda _, message: warnings.append(message))
    holder = await database.connect()
    async with holder.transaction():
        await holder.execute("select from public.documents where id = $1 for update", stuck)
        assert await project.worker.fetchval("select ingest.sweep_tombstones()") == 1
    assert await project.document(free) is None
    assert len(warnings) == 1
    assert await project.worker.fetchval("select ingest.sweep_tombstones()") == 1
    assert await project.document(stuck) is None


async def test_a_deletion_and_a_publish_at_the_same_moment_leave_nothing(project: Project) -> None:
    user = await project.user()
    stored = await project.upload(user)
    claim = await project.claim_one()
    parse = await project.prepare(claim, ["first"])
    async with project.worker.transaction():
        await project.place_chunks(["first"])
        await project.publish_placed(claim, parse)
        removing = asyncio.create_task(project.remove(user, stored))
        assert await project.waits(removing, project.admin)
    assert await removing == 1
    for table in ("public.documents", "public.chunks", "ingest.leases", "ingest.tombstones"):
        assert await project.owner.fetchval(f"select count(*) from {table}") == 0
