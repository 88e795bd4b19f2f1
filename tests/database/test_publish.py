"""Publishing: one transaction that swaps a document's chunks, or changes nothing."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from uuid import UUID

import asyncpg
import pytest
from pgvector import HalfVector

from tests.callers import as_user
from tests.conftest import Database
from tests.database.project import (
    DIMENSIONS,
    MODEL,
    NO_VECTOR,
    STALE,
    SUPERSEDED,
    Project,
    digest,
    key_of,
    vector_of,
)

OLD, NEW = ["old one", "old two", "old three"], ["new one", "new two"]


@pytest.fixture
async def user(project: Project) -> UUID:
    return await project.user()


async def chunks(connection: asyncpg.Connection) -> list[str]:
    return [row["content"] for row in await connection.fetch("select content from public.chunks order by ordinal")]


async def test_a_published_document_is_ready_and_its_job_completed(project: Project, user: UUID) -> None:
    stored = await project.upload(user)
    claim = await project.claim_one()
    await project.ingest(claim, OLD)
    document = await project.told(stored)
    assert (document["state"], document["generation"], document["published_generation"]) == ("ready", 1, 1)
    assert (document["chunk_count"], document["page_count"], document["title"]) == (3, 3, "Title")
    assert document["published_parse_id"] == document["parse_id"]
    job = await project.job(claim["job_id"])
    assert (job["state"], job["progress"], job["stage"]) == ("completed", 1, None)
    assert (await project.events(claim["job_id"]))[-1] == "complete"
    assert await chunks(project.owner) == OLD


async def test_publishing_twice_by_the_same_claim_is_already_done(project: Project, user: UUID) -> None:
    await project.upload(user)
    claim = await project.claim_one()
    parse = await project.prepare(claim, OLD)
    assert await project.publish(claim, parse, OLD) == "published"
    assert await project.worker.fetchval("select ingest.claim_outcome($1, $2)", claim["job_id"], 1) == "completed"
    assert await project.publish(claim, parse, OLD) == "already"
    assert await chunks(project.owner) == OLD
    assert (await project.events(claim["job_id"])).count("complete") == 1


async def test_the_outcome_of_a_claim_is_held_completed_or_lost(project: Project, user: UUID) -> None:
    await project.upload(user)
    claim = await project.claim_one()
    ask = "select ingest.claim_outcome($1, $2)"
    assert await project.worker.fetchval(ask, claim["job_id"], claim["claim"]) == "held"
    assert await project.worker.fetchval(ask, claim["job_id"], claim["claim"] + 1) == "lost"
    await project.worker.execute("select ingest.release_jobs($1, $2, 'x')", [claim["job_id"]], [claim["claim"]])
    assert await project.worker.fetchval(ask, claim["job_id"], claim["claim"]) == "lost"


async def test_readers_see_the_old_chunks_or_the_new_ones_and_never_a_mixture(
    project: Project, database: Database, user: UUID
) -> None:
    stored = await project.ready(user, "a.txt", *OLD)
    seen: set[tuple[str, ...]] = set()
    reader = await database.connect("supabase_admin")

    async def read() -> None:
        async with as_user(reader, user):
            seen.add(tuple(await chunks(reader)))

    for texts in (NEW, OLD) * 4:
        await project.overwrite(stored)
        claim = await project.claim_one()
        parse = await project.prepare(claim, texts)
        async with project.worker.transaction():
            await project.place_chunks(texts)
            await project.publish_placed(claim, parse)
            await read()  # after the swap, before the commit
            reading = asyncio.create_task(read())
        await reading  # began before the commit
        await read()
    assert seen == {tuple(OLD), tuple(NEW)}


async def test_a_publish_of_an_overwritten_generation_is_superseded(project: Project, user: UUID) -> None:
    stored = await project.ready(user, "a.txt", *OLD)
    await project.overwrite(stored)
    claim = await project.claim_one()
    parse = await project.prepare(claim, NEW)
    await project.overwrite(stored)
    with pytest.raises(asyncpg.PostgresError) as refused:
        await project.publish(claim, parse, NEW)
    assert refused.value.sqlstate == SUPERSEDED
    assert await chunks(project.owner) == OLD
    # Rolled back with the lease: the worker cancels with the same claim.
    cancel = "select ingest.cancel_job($1, $2, 'superseded', 'm')"
    assert await project.worker.fetchval(cancel, claim["job_id"], claim["claim"]) == "cancel"
    assert (await project.claim_one())["generation"] == 3


async def test_an_overwrite_that_waits_for_a_publish_makes_the_next_generation(project: Project, user: UUID) -> None:
    stored = await project.upload(user)
    claim = await project.claim_one()
    parse = await project.prepare(claim, OLD)
    async with project.worker.transaction():
        await project.place_chunks(OLD)
        await project.publish_placed(claim, parse)
        overwriting = asyncio.create_task(project.overwrite(stored))
        assert await project.waits(overwriting, project.admin)
    await overwriting
    document = await project.told(stored)
    assert (document["generation"], document["published_generation"], document["state"]) == (2, 1, "pending")
    assert await chunks(project.owner) == OLD
    assert (await project.claim_one())["generation"] == 2


async def test_an_overwrite_and_a_move_do_not_wait_for_a_publish_that_is_at_work(
    project: Project, database: Database, user: UUID
) -> None:
    # Found in review: 2,000 chunks take longer than the object trigger waits.
    stored = await project.upload(user)
    claim = await project.claim_one()
    parse = await project.prepare(claim, OLD)
    await project.owner.execute("alter function ingest.object_changed() set lock_timeout = '50ms'")
    blocker = await database.connect()
    async with blocker.transaction():
        await blocker.execute("lock table public.chunks in share mode")
        publishing = asyncio.create_task(project.publish(claim, parse, OLD))
        assert await project.waits(publishing, project.worker)
        await project.move(stored, f"{user}/b.txt")
        await project.overwrite(stored)
    with pytest.raises(asyncpg.PostgresError) as refused:
        await publishing
    assert refused.value.sqlstate == SUPERSEDED
    assert await chunks(project.owner) == []
    document = await project.told(stored)
    assert (document["name"], document["generation"]) == (f"{user}/b.txt", 2)
    assert await project.owner.fetch("select * from ingest.trigger_failures") == []


async def test_a_publish_that_waits_for_a_deletion_leaves_nothing(
    project: Project, database: Database, user: UUID
) -> None:
    stored = await project.upload(user)
    claim = await project.claim_one()
    parse = await project.prepare(claim, OLD)
    transaction = project.owner.transaction()
    await transaction.start()
    await project.owner.execute("select ingest.remove_document($1)", stored)
    publishing = asyncio.create_task(project.publish(claim, parse, OLD))
    assert await project.waits(publishing, project.worker)
    await transaction.commit()
    with pytest.raises(asyncpg.PostgresError) as refused:
        await publishing
    assert refused.value.sqlstate == STALE  # the deletion took the lease
    assert await chunks(project.owner) == []
    assert await project.document(stored) is None


async def test_a_publish_without_a_vector_goes_back_with_its_claim(project: Project, user: UUID) -> None:
    await project.upload(user)
    claim = await project.claim_one()
    parse = await project.prepare(claim, OLD)
    await project.owner.execute("delete from ingest.embeddings where content_sha256 = $1", key_of(OLD[1]))
    with pytest.raises(asyncpg.PostgresError, match="1 of 3 vectors are missing") as refused:
        await project.publish(claim, parse, OLD)
    assert refused.value.sqlstate == NO_VECTOR
    assert await chunks(project.owner) == []

    missing = await project.worker.fetch(
        "select * from ingest.missing_vectors($1::smallint, $2, $3)", MODEL, user, [key_of(text) for text in OLD * 2]
    )
    assert [row[0] for row in missing] == [key_of(OLD[1])]
    await project.embed(user, [OLD[1]])
    assert await project.publish(claim, parse, OLD) == "published"


async def test_another_tenants_vector_is_not_ones_own(project: Project, user: UUID) -> None:
    await project.embed(await project.user(), OLD)
    missing = await project.worker.fetch(
        "select * from ingest.missing_vectors($1::smallint, $2, $3)", MODEL, user, [key_of(text) for text in OLD]
    )
    assert len(missing) == len(OLD)


@pytest.mark.parametrize("parse", ["unfinished", "another tenant's", "none"])
async def test_a_publish_wants_a_finished_parse_of_its_own_tenant(project: Project, user: UUID, parse: str) -> None:
    stranger = await project.user()
    await project.ready(stranger, "theirs.txt", *OLD)
    foreign = await project.owner.fetchval("select id from ingest.parses")
    await project.upload(user)
    claim = await project.claim_one()
    unfinished = (await project.begin_parse(claim, "x"))["parse_id"]
    await project.embed(user, OLD)
    with pytest.raises(asyncpg.PostgresError, match="is not done"):
        await project.publish(claim, {"unfinished": unfinished, "another tenant's": foreign, "none": 0}[parse], OLD)
    assert (await project.job(claim["job_id"]))["state"] == "running"


async def test_a_chunk_cannot_belong_to_another_tenant_than_its_document(project: Project, user: UUID) -> None:
    stored = await project.ready(user, "a.txt", *OLD)
    stranger = await project.user()
    with pytest.raises(asyncpg.ForeignKeyViolationError):
        await project.owner.execute("update public.chunks set tenant_id = $2 where document_id = $1", stored, stranger)
    with pytest.raises(asyncpg.ForeignKeyViolationError):
        await project.owner.execute("update public.pages set tenant_id = $1", stranger)
    with pytest.raises(asyncpg.ForeignKeyViolationError):
        await project.owner.execute("update public.documents set tenant_id = $2 where id = $1", stored, stranger)


@pytest.mark.parametrize(
    "change",
    [
        "content = content || 'x'",
        "char_end = char_end + 1",
        "char_start = char_start + 1",
        "content = '', char_end = char_start",
        "page_end = page_start - 1",
        "page_start = 0",
        "char_start = -1, content = content || 'x'",
        "token_count = 0",
        "language = 'klingon'",
        "content_sha256 = '\\x00'",
        "ordinal = ordinal + 1",
    ],
)
async def test_a_chunk_is_the_slice_that_it_says(project: Project, user: UUID, change: str) -> None:
    await project.ready(user, "a.txt", "zero", "one")
    with pytest.raises(asyncpg.IntegrityConstraintViolationError):
        await project.owner.execute(f"update public.chunks set {change} where ordinal = 0")


async def test_offsets_count_code_points(project: Project, user: UUID) -> None:
    text = "né 𝒳 👩‍👩‍👧"  # 10 code points, 26 bytes, 13 UTF-16 units
    await project.ready(user, "a.txt", text)
    assert await project.owner.fetchval("select char_end - char_start from public.chunks") == len(text)


@pytest.mark.parametrize(
    ("vector", "constraint"),
    [
        ([0.0] * DIMENSIONS, "not_zero"),
        ([1e-9] * DIMENSIONS, "not_zero"),  # half precision knows no such number
        ([1.0] * (DIMENSIONS - 1), "dimensions_are_the_models"),
        ([1.0] * (DIMENSIONS + 1), "dimensions_are_the_models"),
    ],
)
async def test_a_vector_that_cannot_be_compared_is_refused(
    project: Project, user: UUID, vector: list[float], constraint: str
) -> None:
    with pytest.raises(asyncpg.CheckViolationError) as refused:
        await project.store_vectors(user, [(digest("x"), HalfVector(vector))])
    assert refused.value.constraint_name == constraint
    assert await project.owner.fetchval("select count(*) from ingest.embeddings") == 0


async def test_the_vector_that_came_first_stays(project: Project, user: UUID) -> None:
    key = digest("x")
    await project.store_vectors(user, [(key, HalfVector(vector_of("first")))])
    await project.store_vectors(user, [(key, HalfVector(vector_of("second")))])
    kept = await project.worker.fetchval("select embedding from ingest.embeddings")
    assert kept == HalfVector(vector_of("first"))


async def test_old_chunks_stay_published_when_the_newer_generation_fails(project: Project, user: UUID) -> None:
    stored = await project.ready(user, "a.txt", *OLD)
    await project.overwrite(stored)
    claim = await project.claim_one()
    await project.worker.execute(
        "select ingest.discard_job($1, $2, 'pdf_encrypted', 'm', 'r')", claim["job_id"], claim["claim"]
    )
    document = await project.told(stored)
    assert (document["state"], document["generation"], document["published_generation"]) == ("failed", 2, 1)
    async with as_user(project.admin, user):
        assert await chunks(project.admin) == OLD
        rows = await project.admin.fetch("select stale from public.search('old', $1)", vector_of("old"))
    assert [row["stale"] for row in rows] == [True] * len(OLD)


async def test_a_third_generation_may_publish_after_a_failed_second(project: Project, user: UUID) -> None:
    stored = await project.ready(user, "a.txt", *OLD)
    await project.overwrite(stored)
    claim = await project.claim_one()
    await project.worker.execute("select ingest.discard_job($1, $2, 'x', 'm', 'r')", claim["job_id"], claim["claim"])
    await project.overwrite(stored)
    await project.ingest(await project.claim_one(), NEW)
    document = await project.told(stored)
    assert (document["state"], document["published_generation"], document["error_code"]) == ("ready", 3, None)
    assert await chunks(project.owner) == NEW


async def test_a_renewal_passes_while_pages_are_being_stored(project: Project, database: Database, user: UUID) -> None:
    await project.upload(user)
    claim = await project.claim_one()
    renewing = await database.connect("ingest_worker")
    await renewing.execute("set lock_timeout = '100ms'")
    async with project.worker.transaction():
        await project.worker.execute("select ingest.hold_claim($1, $2)", claim["job_id"], claim["claim"])
        rows = await renewing.fetch(
            "select * from ingest.renew_leases($1, $2, $3)",
            [claim["job_id"]], [claim["claim"]], timedelta(seconds=60),
        )  # fmt: skip
    assert [row["answer"] for row in rows] == ["ours"]
