"""A live change and a mending at the same moment give exactly one right effect, in either order."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from uuid import UUID, uuid4

import asyncpg
import pytest

from tests.callers import as_service
from tests.conftest import Database
from tests.database.project import Project
from tests.database.reconciling import Reconciling

MEND = "select mended from ingest.reconcile_objects('documents', '', 100, 2::smallint, true)"


@pytest.fixture
async def user(project: Project) -> UUID:
    return await project.user()


@pytest.fixture
async def storage(database: Database) -> asyncpg.Connection:
    """A connection of Storage's, on which a change may stay open."""
    return await database.connect("supabase_admin")


@pytest.fixture
async def missed(reconciling: Reconciling, user: UUID) -> UUID:
    """An object that the trigger never saw."""
    async with reconciling.unseen():
        (stored,) = await reconciling.files(user, 1)
    return stored


@asynccontextmanager
async def open_change(storage: asyncpg.Connection, sql: str, *arguments: object) -> AsyncIterator[None]:
    """Carry out one change of Storage's and commit it only at the end of the block."""
    async with as_service(storage):
        await storage.execute("set local storage.allow_delete_query = 'true'")
        await storage.execute(sql, *arguments)
        yield


OVERWRITE = "update storage.objects set version = $2 where id = $1"
DELETE = "delete from storage.objects where id = $1"


async def test_an_upload_that_has_not_committed_is_the_triggers_alone(
    reconciling: Reconciling, storage: asyncpg.Connection, user: UUID
) -> None:
    insert = "insert into storage.objects (id, bucket_id, name, version) values ($1, 'documents', $2, 'v')"
    stored = uuid4()
    async with open_change(storage, insert, stored, f"{user}/a.txt"):
        assert (await reconciling.run()).changes == 0
    assert await reconciling.live() == [(stored, 1, 2)]
    assert (await reconciling.run()).changes == 0


async def test_an_overwrite_under_way_is_the_triggers_alone(
    reconciling: Reconciling, storage: asyncpg.Connection, missed: UUID
) -> None:
    async with open_change(storage, OVERWRITE, missed, "new"):
        assert (await reconciling.run()).mended == 0
    assert await reconciling.live() == [(missed, 1, 2)]
    assert (await reconciling.run()).changes == 0
    assert (await reconciling.project.told(missed))["object_version"] == "new"


async def test_a_deletion_under_way_is_the_triggers_alone(
    reconciling: Reconciling, storage: asyncpg.Connection, missed: UUID
) -> None:
    async with open_change(storage, DELETE, missed):
        assert (await reconciling.run()).mended == 0
    assert (await reconciling.run()).changes == 0
    assert await reconciling.documents() == 0
    assert await reconciling.live() == []


async def test_an_overwrite_during_the_mending_makes_the_next_generation_with_the_newest_version(
    reconciling: Reconciling, missed: UUID
) -> None:
    project = reconciling.project
    async with project.worker.transaction():
        assert await project.worker.fetchval(MEND) == 1
        overwriting = asyncio.create_task(project.overwrite(missed))
        assert await project.waits(overwriting, project.admin)
    await overwriting
    assert await reconciling.live() == [(missed, 2, 2)]
    assert (await reconciling.run()).changes == 0
    assert await project.owner.fetchval("select count(*) from ingest.trigger_failures") == 0


async def test_a_deletion_during_the_mending_leaves_nothing(reconciling: Reconciling, user: UUID, missed: UUID) -> None:
    project = reconciling.project
    async with project.worker.transaction():
        assert await project.worker.fetchval(MEND) == 1
        removing = asyncio.create_task(project.remove(user, missed))
        assert await project.waits(removing, project.admin)
    assert await removing == 1
    assert await reconciling.documents() == 0
    assert await reconciling.live() == []


async def test_a_change_between_the_look_and_the_lock_is_judged_again(
    reconciling: Reconciling, missed: UUID, database: Database
) -> None:
    # The page is read in one statement and each object mended in another: a change that commits between them
    # is met by mend_object, which is what is called here after the change.
    project = reconciling.project
    await project.overwrite(missed)
    assert not await project.owner.fetchval("select ingest.mend_object($1, 2::smallint)", missed)
    assert await reconciling.live() == [(missed, 1, 2)]


async def test_two_mendings_at_once_make_one_generation(
    reconciling: Reconciling, missed: UUID, database: Database
) -> None:
    project = reconciling.project
    other = await database.connect("ingest_worker")
    async with project.worker.transaction():
        assert await project.worker.fetchval(MEND) == 1
        assert await asyncio.wait_for(other.fetchval(MEND), 10) == 0
    assert await other.fetchval(MEND) == 0
    assert await reconciling.live() == [(missed, 1, 2)]


async def ripe(reconciling: Reconciling, user: UUID, storage: asyncpg.Connection) -> UUID:
    """Return a document whose object was missing twice."""
    lost, *_ = await reconciling.files(user, 4)
    async with reconciling.unseen():
        await reconciling.erase(lost)
        reconciling.storage.lies = False
        await reconciling.run()
        await reconciling.later()
    return lost


REMOVE = "select ingest.remove_missing('documents', array[$1::uuid])"


async def test_an_object_that_comes_back_while_its_document_is_removed_keeps_it(
    reconciling: Reconciling, storage: asyncpg.Connection, user: UUID
) -> None:
    project = reconciling.project
    lost = await ripe(reconciling, user, storage)
    insert = "insert into storage.objects (id, bucket_id, name, version) values ($1, 'documents', $2, 'back')"
    async with open_change(storage, insert, lost, f"{user}/0000.txt"):
        removing = asyncio.create_task(project.worker.fetchval(REMOVE, lost))
        assert await project.waits(removing, project.worker)
    assert await removing == 0
    assert (await project.told(lost))["object_version"] == "back"
    assert [job for job in await reconciling.live() if job[0] == lost] == [(lost, 2, 2)]
    assert (await reconciling.later()).changes == 0


async def test_an_object_that_comes_back_after_its_document_was_removed_is_a_new_document(
    reconciling: Reconciling, storage: asyncpg.Connection, user: UUID
) -> None:
    project = reconciling.project
    lost = await ripe(reconciling, user, storage)
    insert = "insert into storage.objects (id, bucket_id, name, version) values ($1, 'documents', $2, 'back')"
    async with project.worker.transaction():
        assert await project.worker.fetchval(REMOVE, lost) == 1

        async def come_back() -> None:
            async with as_service(project.admin):
                await project.admin.execute(insert, lost, f"{user}/0000.txt")

        coming = asyncio.create_task(come_back())
        assert await project.waits(coming, project.admin)
    await coming
    assert [job for job in await reconciling.live() if job[0] == lost] == [(lost, 1, 2)]
    assert await project.owner.fetchval("select count(*) from ingest.trigger_failures") == 0


async def test_an_object_on_its_way_back_from_an_unwatched_bucket_keeps_its_document(
    reconciling: Reconciling, storage: asyncpg.Connection, user: UUID
) -> None:
    project = reconciling.project
    await project.owner.execute("insert into storage.buckets (id, name) values ('other', 'other')")
    moved, *_ = await reconciling.files(user, 4)
    async with reconciling.unseen():
        await project.move(moved, f"{user}/0000.txt", "other")
    reconciling.storage.lies = False
    await reconciling.run()
    await reconciling.later()
    back = "update storage.objects set bucket_id = 'documents', version = $2 where id = $1"
    async with open_change(storage, back, moved, "back"):
        removing = asyncio.create_task(project.worker.fetchval(REMOVE, moved))
        assert await project.waits(removing, project.worker)
    assert await removing == 0
    assert (await project.told(moved))["object_version"] == "back"


async def test_a_removal_and_a_publish_at_the_same_moment_leave_nothing(
    reconciling: Reconciling, storage: asyncpg.Connection, user: UUID, database: Database
) -> None:
    project = reconciling.project
    lost = await ripe(reconciling, user, storage)
    claim = next(row for row in await project.claim() if row["document_id"] == lost)
    await project.owner.execute("update public.documents set state = 'processing' where id = $1", lost)
    parse = await project.begin_parse(claim, "text")
    await project.finish_parse(claim, parse["parse_id"], ["text"])
    await project.embed(user, ["text"])
    remover = await database.connect("ingest_worker")
    async with project.worker.transaction():
        await project.place_chunks(["text"])
        await project.publish_placed(claim, parse["parse_id"])
        removing = asyncio.create_task(remover.fetchval(REMOVE, lost))
        assert await project.waits(removing, remover)
    assert await removing == 1
    assert await project.document(lost) is None
    assert await project.owner.fetchval("select count(*) from public.chunks") == 0
