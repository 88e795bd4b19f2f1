"""Parses: the same bytes of a tenant are parsed once, whoever asks, and nothing crosses tenants."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from uuid import UUID

import asyncpg
import pytest

from tests.conftest import Database
from tests.database.project import STALE, Pair, Project

BYTES = "the same bytes"


async def fail(project: Project, claim: asyncpg.Record, parse_id: int) -> None:
    await project.worker.execute(
        "select ingest.fail_parse($1, $2, $3, 'pdf_encrypted', 'It has a password.')",
        claim["job_id"], claim["claim"], parse_id,
    )  # fmt: skip


async def snooze(project: Project, claim: asyncpg.Record) -> None:
    await project.worker.execute(
        "select ingest.snooze_job($1, $2, '1 hour', 'parse_in_progress', 'm', 'r', true)",
        claim["job_id"], claim["claim"],
    )  # fmt: skip


async def test_bytes_that_were_parsed_are_not_parsed_again(project: Project, pair: Pair) -> None:
    first, second = pair
    parse = await project.begin_parse(first, BYTES)
    assert parse["outcome"] == "parse"
    await project.finish_parse(first, parse["parse_id"], ["page"])
    again = await project.begin_parse(second, BYTES)
    assert (again["outcome"], again["parse_id"]) == ("done", parse["parse_id"])
    for claim in pair:
        document = await project.told(claim["document_id"])
        assert (document["parse_id"], document["size"]) == (parse["parse_id"], len(BYTES))


async def test_a_crash_after_the_parse_does_not_repeat_it(project: Project, pair: Pair) -> None:
    first, _ = pair
    parse = await project.begin_parse(first, BYTES)
    await project.finish_parse(first, parse["parse_id"], ["page"])
    await project.worker.execute("select ingest.release_jobs($1, $2, 'x')", [first["job_id"]], [first["claim"]])
    assert (await project.begin_parse(await project.claim_one(), BYTES))["outcome"] == "done"


async def test_nothing_is_reused_across_tenants(project: Project, pair: Pair) -> None:
    first, _ = pair
    parse = await project.begin_parse(first, BYTES)
    await project.finish_parse(first, parse["parse_id"], ["page"])
    await project.upload(await project.user())
    other = await project.begin_parse(await project.claim_one(), BYTES)
    assert other["outcome"] == "parse"
    assert other["parse_id"] != parse["parse_id"]


async def test_another_parser_parses_for_itself(project: Project, pair: Pair) -> None:
    first, second = pair
    parse = await project.begin_parse(first, BYTES)
    await project.finish_parse(first, parse["parse_id"], ["page"])
    assert (await project.begin_parse(second, BYTES, parser="llamaparse"))["outcome"] == "parse"


async def test_of_two_that_ask_at_once_one_parses(project: Project, database: Database, pair: Pair) -> None:
    first, second = pair
    other = Project(database)
    other.worker = await database.connect("ingest_worker")
    async with project.worker.transaction():
        mine = await project.begin_parse(first, BYTES)
        asking = asyncio.create_task(other.begin_parse(second, BYTES))
        assert await project.waits(asking, other.worker)
    assert (mine["outcome"], (await asking)["outcome"]) == ("parse", "taken")


async def test_a_job_that_waits_for_a_parse_is_woken_when_it_is_done(project: Project, pair: Pair) -> None:
    first, second = pair
    parse = await project.begin_parse(first, BYTES)
    assert (await project.begin_parse(second, BYTES))["outcome"] == "taken"
    await snooze(project, second)
    assert await project.claim() == []
    await project.finish_parse(first, parse["parse_id"], ["page"])
    woken = await project.claim_one()
    assert woken["job_id"] == second["job_id"]
    assert (await project.begin_parse(woken, BYTES))["outcome"] == "done"


async def test_a_job_that_waits_for_a_parse_is_woken_when_it_fails(project: Project, pair: Pair) -> None:
    first, second = pair
    parse = await project.begin_parse(first, BYTES)
    await project.begin_parse(second, BYTES)
    await snooze(project, second)
    await fail(project, first, parse["parse_id"])
    told = await project.begin_parse(await project.claim_one(), BYTES)
    assert (told["outcome"], told["error_code"], told["error_message"]) == (
        "failed", "pdf_encrypted", "It has a password.",
    )  # fmt: skip


async def test_a_parse_that_ends_before_the_waiting_job_sleeps_wakes_it_all_the_same(
    project: Project, pair: Pair
) -> None:
    first, second = pair
    parse = await project.begin_parse(first, BYTES)
    assert (await project.begin_parse(second, BYTES))["outcome"] == "taken"
    await project.finish_parse(first, parse["parse_id"], ["page"])
    await snooze(project, second)
    assert (await project.claim_one())["job_id"] == second["job_id"]


async def test_a_job_that_waited_once_is_not_woken_by_what_it_waits_for_no_longer(project: Project, pair: Pair) -> None:
    first, second = pair
    parse = await project.begin_parse(first, BYTES)
    await project.begin_parse(second, BYTES)
    await project.finish_parse(first, parse["parse_id"], ["page"])
    assert (await project.begin_parse(second, BYTES))["outcome"] == "done"
    await snooze(project, second)  # for another reason: a provider's limit
    assert await project.claim() == []


async def test_a_parse_that_ends_while_the_waiting_job_falls_asleep_wakes_it(
    project: Project, database: Database, pair: Pair
) -> None:
    first, second = pair
    parse = await project.begin_parse(first, BYTES)
    await project.begin_parse(second, BYTES)
    other = Project(database)
    other.worker = await database.connect("ingest_worker")
    async with project.worker.transaction():
        await project.worker.execute(
            "select ingest.finish_parse($1, $2, $3, 0, null, null, '{}')",
            first["job_id"], first["claim"], parse["parse_id"],
        )  # fmt: skip
        sleeping = asyncio.create_task(snooze(other, second))
        assert await project.waits(sleeping, other.worker)
    await sleeping
    assert (await project.claim_one())["job_id"] == second["job_id"]


async def test_a_parse_whose_submitter_died_is_taken_over(project: Project, pair: Pair) -> None:
    first, second = pair
    parse = await project.begin_parse(first, BYTES)
    await project.owner.execute("delete from ingest.leases where job_id = $1", first["job_id"])
    assert (await project.begin_parse(second, BYTES))["outcome"] == "parse"
    for call in ("finish_parse($1, $2, $3, 1, null, null, '{}')", "fail_parse($1, $2, $3, 'x', 'y')"):
        with pytest.raises(asyncpg.PostgresError) as refused:
            await project.worker.execute(f"select ingest.{call}", first["job_id"], first["claim"], parse["parse_id"])
        assert refused.value.sqlstate == STALE
    await project.finish_parse(second, parse["parse_id"], ["page"])


async def test_a_claim_that_lives_cannot_finish_what_another_took_over(project: Project, pair: Pair) -> None:
    first, second = pair
    parse = await project.begin_parse(first, BYTES)
    await project.owner.execute("update ingest.parses set submitted_job = $1", second["job_id"])
    with pytest.raises(asyncpg.PostgresError) as refused:
        await project.finish_parse(first, parse["parse_id"], ["page"])
    assert refused.value.sqlstate == STALE
    assert await project.owner.fetchval("select count(*) from public.pages") == 0


async def test_a_failed_parse_is_remembered_for_all_until_somebody_retries_by_hand(
    project: Project, pair: Pair
) -> None:
    first, second = pair
    parse = await project.begin_parse(first, BYTES)
    await fail(project, first, parse["parse_id"])
    assert (await project.begin_parse(first, BYTES))["outcome"] == "failed"
    assert (await project.begin_parse(second, BYTES))["outcome"] == "failed"
    await project.worker.execute(
        "select ingest.discard_job($1, $2, 'pdf_encrypted', 'm', null)", second["job_id"], second["claim"]
    )
    await project.worker.execute("select ingest.retry_discarded($1)", second["job_id"])
    again = await project.begin_parse(await project.claim_one(), BYTES)
    assert (again["outcome"], again["parse_id"]) == ("parse", parse["parse_id"])


HOUR = timedelta(hours=1)


async def sweep(project: Project) -> int:
    await project.owner.execute("update ingest.parses set created_at = now() - interval '2 hours'")
    removed: int = await project.worker.fetchval("select ingest.sweep_parses($1)", HOUR)
    return removed


async def parses(project: Project) -> int:
    count: int = await project.owner.fetchval("select count(*) from ingest.parses")
    return count


async def test_the_sweep_removes_a_parse_with_its_pages_when_no_document_uses_it(project: Project, pair: Pair) -> None:
    texts = ["page"]
    for claim in pair:
        await project.ingest(claim, texts)
    assert (await sweep(project), await parses(project)) == (0, 1)
    for left, claim in zip((1, 0), pair, strict=True):
        await project.owner.execute("select ingest.remove_document($1)", claim["document_id"])
        assert await sweep(project) == 1 - left
        assert await parses(project) == left
    assert await project.owner.fetchval("select count(*) from public.pages") == 0


async def test_the_sweep_keeps_the_parse_that_is_published_and_the_one_in_work(project: Project) -> None:
    user: UUID = await project.user()
    stored = await project.ready(user, "a", "old")
    await project.overwrite(stored)
    await project.begin_parse(await project.claim_one(), "new")
    assert (await sweep(project), await parses(project)) == (0, 2)


async def test_the_sweep_keeps_a_young_parse(project: Project, pair: Pair) -> None:
    parse = await project.begin_parse(pair[0], BYTES)
    await project.finish_parse(pair[0], parse["parse_id"], ["page"])
    await project.owner.execute("update public.documents set parse_id = null")
    assert await project.worker.fetchval("select ingest.sweep_parses($1)", HOUR) == 0


async def test_the_sweep_removes_a_parse_that_its_submitter_left_behind(project: Project, pair: Pair) -> None:
    await project.begin_parse(pair[0], BYTES)
    await project.owner.execute("update public.documents set parse_id = null")
    assert await sweep(project) == 0  # its claim lives
    await project.owner.execute("select ingest.remove_document($1)", pair[0]["document_id"])
    assert await sweep(project) == 1


async def test_a_parse_that_is_swept_while_somebody_asks_for_it_is_parsed_again(
    project: Project, database: Database, pair: Pair
) -> None:
    first, second = pair
    parse = await project.begin_parse(first, BYTES)
    await project.finish_parse(first, parse["parse_id"], ["page"])
    await project.owner.execute("select ingest.remove_document($1)", first["document_id"])
    async with project.owner.transaction():
        await project.owner.execute("update ingest.parses set created_at = now() - interval '2 hours'")
        assert await project.owner.fetchval("select ingest.sweep_parses($1)", HOUR) == 1
        asking = asyncio.create_task(project.begin_parse(second, BYTES))
        assert await project.waits(asking, project.worker)
    assert (await asking)["outcome"] == "parse"
