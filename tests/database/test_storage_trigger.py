"""The trigger on storage.objects: where documents come from and go, and that it never fails an upload."""

from __future__ import annotations

import json
import time
from uuid import UUID, uuid4

import asyncpg
import pytest

from tests.callers import as_service, as_user
from tests.database.project import Project, vector_of

UPLOADS = 200


@pytest.fixture
async def user(project: Project) -> UUID:
    await project.owner.execute("insert into storage.buckets (id, name) values ('other', 'other'), ('more', 'more')")
    await project.owner.execute("insert into ingest.buckets values ('more')")
    return await project.user()


async def live(project: Project) -> list[tuple[UUID, int]]:
    """Return the live jobs as (document, generation)."""
    rows = await project.owner.fetch(
        "select document_id, generation from public.jobs where state in ('available', 'running') order by id"
    )
    return [tuple(row) for row in rows]


async def failures(project: Project) -> list[str]:
    rows = await project.owner.fetch("select operation, sqlstate from ingest.trigger_failures order by id")
    return [f"{row['operation']} {row['sqlstate']}" for row in rows]


async def rows_of(project: Project, user: UUID) -> tuple[int, int, int, int]:
    """Count what a user sees: documents, chunks, pages and search hits."""
    async with as_user(project.admin, user):
        counts = [
            await project.admin.fetchval(f"select count(*) from public.{table}")
            for table in ("documents", "chunks", "pages")
        ]
        hits = await project.admin.fetch("select * from public.search('text', $1)", vector_of("text"))
    return counts[0], counts[1], counts[2], len(hits)


async def test_an_overwrite_cancels_the_job_that_waits_and_not_the_one_that_runs(project: Project, user: UUID) -> None:
    stored = await project.upload(user)
    await project.overwrite(stored)
    assert await live(project) == [(stored, 2)]
    running = await project.claim_one()
    await project.overwrite(stored)
    assert await live(project) == [(stored, 2), (stored, 3)]
    assert (await project.job(running["job_id"]))["state"] == "running"
    assert await project.events(running["job_id"] - 1) == ["enqueue", "cancel"]


async def test_a_move_inside_the_tenant_changes_one_row_and_makes_no_job(project: Project, user: UUID) -> None:
    stored = await project.ready(user, "a.txt", "text")
    for name, bucket in ((f"{user}/deep/er/b.txt", "documents"), (f"{user}/b.txt", "more")):
        await project.move(stored, name, bucket)
        document = await project.told(stored)
        assert (document["name"], document["bucket_id"], document["state"]) == (name, bucket, "ready")
    assert await live(project) == []
    assert await rows_of(project, user) == (1, 1, 1, 1)


async def test_a_document_becomes_ready_although_its_object_moved_while_the_job_ran(
    project: Project, user: UUID
) -> None:
    stored = await project.upload(user)
    claim = await project.claim_one()
    parse = await project.prepare(claim, ["text"])
    await project.move(stored, f"{user}/b.txt")
    assert (await project.begin(claim))["name"] == f"{user}/b.txt"
    assert await project.publish(claim, parse, ["text"]) == "published"


async def test_a_move_to_another_tenant_is_a_new_document_there(project: Project, user: UUID) -> None:
    other = await project.organisation(editor=user)
    stored = await project.ready(user, "a.txt", "text")
    await project.move(stored, f"{other}/a.txt")
    document = await project.told(stored)
    assert (document["tenant_id"], document["state"], document["generation"]) == (other, "pending", 2)
    assert (document["published_generation"], document["parse_id"]) == (None, None)
    assert await project.owner.fetchval("select count(*) from public.chunks") == 0
    claim = await project.claim_one()
    assert (claim["tenant_id"], claim["generation"]) == (other, 2)
    assert (await project.begin_parse(claim, "text"))["outcome"] == "parse"  # nothing is reused


async def test_a_move_to_another_tenant_takes_the_job_that_runs_along(project: Project, user: UUID) -> None:
    other = await project.organisation(editor=user)
    stored = await project.upload(user)
    running = await project.claim_one()
    await project.move(stored, f"{other}/a.txt")
    assert (await project.job(running["job_id"]))["state"] == "cancelled"
    assert (
        await project.worker.fetch("select * from ingest.renew_leases($1, $2, '60 s')", [running["job_id"]], [1]) == []
    )
    assert await live(project) == [(stored, 2)]


async def test_a_move_out_of_the_watched_buckets_is_a_delete_and_back_in_an_upload(
    project: Project, user: UUID
) -> None:
    stored = await project.ready(user, "a.txt", "text")
    await project.move(stored, f"{user}/a.txt", "other")
    assert await project.document(stored) is None
    assert await rows_of(project, user) == (0, 0, 0, 0)
    await project.move(stored, f"{user}/a.txt")
    assert await live(project) == [(stored, 1)]


async def test_a_move_onto_nothing_that_watches_is_nothing(project: Project, user: UUID) -> None:
    stored = await project.upload(user, bucket="other")
    await project.move(stored, f"{user}/b.txt", "other")
    await project.overwrite(stored)
    async with as_service(project.admin):
        await project.admin.execute("set local storage.allow_delete_query = 'true'")
        await project.admin.execute("delete from storage.objects where id = $1", stored)
    assert await live(project) == []
    assert await failures(project) == []


@pytest.mark.parametrize("name", [".emptyFolderPlaceholder", "deep/.emptyFolderPlaceholder"])
async def test_the_placeholder_of_an_empty_folder_is_no_document(project: Project, user: UUID, name: str) -> None:
    await project.upload(user, name, size=0)
    assert await live(project) == []
    assert await project.owner.fetchval("select count(*) from ingest.ignored_objects") == 0
    await project.upload(user, f"{name}.txt")
    assert len(await live(project)) == 1


@pytest.mark.parametrize(
    "folder",
    [
        "",
        "public",
        "0b8f3a52-6c1d-4e7a-9a44-5d2f3c1e7b90",
        "not-a-uuid-at-all",
        "' or true --",
        "../etc",
        "a\nb",
        "x" * 900,
    ],
)
async def test_an_object_outside_every_tenants_folder_is_recorded_once(
    project: Project, user: UUID, folder: str
) -> None:
    stored = await project.upload(folder, "a.txt")
    await project.overwrite(stored)
    assert await live(project) == []
    assert await failures(project) == []
    rows = await project.owner.fetch("select object_id, reason from ingest.ignored_objects")
    assert [tuple(row) for row in rows] == [(stored, "no_tenant_folder")]

    await project.move(stored, f"{user}/a.txt")  # it can be a document after all
    assert await live(project) == [(stored, 1)]
    assert await project.owner.fetchval("select count(*) from ingest.ignored_objects") == 0


async def test_an_object_in_the_tenants_folder_itself_is_ignored_and_forgotten_when_deleted(
    project: Project, user: UUID
) -> None:
    async with as_service(project.admin):
        await project.admin.execute(
            "insert into storage.objects (bucket_id, name, version) values ('documents', $1, 'x')", str(user)
        )
    assert await project.owner.fetchval("select count(*) from ingest.ignored_objects") == 1
    async with as_service(project.admin):
        await project.admin.execute("set local storage.allow_delete_query = 'true'")
        await project.admin.execute("delete from storage.objects")
    assert await project.owner.fetchval("select count(*) from ingest.ignored_objects") == 0


@pytest.mark.parametrize(
    "metadata",
    [
        None,
        "null",
        "{}",
        json.dumps(json.dumps({"size": 5, "mimetype": "text/plain"})),  # encoded twice
        '{"size": -1, "mimetype": null}',
        '{"size": 1e99, "mimetype": {"a": 1}}',
        '{"size": "many", "mimetype": "' + "x" * 5000 + '"}',
        "[1, 2]",
    ],
)
async def test_metadata_is_never_trusted_to_have_a_shape(project: Project, user: UUID, metadata: str | None) -> None:
    async with as_service(project.admin):
        await project.admin.execute(
            "insert into storage.objects (bucket_id, name, metadata) values ('documents', $1, $2)",
            f"{user}/a.txt", metadata,
        )  # fmt: skip
    assert len(await live(project)) == 1
    assert await failures(project) == []
    assert await project.owner.fetchval("select size from public.documents") is None


async def test_a_batch_of_a_hundred_deletions_is_one_transaction(project: Project, user: UUID) -> None:
    stored = [await project.upload(user, f"{n}.txt") for n in range(100)]
    await project.claim(50)
    assert await project.remove(user, *stored) == 100
    assert await live(project) == []
    for table in ("public.documents", "public.chunks", "ingest.leases"):
        assert await project.owner.fetchval(f"select count(*) from {table}") == 0


async def test_a_user_without_a_tenant_gets_it_with_the_first_file(project: Project, user: UUID) -> None:
    await project.owner.execute("delete from public.tenants where id = $1", user)
    stored = await project.upload(user)
    assert await live(project) == [(stored, 1)]


async def test_the_cost_of_an_upload(project: Project, user: UUID) -> None:
    async def uploads(folder: str) -> float:
        started = time.perf_counter()
        for number in range(UPLOADS):
            await project.upload(user, f"{folder}/{number}.txt")
        return (time.perf_counter() - started) / UPLOADS * 1000

    await uploads("warm")
    with_trigger = await uploads("with")
    await project.admin.execute("alter table storage.objects disable trigger sluice_object_changed")
    without = await uploads("without")
    print(f"\nthe trigger costs {with_trigger - without:.2f} ms an upload ({with_trigger:.2f} against {without:.2f})")
    assert len(await live(project)) == 2 * UPLOADS


async def test_the_trigger_gives_up_waiting_after_two_seconds(project: Project) -> None:
    settings = await project.owner.fetchval("select proconfig from pg_proc where proname = 'object_changed'")
    assert sorted(settings) == ["lock_timeout=2s", 'search_path=""']


async def test_the_trigger_names_no_column_and_has_no_condition(project: Project) -> None:
    # Either would make Storage's own ALTER TABLE fail.
    row = await project.owner.fetchrow(
        "select tgattr::text, tgqual, tgdeferrable, pg_get_triggerdef(oid) as said from pg_trigger"
        " where tgname = 'sluice_object_changed'"
    )
    assert row is not None
    assert (row["tgattr"], row["tgqual"], row["tgdeferrable"]) == ("", None, False)
    assert "AFTER INSERT OR DELETE OR UPDATE ON storage.objects FOR EACH ROW" in row["said"]


async def test_nobody_calls_the_trigger_function_by_hand(project: Project) -> None:
    with pytest.raises(asyncpg.InsufficientPrivilegeError):
        async with as_user(project.admin, uuid4()):
            await project.admin.execute("select ingest.apply_object_change(null, '{}')")
