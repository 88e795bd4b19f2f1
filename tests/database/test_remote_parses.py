"""Parses that are sent away: whoever sent one may go, nobody is stranded, and nothing is sent twice without need."""

from __future__ import annotations

import asyncio
from datetime import timedelta

import asyncpg
import pytest

from tests.conftest import Database
from tests.database.project import STALE, Pair, Project

BYTES = "the same bytes"
NOW, HOUR = timedelta(0), timedelta(hours=1)


async def begin(project: Project, claim: asyncpg.Record) -> asyncpg.Record:
    return await project.begin_parse(claim, BYTES, parser="remote")


async def note(project: Project, claim: asyncpg.Record, parse: int, ref: str = "r1", first: timedelta = NOW) -> None:
    await project.worker.execute(
        "select ingest.note_submitted($1, $2, $3, $4, $5)", claim["job_id"], claim["claim"], parse, ref, first
    )


async def send(project: Project, claim: asyncpg.Record, ref: str = "r1", first: timedelta = NOW) -> int:
    """Send the bytes away, and let the job sleep."""
    parse = await begin(project, claim)
    assert parse["outcome"] == "parse"
    await note(project, claim, parse["parse_id"], ref, first)
    await sleep(project, claim)
    found: int = parse["parse_id"]
    return found


async def sleep(project: Project, claim: asyncpg.Record) -> None:
    await project.worker.execute(
        "select ingest.snooze_job($1, $2, '1 hour', 'parse_remote', 'm', 'r', true)", claim["job_id"], claim["claim"]
    )


async def take(project: Project, lease: timedelta = HOUR) -> list[asyncpg.Record]:
    rows: list[asyncpg.Record] = await project.worker.fetch("select * from ingest.take_polls('remote', 10, $1)", lease)
    return rows


async def finish(project: Project, parse: int, ref: str = "r1") -> bool:
    said: bool = await project.worker.fetchval("select ingest.finish_remote_parse($1, $2, 0, null, '{}')", parse, ref)
    return said


async def resubmit(project: Project, parse: int, ref: str = "r1") -> str | None:
    said: str | None = await project.worker.fetchval(
        "select ingest.resubmit_parse($1, $2, 'parse_job_unknown', 'It was lost.')", parse, ref
    )
    return said


async def state(project: Project, parse: int) -> str:
    found: str = await project.owner.fetchval("select state from ingest.parses where id = $1", parse)
    return found


async def test_a_reference_is_stored_before_the_first_poll_and_only_by_whom_the_row_names(
    project: Project, pair: Pair
) -> None:
    first, second = pair
    parse = await begin(project, first)
    assert await take(project) == []  # nothing to ask for before the reference is there
    with pytest.raises(asyncpg.PostgresError) as refused:
        await note(project, second, parse["parse_id"])
    assert refused.value.sqlstate == STALE
    await note(project, first, parse["parse_id"], first=HOUR)
    assert await take(project) == []
    await project.owner.execute("update ingest.parses set next_poll_at = now()")
    (row,) = await take(project)
    assert (row["remote_ref"], row["job_id"], row["claim"], row["document_id"]) == (
        "r1", first["job_id"], first["claim"], first["document_id"],
    )  # fmt: skip


async def test_the_reference_of_a_job_that_lost_its_lease_is_kept_unless_another_took_over(
    project: Project, pair: Pair
) -> None:
    first, second = pair
    parse = await begin(project, first)
    await project.owner.execute("delete from ingest.leases where job_id = $1", first["job_id"])
    await note(project, first, parse["parse_id"])
    assert (await begin(project, second))["outcome"] == "waiting"


async def test_a_submitter_whose_parse_was_taken_over_stores_nothing(project: Project, pair: Pair) -> None:
    first, second = pair
    parse = await begin(project, first)
    await project.owner.execute("delete from ingest.leases where job_id = $1", first["job_id"])
    assert (await begin(project, second))["outcome"] == "parse"
    with pytest.raises(asyncpg.PostgresError) as refused:
        await note(project, first, parse["parse_id"], "r1")
    assert refused.value.sqlstate == STALE
    await note(project, second, parse["parse_id"], "r2")
    assert await project.owner.fetchval("select remote_ref from ingest.parses") == "r2"


async def test_what_is_sent_away_is_sent_once_for_two_documents_and_wakes_both(project: Project, pair: Pair) -> None:
    first, second = pair
    parse = await send(project, first)
    assert (await begin(project, second))["outcome"] == "waiting"
    await sleep(project, second)
    assert await project.claim() == []
    assert await finish(project, parse)
    woken = await project.claim()
    assert {row["job_id"] for row in woken} == {first["job_id"], second["job_id"]}
    assert [(await begin(project, row))["outcome"] for row in woken] == ["done", "done"]


async def test_a_row_that_is_taken_is_nobody_elses_until_its_lease_ends_and_is_not_locked(
    project: Project, database: Database, pair: Pair
) -> None:
    parse = await send(project, pair[0])
    assert [row["parse_id"] for row in await take(project, timedelta(milliseconds=200))] == [parse]
    assert await take(project) == []
    other = await database.connect("ingest_worker")
    await other.execute("set lock_timeout = '1s'")
    assert await other.fetchval("select ingest.poll_again($1, 'r1', $2)", parse, NOW)
    assert [row["parse_id"] for row in await take(project)] == [parse]
    await project.owner.execute("update ingest.parses set next_poll_at = now()")
    assert len(await take(project)) == 1


async def test_pollers_that_ask_at_once_share_the_rows(project: Project, database: Database) -> None:
    user = await project.user()
    for number in range(6):
        await project.upload(user, f"{number}")
    for number, claim in enumerate(await project.claim()):
        parse = await project.begin_parse(claim, f"bytes {number}", parser="remote")
        await note(project, claim, parse["parse_id"], f"r{number}")
    pollers = [await database.connect("ingest_worker") for _ in range(4)]
    shares = await asyncio.gather(
        *(p.fetch("select * from ingest.take_polls('remote', 3, '1 minute')") for p in pollers)
    )
    taken = [row["remote_ref"] for share in shares for row in share]
    taken += [row["remote_ref"] for row in await take(project)]
    assert sorted(taken) == [f"r{number}" for number in range(6)]


async def test_the_rows_of_another_parser_are_left_alone(project: Project, pair: Pair) -> None:
    await send(project, pair[0])
    assert await project.worker.fetch("select * from ingest.take_polls('another', 10, '1 minute')") == []


@pytest.mark.parametrize("how", ["it is deleted", "its worker dies", "it is overwritten"])
async def test_the_end_of_whoever_sent_it_strands_nobody(project: Project, pair: Pair, how: str) -> None:
    first, second = pair
    parse = await send(project, first)
    await begin(project, second)
    await sleep(project, second)
    match how:
        case "it is deleted":
            await project.owner.execute("select ingest.remove_document($1)", first["document_id"])
        case "its worker dies":
            await project.owner.execute("delete from ingest.leases")
        case "it is overwritten":
            await project.overwrite(first["document_id"])
            await project.claim()  # the new generation, in other hands
    (row,) = await take(project)
    assert row["parse_id"] == parse
    assert await finish(project, parse)
    woken = {row["job_id"]: row for row in await project.claim()}
    assert (await begin(project, woken[second["job_id"]]))["outcome"] == "done"


async def test_a_parse_whose_documents_are_all_gone_is_asked_for_no_more_and_swept(
    project: Project, pair: Pair
) -> None:
    parse = await send(project, pair[0])
    await project.owner.execute("select ingest.remove_document($1)", pair[0]["document_id"])
    assert await take(project) == []
    await project.owner.execute("update ingest.parses set created_at = now() - interval '2 hours'")
    assert await project.worker.fetchval("select ingest.sweep_parses($1)", HOUR) == 1
    assert await finish(project, parse) is False


async def test_the_sweep_keeps_a_parse_that_somebody_waits_for(project: Project, pair: Pair) -> None:
    await send(project, pair[0])
    await project.owner.execute("update ingest.parses set created_at = now() - interval '2 hours'")
    assert await project.worker.fetchval("select ingest.sweep_parses($1)", HOUR) == 0


async def test_a_failure_is_told_to_all_who_wait_and_also_to_the_job_that_sent_it(project: Project, pair: Pair) -> None:
    first, second = pair
    parse = await send(project, first)
    await begin(project, second)
    await sleep(project, second)
    assert await project.worker.fetchval(
        "select ingest.fail_remote_parse($1, 'r1', 'pdf_encrypted', 'It has a password.')", parse
    )
    for claim in await project.claim():
        told = await begin(project, claim)
        assert (told["outcome"], told["error_code"]) == ("failed", "pdf_encrypted")


async def test_a_manual_retry_of_any_job_sends_a_failed_parse_again(project: Project, pair: Pair) -> None:
    first, second = pair
    parse = await send(project, first)
    await begin(project, second)
    await sleep(project, second)
    await project.worker.execute("select ingest.fail_remote_parse($1, 'r1', 'file_corrupt', 'Damaged.')", parse)
    for claim in await project.claim():
        await project.worker.execute(
            "select ingest.discard_job($1, $2, 'file_corrupt', 'Damaged.', null)", claim["job_id"], claim["claim"]
        )
    await project.worker.execute("select ingest.retry_discarded($1)", second["job_id"])
    again = await project.claim_one()
    assert again["job_id"] == second["job_id"]
    told = await begin(project, again)
    assert (told["outcome"], told["parse_id"]) == ("parse", parse)


async def test_a_lost_parse_is_sent_once_more_by_the_first_that_comes_and_then_has_failed(
    project: Project, pair: Pair
) -> None:
    first, second = pair
    parse = await send(project, first)
    await begin(project, second)
    await sleep(project, second)
    assert await resubmit(project, parse) == "submitting"
    one, two = await project.claim()
    assert (await begin(project, one))["outcome"] == "parse"
    assert (await begin(project, two))["outcome"] == "taken"
    await note(project, one, parse, "r2")
    assert await resubmit(project, parse, "r1") is None  # an answer to the first submission
    assert await state(project, parse) == "waiting"
    assert await resubmit(project, parse, "r2") == "failed"
    assert (await begin(project, two))["error_code"] == "parse_job_unknown"


async def test_a_parse_that_is_lost_before_the_waiting_job_sleeps_wakes_it_all_the_same(
    project: Project, pair: Pair
) -> None:
    first, second = pair
    parse = await send(project, first)
    assert (await begin(project, second))["outcome"] == "waiting"
    await project.owner.execute("select ingest.remove_document($1)", first["document_id"])
    await resubmit(project, parse)
    await sleep(project, second)
    assert (await begin(project, await project.claim_one()))["outcome"] == "parse"


async def test_a_transient_failure_while_submitting_leaves_the_parse_to_others(project: Project, pair: Pair) -> None:
    first, second = pair
    await begin(project, first)
    assert (await begin(project, second))["outcome"] == "taken"
    await project.worker.execute(
        "select ingest.retry_job($1, $2, '1 hour', 'parser_failed', 'm', 'r')", first["job_id"], first["claim"]
    )
    await sleep(project, second)  # finds that nobody sends it
    assert (await begin(project, await project.claim_one()))["outcome"] == "parse"


async def test_only_the_answer_that_it_waits_for_changes_a_parse(project: Project, pair: Pair) -> None:
    parse = await send(project, pair[0])
    calls = (
        "hold_remote_parse($1, $2)", "poll_again($1, $2, '1 s')", "finish_remote_parse($1, $2, 0, null, '{}')",
        "fail_remote_parse($1, $2, 'c', 'm')",
    )  # fmt: skip
    for call in calls:
        assert await project.worker.fetchval(f"select ingest.{call}", parse, "another") is False, call
    assert await finish(project, parse)
    for call in calls:
        assert await project.worker.fetchval(f"select ingest.{call}", parse, "r1") is False, call


async def test_of_two_pollers_with_the_same_answer_one_waits_and_finds_it_done(
    project: Project, database: Database, pair: Pair
) -> None:
    parse = await send(project, pair[0])
    other = await database.connect("ingest_worker")
    async with project.worker.transaction():
        assert await project.worker.fetchval("select ingest.hold_remote_parse($1, 'r1')", parse)
        late = asyncio.create_task(other.fetchval("select ingest.hold_remote_parse($1, 'r1')", parse))
        assert await project.waits(late, other)
        await finish(project, parse)
    assert await late is False


async def test_a_parse_that_takes_too_long_has_failed_with_a_code_of_its_own(project: Project, pair: Pair) -> None:
    await send(project, pair[0])
    expire = "select ingest.expire_parses('2 hours')"
    assert await project.worker.fetchval(expire) == 0
    await project.owner.execute("update ingest.parses set submitted_at = now() - interval '3 hours'")
    assert await project.worker.fetchval(expire) == 1
    told = await begin(project, await project.claim_one())
    assert (told["outcome"], told["error_code"]) == ("failed", "parse_too_slow")


async def test_the_first_comparison_with_the_text_layer_stays(project: Project, pair: Pair) -> None:
    parse = await send(project, pair[0])
    noting = "select ingest.note_fidelity($1, $2, $3)"
    assert await project.worker.fetchval(noting, parse, 0.4, "Too little.") is False  # not there yet
    await finish(project, parse)
    assert await project.worker.fetchval(noting, parse, 0.4, "Too little.") is True
    assert await project.worker.fetchval(noting, parse, 0.9, None) is False
    row = await project.owner.fetchrow("select fidelity, notes from ingest.parses")
    assert row is not None
    assert (round(row["fidelity"], 2), row["notes"]) == (0.4, ["Too little."])
