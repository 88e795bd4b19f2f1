"""Short texts: what was read is kept, and embedding begins, in one call with the fences of the calls it stands for."""

from __future__ import annotations

import asyncio
from uuid import UUID

import asyncpg
import pytest

from tests.database.project import MODEL, STALE, SUPERSEDED, Pair, Project, digest, key_of

BYTES = "the same bytes"
LEFT = '[{"stage": "fetch", "seconds": 0.01, "detail": {}}, {"stage": "parse", "seconds": 0.001, "detail": {}}]'


async def begin(
    project: Project,
    claim: asyncpg.Record,
    content: str,
    texts: list[str],
    connection: asyncpg.Connection | None = None,
) -> asyncpg.Record:
    row = await (connection or project.worker).fetchrow(
        "select * from ingest.store_parse_and_begin_embed($1, $2, $3, $4, 'text/plain', 'local', '1', '{}',"
        " $5, $6, $7, 'Title', '{}', 0.3, $8, $9::smallint, $10)",
        claim["job_id"], claim["claim"], digest(content), len(content), claim["tenant_id"],
        list(range(1, len(texts) + 1)), texts, LEFT, MODEL, [key_of(text) for text in texts],
    )  # fmt: skip
    assert row is not None
    return row


async def pages(project: Project, parse_id: int) -> list[str]:
    rows = await project.owner.fetch("select markdown from public.pages where parse_id = $1 order by page", parse_id)
    return [row["markdown"] for row in rows]


async def counted_pages(project: Project, tenant: UUID) -> int:
    found: int = await project.owner.fetchval(
        "select coalesce(sum(pages), 0) from ingest.page_months where tenant_id = $1", tenant
    )
    return found


async def test_what_was_read_is_kept_and_embedding_is_entered_in_one_call(project: Project, pair: Pair) -> None:
    first, _ = pair
    await project.owner.execute(
        "update public.jobs set rescues = 2, snoozing_since = now() where id = $1", first["job_id"]
    )
    await project.embed(first["tenant_id"], ["known"])

    row = await begin(project, first, BYTES, ["known", "new"])

    assert (row["outcome"], row["missing"]) == ("done", [key_of("new")])
    assert await pages(project, row["parse_id"]) == ["known", "new"]
    job, document = await project.job(first["job_id"]), await project.told(first["document_id"])
    assert (job["stage"], job["rescues"], job["snoozing_since"]) == ("embed", 0, None)
    assert (document["parse_id"], document["content_sha256"]) == (row["parse_id"], digest(BYTES))
    assert (await project.events(first["job_id"]))[-2:] == ["stage", "stage"]
    assert await counted_pages(project, first["tenant_id"]) == 2


async def test_the_same_bytes_again_use_the_pages_that_are_there_and_count_no_more(
    project: Project, pair: Pair
) -> None:
    first, second = pair
    await project.owner.execute("update public.jobs set rescues = 1 where id = $1", second["job_id"])
    kept = await begin(project, first, BYTES, ["a"])

    again = await begin(project, second, BYTES, ["a"])

    assert (again["parse_id"], again["outcome"]) == (kept["parse_id"], "done")
    assert await pages(project, kept["parse_id"]) == ["a"]
    assert await counted_pages(project, first["tenant_id"]) == 1
    # Nothing was achieved by this attempt that an earlier one had not: a killer is still suspected.
    assert (await project.job(second["job_id"]))["rescues"] == 1


async def test_another_jobs_reading_is_waited_for_and_an_orphaned_one_is_finished(project: Project, pair: Pair) -> None:
    first, second = pair
    parse = await project.begin_parse(first, BYTES)

    assert (await begin(project, second, BYTES, ["a"]))["outcome"] == "taken"
    assert (await project.job(second["job_id"]))["stage"] == "fetch"
    assert await pages(project, parse["parse_id"]) == []

    await project.owner.execute("delete from ingest.leases where job_id = $1", first["job_id"])
    row = await begin(project, second, BYTES, ["a"])
    assert (row["outcome"], row["parse_id"]) == ("done", parse["parse_id"])
    assert await pages(project, parse["parse_id"]) == ["a"]
    assert await counted_pages(project, first["tenant_id"]) == 1


async def test_what_is_known_to_be_impossible_says_so_with_its_code(project: Project, pair: Pair) -> None:
    first, second = pair
    parse = await project.begin_parse(first, BYTES)
    await project.worker.execute(
        "select ingest.fail_parse($1, $2, $3, 'file_garbled', 'It is garbled.')",
        first["job_id"], first["claim"], parse["parse_id"],
    )  # fmt: skip

    row = await begin(project, second, BYTES, ["a"])

    assert (row["outcome"], row["error_code"], row["error_message"]) == ("failed", "file_garbled", "It is garbled.")
    assert (await project.job(second["job_id"]))["stage"] == "fetch"


async def test_a_stale_claim_and_a_superseded_one_keep_nothing(project: Project, pair: Pair) -> None:
    first, second = pair
    await project.owner.execute(
        "update public.documents set generation = generation + 1 where id = $1", first["document_id"]
    )
    await project.owner.execute("delete from ingest.leases where job_id = $1", second["job_id"])

    with pytest.raises(asyncpg.PostgresError) as superseded:
        await begin(project, first, BYTES, ["a"])
    with pytest.raises(asyncpg.PostgresError) as stale:
        await begin(project, second, BYTES, ["a"])

    assert (superseded.value.sqlstate, stale.value.sqlstate) == (SUPERSEDED, STALE)
    assert await project.owner.fetchval("select count(*) from ingest.parses") == 0


async def test_two_documents_with_the_same_bytes_at_once_keep_one_parse(project: Project, pair: Pair) -> None:
    first, second = pair
    second_worker = await project.database.connect("ingest_worker")

    rows = await asyncio.gather(
        begin(project, first, BYTES, ["a", "b"]), begin(project, second, BYTES, ["a", "b"], second_worker)
    )

    assert {row["outcome"] for row in rows} == {"done"}
    assert len({row["parse_id"] for row in rows}) == 1
    assert await pages(project, rows[0]["parse_id"]) == ["a", "b"]
