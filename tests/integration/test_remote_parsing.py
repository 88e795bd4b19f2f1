"""Files that a service reads: jobs that sleep meanwhile, pages that come back, and nothing that is paid for twice.

The service is a script, the database, the pipeline, the sandbox and the embedder are the real ones.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from pathlib import Path
from uuid import UUID

import pytest

from local.install import MODELS
from tests.conftest import Database as MigratedDatabase
from tests.database.project import Project
from tests.integration.remote_world import LOST, PAGES, World
from tests.remote_parser import pages
from worker.__main__ import tell_ledger
from worker.db.pool import Database
from worker.errors import Misconfigured, Rejected, Throttled, Transient, Unavailable
from worker.model import Parsed
from worker.pipeline.embed.local import LocalEmbedder
from worker.pipeline.ledger import Ledger
from worker.queue.leases import Held
from worker.queue.maintenance import Maintenance
from worker.queue.polls import Polls, Sent


@pytest.fixture(scope="module")
async def embedder() -> AsyncIterator[LocalEmbedder]:
    made = LocalEmbedder(MODELS)
    yield made
    await made.aclose()


@pytest.fixture
async def world(database: MigratedDatabase, embedder: LocalEmbedder, tmp_path: Path) -> AsyncIterator[World]:
    db = await Database.open(database.url("ingest_worker"), size=6)
    made = World(await Project(database).open(), db, embedder, tmp_path)
    yield made
    await made.batcher.aclose()
    await made.local.aclose()
    await db.close()


@pytest.fixture
async def tenant(world: World) -> UUID:
    return await world.sql.user()


async def test_a_job_sleeps_without_slot_charge_or_event_while_the_service_reads_and_goes_on_with_its_pages(
    world: World, tenant: UUID
) -> None:
    stored = await world.upload(tenant)
    await world.work()
    job = await world.job()
    assert (job["state"], job["attempt"], job["error_code"]) == ("available", 0, "parse_remote")
    assert await world.sql.owner.fetchval("select count(*) from ingest.leases") == 0
    assert await world.sql.owner.fetchval("select scheduled_at > now() + interval '50 minutes' from public.jobs")
    asleep = await world.sql.events(job["id"])

    for _ in range(3):
        await world.poll()
    assert await world.work() == 0
    assert await world.sql.events(job["id"]) == asleep
    world.parser.answers = [pages(*PAGES, notes=("Pages that could not be read: 3",))]
    await world.poll()
    assert await world.work() == 1

    document = await world.sql.told(stored)
    assert (document["state"], document["page_count"], document["title"]) == ("ready", 2, None)
    texts = await world.sql.owner.fetch("select markdown from public.pages order by page")
    assert [row["markdown"] for row in texts] == list(PAGES)
    parse = await world.parse()
    assert (parse["state"], parse["mime_type"], parse["notes"]) == (
        "done", "text/markdown", ["Pages that could not be read: 3"],
    )  # fmt: skip
    assert len(world.parser.submitted) == 1
    ((sent, parsed),) = world.spent
    assert (sent.job_id, sent.document_id, sent.reference, parsed.credits) == (job["id"], stored, "job-1", 6.0)


async def test_what_came_back_is_in_the_ledger_once_also_when_two_pollers_have_it(world: World, tenant: UUID) -> None:
    stored = await world.upload(tenant)
    await world.work()
    world.parser.answers = [pages(*PAGES)]
    ledger = Ledger(world.db)
    polls = Polls(world.db, world.parser, tell_ledger(ledger, world.parser))
    held: list[Sent] = []

    async def hold(sent: Sent, parsed: Parsed) -> None:
        held.append(sent)
        await tell_ledger(ledger, world.parser)(sent, parsed)
        await world.sql.owner.execute("update ingest.parses set next_poll_at = now()")
        await polls.take_turn()  # another worker's poller, which ends it first

    await world.sql.owner.execute("update ingest.parses set next_poll_at = now()")
    await Polls(world.db, world.parser, hold).take_turn()
    await ledger.aclose()
    rows = await world.sql.owner.fetch("select document_id, provider, model, pages, requests from ingest.usage")
    assert [tuple(row.values()) for row in rows] == [(stored, "scripted", "any", 2, 1)]
    assert (len(held), len(world.parser.polled), (await world.parse())["state"]) == (1, 2, "done")
    assert await world.sql.owner.fetchval("select count(*) from public.pages") == 2


async def test_pages_that_come_when_the_file_was_sent_anew_are_not_kept(world: World, tenant: UUID) -> None:
    await world.upload(tenant)
    await world.work()
    world.parser.answers = [pages("Of the first submission.")]

    async def meanwhile(sent: Sent, parsed: Parsed) -> None:
        await world.sql.owner.execute("select ingest.resubmit_parse($1, $2, 'c', 'm')", sent.parse_id, sent.reference)

    await world.sql.owner.execute("update ingest.parses set next_poll_at = now()")
    await Polls(world.db, world.parser, meanwhile).take_turn()
    assert await world.sql.owner.fetchval("select count(*) from public.pages") == 0
    await world.work()
    world.parser.answers = [pages(*PAGES)]
    await world.poll()
    await world.work()
    assert await world.sql.owner.fetchval("select state from public.documents") == "ready"


async def test_polls_come_five_seconds_apart_at_least_and_grow_to_a_minute(world: World, tenant: UUID) -> None:
    await world.upload(tenant)
    await world.work()
    assert 4 < (await world.parse())["pause"].total_seconds() <= 5
    pauses = []
    for age in (1, 60, 3600):
        await world.sql.owner.execute("update ingest.parses set submitted_at = now() - $1 * interval '1 s'", age)
        await world.poll()
        pauses.append((await world.parse())["pause"].total_seconds())
    assert pauses == pytest.approx([5, 15, 60], abs=1)


async def test_two_documents_with_the_same_bytes_make_one_submit(world: World, tenant: UUID) -> None:
    for name in ("one.md", "two.md", "three.md"):
        await world.upload(tenant, name)
    world.parser.taken.clear()
    working = asyncio.create_task(world.work())
    await world.sql.until("select count(*) = 2 from public.jobs where error_code = 'parse_in_progress'")
    world.parser.taken.set()
    await working
    world.parser.answers = [pages(*PAGES)]
    await world.poll()
    await world.sql.owner.execute("update public.jobs set scheduled_at = now() where state = 'available'")
    assert await world.work() == 3
    assert len(world.parser.submitted) == 1
    assert await world.sql.owner.fetchval("select count(*) from public.documents where state = 'ready'") == 3


async def test_a_death_between_request_and_reference_repeats_one_submit_for_two_documents(
    world: World, tenant: UUID
) -> None:
    await world.upload(tenant, "one.md")
    await world.upload(tenant, "two.md")
    world.parser.taken.clear()  # the request is there, the answer is not
    first, second = await world.claim()
    attempts = world.attempts()
    dying = asyncio.create_task(attempts.run(Held(first)))
    while not world.parser.submitted:  # noqa: ASYNC110
        await asyncio.sleep(0.01)
    dying.cancel()
    await asyncio.wait([dying])
    await world.sql.owner.execute("delete from ingest.leases where job_id = $1", first.job_id)
    world.parser.taken.set()

    await attempts.run(Held(second))
    await world.sql.owner.execute("select ingest.rescue_jobs()")
    await world.sql.owner.execute("update public.jobs set scheduled_at = now() where state = 'available'")
    await world.work()
    assert len(world.parser.submitted) == 2
    assert (await world.parse())["state"] == "waiting"


async def test_a_death_after_the_reference_repeats_nothing(world: World, tenant: UUID) -> None:
    await world.upload(tenant)
    await world.work()
    await world.sql.owner.execute("update public.jobs set scheduled_at = now()")
    (claim,) = await world.claim()
    await world.sql.owner.execute("delete from ingest.leases")
    await world.attempts().run(Held(claim))
    assert len(world.parser.submitted) == 1


async def test_the_deletion_of_the_document_that_sent_it_strands_nobody(world: World, tenant: UUID) -> None:
    sender = await world.upload(tenant, "one.md")
    await world.work()
    other = await world.upload(tenant, "two.md")
    await world.work()
    await world.sql.remove(tenant, sender)
    world.parser.answers = [pages(*PAGES)]
    await world.poll()
    await world.work()
    assert (await world.sql.told(other))["state"] == "ready"
    assert len(world.parser.submitted) == 1


async def test_a_parse_that_nobody_wants_is_not_asked_for(world: World, tenant: UUID) -> None:
    stored = await world.upload(tenant)
    await world.work()
    await world.sql.remove(tenant, stored)
    await world.poll()
    assert world.parser.polled == []


async def test_a_refusal_of_the_file_is_every_waiting_documents_verdict(world: World, tenant: UUID) -> None:
    await world.upload(tenant, "one.md")
    await world.work()
    await world.upload(tenant, "two.md")
    await world.work()
    world.parser.answers = [Rejected("pdf_encrypted", "It has a password.")]
    await world.poll()
    await world.work()
    jobs = await world.sql.owner.fetch("select state, error_code, error_message from public.jobs")
    assert {tuple(row.values()) for row in jobs} == {("discarded", "pdf_encrypted", "It has a password.")}
    assert len(world.parser.submitted) == 1


async def test_a_parse_that_the_service_lost_is_sent_once_more_and_no_oftener(world: World, tenant: UUID) -> None:
    await world.upload(tenant)
    await world.work()
    world.parser.answers = [LOST]
    await world.poll()
    assert await world.work() == 1
    assert len(world.parser.submitted) == 2
    await world.poll()
    await world.work()
    assert world.parser.polled == ["job-1", "job-2"]
    job = await world.job()
    assert (job["state"], job["error_code"], len(world.parser.submitted)) == ("discarded", "parse_job_unknown", 2)


@pytest.mark.parametrize(
    ("error", "pause"),
    [
        (Throttled("provider_rate_limited", "Wait.", retry_after=40), 40),
        (Throttled("provider_rate_limited", "Wait.", retry_after=1e9), 3600),
        (Unavailable("parser_unreachable", "It does not answer."), 5),
        (Transient("parser_failed", "It failed."), 5),
        (Misconfigured("parser_key_refused", "The key is wrong."), 300),
        (ZeroDivisionError("a bug"), 150),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else str(value),
)
async def test_what_is_no_verdict_is_polled_again_later(
    world: World, tenant: UUID, error: Exception, pause: float
) -> None:
    await world.upload(tenant)
    await world.work()
    world.parser.answers = [error, pages(*PAGES)]
    await world.poll()
    parse = await world.parse()
    assert (parse["state"], round(parse["pause"].total_seconds())) == ("waiting", pause)
    alerts = await world.sql.owner.fetchval("select count(*) from ingest.alerts where resolved_at is null")
    assert alerts == (1 if isinstance(error, Misconfigured) else 0)
    await world.poll()
    assert (await world.parse())["state"] == "done"


async def test_a_parse_that_stays_away_too_long_fails_with_its_code(world: World, tenant: UUID) -> None:
    await world.upload(tenant)
    await world.work()
    await world.sql.owner.execute("update ingest.parses set submitted_at = now() - interval '3 hours'")
    assert await Maintenance(world.db, randomness=random.Random(1)).expire_parses() == 1
    await world.work()
    assert (await world.job())["error_code"] == "parse_too_slow"


@pytest.mark.parametrize(
    "error",
    [
        Throttled("provider_rate_limited", "Wait.", retry_after=3000),
        Unavailable("parser_unreachable", "It does not answer."),
        Misconfigured("parser_no_credits", "No credits."),
        Transient("parser_failed", "It failed."),
    ],
    ids=lambda error: type(error).__name__,
)
async def test_a_submit_that_fails_for_now_leaves_the_file_to_the_next_document(
    world: World, tenant: UUID, error: Exception
) -> None:
    await world.upload(tenant, "one.md")
    world.parser.refusals = [error]
    await world.work()
    assert (await world.job())["state"] == "available"
    await world.upload(tenant, "two.md")
    await world.work()
    assert (await world.parse())["state"] == "waiting"
    assert len(world.parser.submitted) == 1


async def test_a_submit_that_is_refused_for_good_is_remembered(world: World, tenant: UUID) -> None:
    await world.upload(tenant, "one.md")
    world.parser.refusals = [Rejected("parser_refused_file", "Not this one.")]
    await world.work()
    await world.upload(tenant, "two.md")
    await world.work()
    codes = await world.sql.owner.fetch("select error_code from public.jobs")
    assert [row["error_code"] for row in codes] == ["parser_refused_file"] * 2
    assert world.parser.submitted == []
