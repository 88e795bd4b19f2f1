"""What the trigger missed is found and mended, once, and what is right is left as it is."""

from __future__ import annotations

from datetime import timedelta
from uuid import UUID, uuid4

import pytest

from tests.database.project import Project, digest
from tests.database.reconciling import Reconciling
from tests.database.test_storage_failures import broken_function


@pytest.fixture
async def user(project: Project) -> UUID:
    await project.owner.execute("insert into storage.buckets (id, name) values ('other', 'other'), ('more', 'more')")
    await project.owner.execute("insert into ingest.buckets values ('more')")
    return await project.user()


async def test_where_everything_is_right_nothing_is_changed(reconciling: Reconciling, user: UUID) -> None:
    project = reconciling.project
    await project.ready(user, "a.txt", "text")
    await project.upload(user, "b.txt")
    await project.move(await project.upload(user, "c.txt"), f"{user}/d.txt", "more")
    await project.upload("nobody", "x.txt")
    await project.upload(user, ".emptyFolderPlaceholder")
    snapshot = (
        "select (select jsonb_agg(to_jsonb(d) order by d.id) from public.documents d)"
        "    || (select jsonb_agg(to_jsonb(j) order by j.id) from public.jobs j)"
    )
    before = await project.owner.fetchval(snapshot)

    report = await reconciling.run()

    assert (report.objects, report.documents, report.changes, report.failed) == (5, 3, 0, 0)
    assert await project.owner.fetchval(snapshot) == before


async def test_files_that_the_trigger_never_saw_become_documents_with_jobs(
    reconciling: Reconciling, user: UUID
) -> None:
    async with reconciling.unseen():
        stored = [*await reconciling.files(user, 3), *await reconciling.files(user, 2, bucket="more")]
        await reconciling.files(user, 1, bucket="other")
        await reconciling.project.upload(user, "empty/.emptyFolderPlaceholder")
        await reconciling.project.upload(uuid4(), "a.txt")

    first, second = await reconciling.run(), await reconciling.run()

    assert sorted(await reconciling.live()) == sorted((document, 1, 2) for document in stored)
    assert (first.without_document, first.mended) == (6, 6)  # one of them as an object that can never be a document
    assert second.changes == 0
    reasons = await reconciling.project.owner.fetch("select reason from ingest.ignored_objects")
    assert [row["reason"] for row in reasons] == ["no_tenant_folder"]


async def test_pages_meet_without_a_gap(reconciling: Reconciling, user: UUID) -> None:
    project = reconciling.project
    async with reconciling.unseen():
        await reconciling.files(user, 23)
    after: str | None = ""
    seen: list[int] = []
    while after is not None:
        row = await project.worker.fetchrow(
            "select * from ingest.reconcile_objects('documents', $1, 5, 2::smallint, true)", after
        )
        assert row is not None
        seen.append(row["mended"])
        after = row["last_name"]
    assert seen == [5, 5, 5, 5, 3]
    total, last = 0, None
    while True:
        row = await project.worker.fetchrow("select * from ingest.reconcile_documents($1, 10, true)", last)
        assert row is not None
        total, last = total + row["seen"], row["last_id"]
        if last is None:
            break
    assert total == 23


async def test_an_overwrite_that_was_missed_makes_a_generation(reconciling: Reconciling, user: UUID) -> None:
    project = reconciling.project
    stored = await project.ready(user, "a.txt", "text")
    async with reconciling.unseen():
        await project.overwrite(stored, size=77)

    report = await reconciling.run()

    assert (report.behind, report.mended) == (1, 1)
    assert await reconciling.live() == [(stored, 2, 2)]
    document = await project.told(stored)
    assert (document["state"], document["published_generation"], document["size"]) == ("pending", 1, 77)
    assert (await reconciling.run()).changes == 0


async def test_a_move_that_was_missed_is_read_anew_and_its_bytes_are_neither_parsed_nor_embedded_again(
    reconciling: Reconciling, user: UUID
) -> None:
    project = reconciling.project
    stored = await project.ready(user, "a.txt", "text")
    async with reconciling.unseen():
        await project.move(stored, f"{user}/b.txt", "more")

    await reconciling.run()

    document = await project.told(stored)
    assert (document["bucket_id"], document["name"], document["generation"]) == ("more", f"{user}/b.txt", 2)
    claim = await project.claim_one()
    assert (await project.begin_parse(claim, "text"))["outcome"] == "done"
    missing = "select count(*) from ingest.missing_vectors(1::smallint, $1, array[$2::bytea])"
    assert await project.worker.fetchval(missing, user, digest("\0text")) == 0


async def test_a_move_to_another_tenant_that_was_missed_leaves_nothing_with_the_first(
    reconciling: Reconciling, user: UUID
) -> None:
    project = reconciling.project
    other = await project.organisation(editor=user)
    stored = await project.ready(user, "a.txt", "text")
    async with reconciling.unseen():
        await project.move(stored, f"{other}/a.txt")

    await reconciling.run()

    document = await project.told(stored)
    assert (document["tenant_id"], document["published_generation"]) == (other, None)
    assert await project.owner.fetchval("select count(*) from public.chunks") == 0
    assert await reconciling.live() == [(stored, 2, 2)]


@pytest.mark.parametrize("state", ["pending", "processing"])
async def test_a_document_that_waits_for_a_job_that_does_not_exist_gets_one(
    reconciling: Reconciling, user: UUID, state: str
) -> None:
    project = reconciling.project
    lost, kept = await reconciling.files(user, 2)
    await project.owner.execute("delete from public.jobs where document_id = $1", lost)
    await project.owner.execute("update public.documents set state = $2 where id = $1", lost, state)

    report = await reconciling.run()

    assert (report.without_job, report.enqueued) == (1, 1)
    assert sorted(await reconciling.live()) == sorted([(lost, 1, 2), (kept, 1, 2)])
    assert (await reconciling.run()).changes == 0


async def test_a_document_that_ended_is_not_started_again(reconciling: Reconciling, user: UUID) -> None:
    project = reconciling.project
    await project.ready(user, "a.txt", "text")
    failed, cancelled = await reconciling.files(user, 2)
    claims = {row["document_id"]: (row["job_id"], row["claim"]) for row in await project.claim()}
    await project.worker.execute("select ingest.discard_job($1, $2, 'no_text', 'No text.', 'r')", *claims[failed])
    await project.worker.execute("select ingest.cancel_job($1, $2, 'stopped', 'Stopped.')", *claims[cancelled])

    assert (await reconciling.run()).changes == 0
    assert await reconciling.live() == []


async def test_documents_of_a_bucket_that_is_no_longer_watched_stay_as_they_are(
    reconciling: Reconciling, user: UUID
) -> None:
    await reconciling.files(user, 3, bucket="more")
    async with reconciling.unseen():
        await reconciling.files(user, 2, first=3, bucket="more")
    await reconciling.project.owner.execute("delete from ingest.buckets where bucket_id = 'more'")
    for _ in range(3):
        report = await reconciling.later()
    assert (report.changes, report.gone, await reconciling.documents()) == (0, 0, 3)


async def test_files_from_before_the_bucket_was_watched_wait_behind_everything_else(
    reconciling: Reconciling, user: UUID
) -> None:
    (old,) = await reconciling.files(user, 1, bucket="other")
    assert await reconciling.project.worker.fetchval("select ingest.watch_bucket('other')") == "added"
    async with reconciling.unseen():
        (missed,) = await reconciling.files(user, 1, first=1, bucket="other")

    await reconciling.run()

    assert sorted(await reconciling.live()) == sorted([(old, 1, 4), (missed, 1, 2)])


async def test_a_backfill_takes_in_what_was_there_at_low_priority_once(reconciling: Reconciling, user: UUID) -> None:
    stored = await reconciling.files(user, 7, bucket="other")
    await reconciling.project.worker.fetchval("select ingest.watch_bucket('other')")
    seen: list[int] = []

    first = await reconciling.comparison.backfill("other", seen.append)
    second = await reconciling.comparison.backfill("other", seen.append)

    assert (first.objects, first.mended, second.objects, second.mended) == (7, 7, 7, 0)
    assert sum(seen) == 14
    assert sorted(await reconciling.live()) == sorted((document, 1, 4) for document in stored)
    live = await reconciling.project.upload(user, "live.txt")
    (claim,) = await reconciling.project.claim(limit=1)
    assert claim["document_id"] == live


async def test_a_bucket_is_watched_only_if_it_exists_and_only_once(project: Project, user: UUID) -> None:
    watch = "select ingest.watch_bucket($1)"
    answers = [await project.worker.fetchval(watch, name) for name in ("none", "other", "other", "documents")]
    assert answers == ["no such bucket", "added", "watched", "watched"]
    assert await project.worker.fetchval("select ingest.count_objects('other')") == 0


async def test_a_dry_run_counts_and_writes_nothing(reconciling: Reconciling, user: UUID) -> None:
    project = reconciling.project
    first, *_ = await reconciling.files(user, 3)
    async with reconciling.unseen():
        await reconciling.files(user, 2, first=3)
        await project.overwrite(first)
    await project.owner.execute("delete from public.jobs where document_id <> $1", first)

    report = await reconciling.run(mend=False)

    assert (report.without_document, report.behind, report.without_job) == (2, 1, 2)
    assert (report.changes, await reconciling.documents()) == (0, 3)
    assert await project.owner.fetchval("select count(*) from ingest.missing_objects") == 0


async def test_what_the_trigger_caught_is_forgotten_once_it_is_right(reconciling: Reconciling, user: UUID) -> None:
    project = reconciling.project
    changed, gone, *_ = await reconciling.files(user, 8)
    repair = await broken_function(project)
    new = await project.upload(user, "new.txt")
    await project.overwrite(changed)
    await project.remove(user, gone)
    count = "select count(*) from ingest.trigger_failures"
    assert await project.owner.fetchval(count) == 3
    assert (await reconciling.run()).failures_cleared == 0  # it is still broken
    assert await project.owner.fetchval(count + " where operation = 'RECONCILE'") == 2

    await repair()
    report = await reconciling.run()
    assert (report.mended, report.failed) == (2, 0)
    rows = await project.owner.fetch("select object_id from ingest.trigger_failures")
    assert {row["object_id"] for row in rows} == {gone}  # its tombstone is not carried out yet

    assert await project.worker.fetchval("select ingest.sweep_tombstones()") == 1
    assert (await reconciling.run()).failures_cleared == 1
    assert await project.owner.fetchval(count) == 0
    assert {document for document, _, _ in await reconciling.live()} >= {new, changed}
    assert await project.document(gone) is None


async def test_one_object_that_cannot_be_mended_keeps_no_other_and_is_told_once(
    reconciling: Reconciling, user: UUID
) -> None:
    project = reconciling.project
    async with reconciling.unseen():
        stuck, *others = await reconciling.files(user, 4)
    await project.owner.execute(
        "create function public.refuse() returns trigger language plpgsql set search_path = '' as $$ begin"
        f" if new.id = '{stuck}' then raise exception 'not this one'; end if; return new; end $$;"
        "create trigger refuse before insert on public.documents for each row execute function public.refuse()"
    )
    for _ in range(2):
        report = await reconciling.run()
    assert report.failed == 1
    assert sorted(await reconciling.live()) == sorted((document, 1, 2) for document in others)
    rows = await project.owner.fetch("select object_id, operation, message from ingest.trigger_failures")
    assert [tuple(row) for row in rows] == [(stuck, "RECONCILE", "not this one")]

    await project.owner.execute("drop trigger refuse on public.documents")
    report = await reconciling.run()
    assert (report.mended, report.failed, report.failures_cleared) == (1, 0, 1)


async def test_one_worker_compares_every_five_minutes_and_one_that_died_holds_it_up_for_a_quarter_of_an_hour(
    reconciling: Reconciling, user: UUID
) -> None:
    owner = reconciling.project.owner
    begin = "select ingest.begin_reconcile('5 minutes')"

    async def age(minutes: int) -> None:
        await owner.execute(
            "update ingest.reconciles set started_at = started_at - $1::interval", timedelta(minutes=minutes)
        )

    async with reconciling.unseen():
        await reconciling.files(user, 1)
    assert await reconciling.comparison.take_turn() == 1
    async with reconciling.unseen():
        await reconciling.files(user, 1, first=1)
    assert await reconciling.comparison.take_turn() == 0
    await age(6)
    assert await reconciling.comparison.take_turn() == 1

    await age(6)
    assert await owner.fetchval(begin)  # and never says that it ended
    await age(6)
    assert not await owner.fetchval(begin)
    await age(10)
    assert await owner.fetchval(begin)


async def test_two_that_begin_at_once_do_not_both_compare(reconciling: Reconciling) -> None:
    project = reconciling.project
    async with project.owner.transaction():
        assert await project.owner.fetchval("select ingest.begin_reconcile('5 minutes')")
        assert not await project.worker.fetchval("select ingest.begin_reconcile('5 minutes')")
