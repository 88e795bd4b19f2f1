"""A document is removed only when every sign says that its object is gone: each rule is all that stands in the way.

In every test everything else would let reconcile remove all documents there are.
"""

from __future__ import annotations

from uuid import UUID

import asyncpg
import pytest

from tests.database.project import Project
from tests.database.reconciling import Reconciling

REFUSED, BLIND = "IG007", "IG006"


@pytest.fixture
async def user(project: Project) -> UUID:
    await project.owner.execute("insert into storage.buckets (id, name) values ('other', 'other'), ('more', 'more')")
    await project.owner.execute("insert into ingest.buckets values ('more')")
    return await project.user()


async def lose_all_of_a_small_bucket(reconciling: Reconciling, user: UUID) -> list[UUID]:
    """Let all three documents lose their objects; the listing still shows one object that is no document."""
    stored = [
        await reconciling.project.ready(user, "a.txt", "first"),
        *await reconciling.files(user, 2),
    ]
    await reconciling.project.upload("nobody", "x.txt")
    async with reconciling.unseen():
        await reconciling.erase(*stored)
    return stored


async def test_documents_whose_objects_are_gone_go_at_the_second_sighting_with_everything_that_is_theirs(
    reconciling: Reconciling, user: UUID
) -> None:
    stored = await lose_all_of_a_small_bucket(reconciling, user)
    running = (await reconciling.project.claim())[0]

    first, second, third = await reconciling.run(), await reconciling.later(), await reconciling.later()

    assert (first.gone, first.removed) == (3, 0)
    assert (second.gone, second.confirmed, second.removed) == (3, 3, 3)
    assert (third.gone, third.removed) == (0, 0)
    assert set(reconciling.storage.asked) == set(stored)
    assert (await reconciling.project.job(running["job_id"]))["state"] == "cancelled"
    for table in ("public.documents", "public.chunks", "ingest.leases", "ingest.missing_objects", "ingest.alerts"):
        assert await reconciling.project.owner.fetchval(f"select count(*) from {table}") == 0
    assert await reconciling.live() == []


async def test_one_sighting_removes_nothing_and_nor_do_many_within_five_minutes(
    reconciling: Reconciling, user: UUID
) -> None:
    await lose_all_of_a_small_bucket(reconciling, user)
    for _ in range(3):
        assert (await reconciling.run()).removed == 0
    assert (await reconciling.later(minutes=4.9)).removed == 0
    assert reconciling.storage.asked == []
    assert await reconciling.documents() == 3


async def test_sightings_begin_anew_when_the_object_was_seen_between_them(reconciling: Reconciling, user: UUID) -> None:
    (stored, *_) = await reconciling.files(user, 5)
    row = "select bucket_id, name, version, metadata from storage.objects where id = $1"
    kept = await reconciling.project.admin.fetchrow(row, stored)
    assert kept is not None
    async with reconciling.unseen():
        await reconciling.erase(stored)
        await reconciling.run()
        await reconciling.project.admin.execute(
            "insert into storage.objects (id, bucket_id, name, version, metadata) values ($1, $2, $3, $4, $5)",
            stored, *kept,
        )  # fmt: skip
        await reconciling.later()
        await reconciling.erase(stored)
    assert (await reconciling.later()).removed == 0
    assert await reconciling.documents() == 5
    assert (await reconciling.later()).removed == 1


async def test_storage_itself_must_say_that_the_object_is_gone(reconciling: Reconciling, user: UUID) -> None:
    stored = await lose_all_of_a_small_bucket(reconciling, user)
    reconciling.storage.lies = False
    await reconciling.run()
    for _ in range(3):
        report = await reconciling.later()
        assert (report.kept, report.removed) == (3, 0)
    assert await reconciling.documents() == 3
    assert set(reconciling.storage.asked) == set(stored)


async def test_an_object_that_sql_sees_is_not_removed_whatever_storage_says(
    reconciling: Reconciling, user: UUID
) -> None:
    stored = await reconciling.files(user, 3)
    reconciling.storage.lies = True
    await reconciling.run()
    assert (await reconciling.later()).removed == 0
    assert await reconciling.project.worker.fetchval("select ingest.remove_missing('documents', $1)", stored) == 0
    assert await reconciling.documents() == 3


@pytest.mark.parametrize(("documents", "gone", "removed"), [(100, 5, 5), (100, 6, 0), (12, 3, 3), (12, 4, 0)])
async def test_more_than_a_twentieth_of_a_bucket_and_more_than_three_are_refused_with_an_alert(
    reconciling: Reconciling, user: UUID, documents: int, gone: int, removed: int
) -> None:
    stored = await reconciling.files(user, documents)
    await reconciling.files(user, 3, bucket="more")
    async with reconciling.unseen():
        await reconciling.erase(*stored[:gone])

    await reconciling.run()
    report = await reconciling.later()

    assert report.removed == removed
    assert await reconciling.documents() == documents + 3 - removed
    if removed:
        assert await reconciling.alerts() == []
        return
    ((subject, message),) = await reconciling.alerts()
    assert subject == "documents"
    assert f"{documents} documents" in message
    assert report.refused == {"documents": message}
    assert reconciling.storage.asked == []
    with pytest.raises(asyncpg.PostgresError) as caught:
        await reconciling.project.worker.execute("select ingest.remove_missing('documents', $1)", stored[:gone])
    assert caught.value.sqlstate == REFUSED


async def test_many_losses_are_many_also_when_they_were_first_seen_one_after_the_other(
    reconciling: Reconciling, user: UUID
) -> None:
    stored = await reconciling.files(user, 20)
    for start in (0, 2, 4):
        async with reconciling.unseen():
            await reconciling.erase(*stored[start : start + 2])
        reconciling.storage.lies = False
        await reconciling.later()
    reconciling.storage.lies = None
    assert (await reconciling.later()).removed == 0
    assert len(await reconciling.alerts()) == 1


async def test_an_empty_listing_removes_nothing_however_few_the_documents(reconciling: Reconciling, user: UUID) -> None:
    stored = await reconciling.files(user, 2)
    await reconciling.files(user, 2, bucket="more")
    async with reconciling.unseen():
        await reconciling.erase(*stored)
    await reconciling.run()

    report = await reconciling.later()

    assert (report.removed, list(report.refused)) == (0, ["documents"])
    assert await reconciling.documents() == 4
    ((subject, message),) = await reconciling.alerts()
    assert subject == "documents"
    # What the operator is told to do if it is right does it, and ends the alert.
    await reconciling.project.owner.execute(message[message.index("select ") :])
    assert await reconciling.documents() == 2
    assert (await reconciling.later()).refused == {}
    assert await reconciling.alerts() == []


async def test_the_operators_statement_of_a_refusal_removes_what_was_missing_and_no_more(
    reconciling: Reconciling, user: UUID
) -> None:
    stored = await reconciling.files(user, 10)
    async with reconciling.unseen():
        await reconciling.erase(*stored[:6])
    await reconciling.run()
    await reconciling.later()
    ((_, message),) = await reconciling.alerts()
    await reconciling.project.owner.execute(message[message.index("select ") :])
    assert await reconciling.documents() == 4
    await reconciling.run()
    assert await reconciling.alerts() == []


async def test_a_refusal_ends_when_the_objects_are_there_again(reconciling: Reconciling, user: UUID) -> None:
    stored = await reconciling.files(user, 6)
    await reconciling.project.admin.execute("create table kept as select * from storage.objects")
    columns = "id, bucket_id, name, version, metadata"
    async with reconciling.unseen():
        await reconciling.erase(*stored)
        await reconciling.run()
        await reconciling.later()
        assert len(await reconciling.alerts()) == 1
        await reconciling.project.admin.execute(
            f"insert into storage.objects ({columns}) select {columns} from public.kept"
        )
    report = await reconciling.later()
    assert (report.gone, report.removed, report.mended) == (0, 0, 0)
    assert await reconciling.alerts() == []
    assert await reconciling.documents() == 6


async def blind(reconciling: Reconciling, *functions: str) -> None:
    """Let these functions run with the rights of a role that sees no objects, as an ALTER FUNCTION could."""
    admin = reconciling.project.admin
    await admin.execute(
        "create role blind; grant usage on schema ingest, public, storage to blind;"
        "grant all on all tables in schema ingest, public, storage to blind;"
        "grant execute on all functions in schema ingest to blind"
    )
    try:
        for function in functions:
            signature = await admin.fetchval("select $1::regproc::regprocedure::text", f"ingest.{function}")
            await admin.execute(f"grant create on schema ingest to blind; alter function {signature} owner to blind")
        for table in (
            "ingest.missing_objects",
            "public.documents",
            "ingest.buckets",
            "ingest.tombstones",
            "public.jobs",
        ):
            await admin.execute(f"create policy see on {table} to blind using (true) with check (true)")
    finally:
        await admin.execute("revoke create on schema ingest from blind")


async def test_a_role_that_sees_no_objects_is_refused_before_it_takes_all_documents_for_lost(
    reconciling: Reconciling, user: UUID
) -> None:
    admin = reconciling.project.admin
    await reconciling.files(user, 3)
    functions = (
        "reconcile_objects", "reconcile_documents", "missing_documents", "remove_missing", "clear_trigger_failures",
        "count_objects",
    )  # fmt: skip
    try:
        await blind(reconciling, *functions)
        for call in (
            "ingest.reconcile_objects('documents', '', 100, 2::smallint, true)",
            "ingest.reconcile_documents(null, 100, true)",
            "ingest.remove_missing('documents', '{}')",
            "ingest.clear_trigger_failures()",
            "ingest.count_objects('documents')",
        ):
            with pytest.raises(asyncpg.PostgresError) as caught:
                await reconciling.project.worker.fetch(f"select * from {call}")
            assert caught.value.sqlstate == BLIND, call
        # Without that refusal it would have seen every document without its object.
        await admin.execute(
            "create or replace function ingest.check_sight() returns void language sql set search_path = '' as ''"
        )
        row = await reconciling.project.worker.fetchrow("select * from ingest.reconcile_documents(null, 100, true)")
        assert row is not None
        assert row["gone"] == 3
    finally:
        for function in functions:
            signature = await admin.fetchval("select $1::regproc::regprocedure::text", f"ingest.{function}")
            await admin.execute(f"alter function {signature} owner to postgres")
        await admin.execute("drop owned by blind; drop role blind")


async def test_a_name_that_another_object_has_taken_keeps_no_document_of_the_one_that_is_gone(
    reconciling: Reconciling, user: UUID
) -> None:
    old, *_ = await reconciling.files(user, 4)
    async with reconciling.unseen():
        await reconciling.erase(old)
        new = await reconciling.project.upload(user, "0000.txt")
    await reconciling.run()
    assert (await reconciling.later()).removed == 1
    assert await reconciling.project.document(old) is None
    assert await reconciling.project.document(new) is not None


async def test_a_move_to_where_nothing_is_watched_is_a_deletion_when_it_was_missed(
    reconciling: Reconciling, user: UUID
) -> None:
    moved, *_ = await reconciling.files(user, 4)
    async with reconciling.unseen():
        await reconciling.project.move(moved, f"{user}/0000.txt", "other")
    await reconciling.run()
    assert (await reconciling.later()).removed == 1
    assert await reconciling.project.document(moved) is None
