"""Files that a service reads: jobs that sleep meanwhile, pages that come back, and nothing that is paid for twice.

The service is a script, the database, the pipeline, the sandbox and the embedder are the real ones.
"""

from __future__ import annotations

import asyncio
import random
from uuid import UUID

import pytest

from tests.integration.remote_world import LOST, PAGES, World
from tests.remote_parser import pages
from worker.__main__ import tell_ledger
from worker.errors import Misconfigured, Rejected, Throttled, Transient, Unavailable
from worker.model import Parsed
from worker.pipeline.ledger import Ledger
from worker.queue.leases import Held
from worker.queue.maintenance import Maintenance
from worker.queue.polls import Polls, Sent


async def test_a_job_sleeps_without_slot_charge_or_event_while_the_service_reads_and_goes_on_with_its_pages(
    remote: World, tenant: UUID
) -> None:
    stored = await remote.upload(tenant)
    await remote.work()
    job = await remote.job()
    assert (job["state"], job["attempt"], job["error_code"]) == ("available", 0, "parse_remote")
    assert await remote.sql.owner.fetchval("select count(*) from ingest.leases") == 0
    assert await remote.sql.owner.fetchval("select scheduled_at > now() + interval '50 minutes' from public.jobs")
    asleep = await remote.sql.events(job["id"])

    for _ in range(3):
        await remote.poll()
    assert await remote.work() == 0
    assert await remote.sql.events(job["id"]) == asleep
    remote.parser.answers = [pages(*PAGES, notes=("Pages that could not be read: 3",))]
    await remote.poll()
    assert await remote.work() == 1

    document = await remote.sql.told(stored)
    assert (document["state"], document["page_count"], document["title"]) == ("ready", 2, None)
    texts = await remote.sql.owner.fetch("select markdown from public.pages order by page")
    assert [row["markdown"] for row in texts] == list(PAGES)
    parse = await remote.parse()
    assert (parse["state"], parse["mime_type"], parse["notes"]) == (
        "done", "text/markdown", ["Pages that could not be read: 3"],
    )  # fmt: skip
    assert len(remote.parser.submitted) == 1
    ((sent, parsed),) = remote.spent
    assert (sent.job_id, sent.document_id, sent.reference, parsed.credits) == (job["id"], stored, "job-1", 6.0)


async def test_what_came_back_is_in_the_ledger_once_also_when_two_pollers_have_it(remote: World, tenant: UUID) -> None:
    stored = await remote.upload(tenant)
    await remote.work()
    remote.parser.answers = [pages(*PAGES)]
    ledger = Ledger(remote.db)
    polls = Polls(remote.db, remote.parser, tell_ledger(ledger, remote.parser))
    held: list[Sent] = []

    async def hold(sent: Sent, parsed: Parsed) -> None:
        held.append(sent)
        await tell_ledger(ledger, remote.parser)(sent, parsed)
        await remote.sql.owner.execute("update ingest.parses set next_poll_at = now()")
        await polls.take_turn()  # another worker's poller, which ends it first

    await remote.sql.owner.execute("update ingest.parses set next_poll_at = now()")
    await Polls(remote.db, remote.parser, hold).take_turn()
    await ledger.aclose()
    rows = await remote.sql.owner.fetch("select document_id, provider, model, pages, requests from ingest.usage")
    assert [tuple(row.values()) for row in rows] == [(stored, "scripted", "any", 2, 1)]
    assert (len(held), len(remote.parser.polled), (await remote.parse())["state"]) == (1, 2, "done")
    assert await remote.sql.owner.fetchval("select count(*) from public.pages") == 2


async def test_pages_that_come_when_the_file_was_sent_anew_are_not_kept(remote: World, tenant: UUID) -> None:
    await remote.upload(tenant)
    await remote.work()
    remote.parser.answers = [pages("Of the first submission.")]

    async def meanwhile(sent: Sent, parsed: Parsed) -> None:
        await remote.sql.owner.execute("select ingest.resubmit_parse($1, $2, 'c', 'm')", sent.parse_id, sent.reference)

    await remote.sql.owner.execute("update ingest.parses set next_poll_at = now()")
    await Polls(remote.db, remote.parser, meanwhile).take_turn()
    assert await remote.sql.owner.fetchval("select count(*) from public.pages") == 0
    await remote.work()
    remote.parser.answers = [pages(*PAGES)]
    await remote.poll()
    await remote.work()
    assert await remote.sql.owner.fetchval("select state from public.documents") == "ready"


async def test_polls_come_five_seconds_apart_at_least_and_grow_to_a_minute(remote: World, tenant: UUID) -> None:
    await remote.upload(tenant)
    await remote.work()
    assert 4 < (await remote.parse())["pause"].total_seconds() <= 5
    pauses = []
    for age in (1, 60, 3600):
        await remote.sql.owner.execute("update ingest.parses set submitted_at = now() - $1 * interval '1 s'", age)
        await remote.poll()
        pauses.append((await remote.parse())["pause"].total_seconds())
    assert pauses == pytest.approx([5, 15, 60], abs=1)


async def test_two_documents_with_the_same_bytes_make_one_submit(remote: World, tenant: UUID) -> None:
    for name in ("one.md", "two.md", "three.md"):
        await remote.upload(tenant, name)
    remote.parser.taken.clear()
    working = asyncio.create_task(remote.work())
    await remote.sql.until("select count(*) = 2 from public.jobs where error_code = 'parse_in_progress'")
    remote.parser.taken.set()
    await working
    remote.parser.answers = [pages(*PAGES)]
    await remote.poll()
    await remote.sql.owner.execute("update public.jobs set scheduled_at = now() where state = 'available'")
    assert await remote.work() == 3
    assert len(remote.parser.submitted) == 1
    assert await remote.sql.owner.fetchval("select count(*) from public.documents where state = 'ready'") == 3


async def test_a_death_between_request_and_reference_repeats_one_submit_for_two_documents(
    remote: World, tenant: UUID
) -> None:
    await remote.upload(tenant, "one.md")
    await remote.upload(tenant, "two.md")
    remote.parser.taken.clear()  # the request is there, the answer is not
    first, second = await remote.claim()
    attempts = remote.attempts()
    dying = asyncio.create_task(attempts.run(Held(first)))
    while not remote.parser.submitted:  # noqa: ASYNC110
        await asyncio.sleep(0.01)
    dying.cancel()
    await asyncio.wait([dying])
    await remote.sql.owner.execute("delete from ingest.leases where job_id = $1", first.job_id)
    remote.parser.taken.set()

    await attempts.run(Held(second))
    await remote.sql.owner.execute("select ingest.rescue_jobs()")
    await remote.sql.owner.execute("update public.jobs set scheduled_at = now() where state = 'available'")
    await remote.work()
    assert len(remote.parser.submitted) == 2
    assert (await remote.parse())["state"] == "waiting"


async def test_a_death_after_the_reference_repeats_nothing(remote: World, tenant: UUID) -> None:
    await remote.upload(tenant)
    await remote.work()
    await remote.sql.owner.execute("update public.jobs set scheduled_at = now()")
    (claim,) = await remote.claim()
    await remote.sql.owner.execute("delete from ingest.leases")
    await remote.attempts().run(Held(claim))
    assert len(remote.parser.submitted) == 1


async def test_the_deletion_of_the_document_that_sent_it_strands_nobody(remote: World, tenant: UUID) -> None:
    sender = await remote.upload(tenant, "one.md")
    await remote.work()
    other = await remote.upload(tenant, "two.md")
    await remote.work()
    await remote.sql.remove(tenant, sender)
    remote.parser.answers = [pages(*PAGES)]
    await remote.poll()
    await remote.work()
    assert (await remote.sql.told(other))["state"] == "ready"
    assert len(remote.parser.submitted) == 1


async def test_a_parse_that_nobody_wants_is_not_asked_for(remote: World, tenant: UUID) -> None:
    stored = await remote.upload(tenant)
    await remote.work()
    await remote.sql.remove(tenant, stored)
    await remote.poll()
    assert remote.parser.polled == []


async def test_a_refusal_of_the_file_is_every_waiting_documents_verdict(remote: World, tenant: UUID) -> None:
    await remote.upload(tenant, "one.md")
    await remote.work()
    await remote.upload(tenant, "two.md")
    await remote.work()
    remote.parser.answers = [Rejected("pdf_encrypted", "It has a password.")]
    await remote.poll()
    await remote.work()
    jobs = await remote.sql.owner.fetch("select state, error_code, error_message from public.jobs")
    assert {tuple(row.values()) for row in jobs} == {("discarded", "pdf_encrypted", "It has a password.")}
    assert len(remote.parser.submitted) == 1


async def test_a_parse_that_the_service_lost_is_sent_once_more_and_no_oftener(remote: World, tenant: UUID) -> None:
    await remote.upload(tenant)
    await remote.work()
    remote.parser.answers = [LOST]
    await remote.poll()
    assert await remote.work() == 1
    assert len(remote.parser.submitted) == 2
    await remote.poll()
    await remote.work()
    assert remote.parser.polled == ["job-1", "job-2"]
    job = await remote.job()
    assert (job["state"], job["error_code"], len(remote.parser.submitted)) == ("discarded", "parse_job_unknown", 2)


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
    remote: World, tenant: UUID, error: Exception, pause: float
) -> None:
    await remote.upload(tenant)
    await remote.work()
    remote.parser.answers = [error, pages(*PAGES)]
    await remote.poll()
    parse = await remote.parse()
    assert (parse["state"], round(parse["pause"].total_seconds())) == ("waiting", pause)
    alerts = await remote.sql.owner.fetchval("select count(*) from ingest.alerts where resolved_at is null")
    assert alerts == (1 if isinstance(error, Misconfigured) else 0)
    await remote.poll()
    assert (await remote.parse())["state"] == "done"


async def test_a_parse_that_stays_away_too_long_fails_with_its_code(remote: World, tenant: UUID) -> None:
    await remote.upload(tenant)
    await remote.work()
    await remote.sql.owner.execute("update ingest.parses set submitted_at = now() - interval '3 hours'")
    assert await Maintenance(remote.db, randomness=random.Random(1)).expire_parses() == 1
    await remote.work()
    assert (await remote.job())["error_code"] == "parse_too_slow"


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
    remote: World, tenant: UUID, error: Exception
) -> None:
    await remote.upload(tenant, "one.md")
    remote.parser.refusals = [error]
    await remote.work()
    assert (await remote.job())["state"] == "available"
    await remote.upload(tenant, "two.md")
    await remote.work()
    assert (await remote.parse())["state"] == "waiting"
    assert len(remote.parser.submitted) == 1


async def test_a_submit_that_is_refused_for_good_is_remembered(remote: World, tenant: UUID) -> None:
    await remote.upload(tenant, "one.md")
    remote.parser.refusals = [Rejected("parser_refused_file", "Not this one.")]
    await remote.work()
    await remote.upload(tenant, "two.md")
    await remote.work()
    codes = await remote.sql.owner.fetch("select error_code from public.jobs")
    assert [row["error_code"] for row in codes] == ["parser_refused_file"] * 2
    assert remote.parser.submitted == []
