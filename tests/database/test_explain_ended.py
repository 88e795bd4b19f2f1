"""`sluice jobs explain` on jobs that have ended, what every report holds, and what none does."""

from __future__ import annotations

import ast
import json
import re
import shlex
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import click
import pytest

import worker.__main__  # noqa: F401 - adds the commands to the group
from tests.conftest import Database
from tests.database.people import as_operator, call
from tests.database.project import Project
from tests.database.situations import Situations, said
from worker.db.pool import Database as Pool
from worker.errors import Misconfigured, Rejected, Superseded, Throttled, Transient, Unavailable
from worker.model import Claim
from worker.operate.cli import sluice
from worker.operate.explain.codes import CODES, LAYERS
from worker.operate.words import moment

REPOSITORY = Path(__file__).parents[2]
BUSY = Transient("database_busy", "The database was busy.")


@pytest.fixture
async def world(project: Project, database: Database, tmp_path: Path) -> AsyncIterator[Situations]:
    db = await Pool.open(database.url("ingest_worker"), size=2)
    made = Situations(project, db, tmp_path)
    await made.worker_lives()
    yield made
    await db.close()


async def test_a_file_over_quota_says_which_limit_and_comes_back_by_itself(world: Situations) -> None:
    tenant = await world.project.user()
    job = await world.job("a.txt", tenant)
    await world.project.worker.execute("select ingest.set_quota($1, null, 0, null, null)", tenant)

    async def beginning(claim: Claim, _path: Path, _settling: Callable[[bool], None]) -> None:
        await world.db.fetchrow("begin_fetch", claim.job_id, claim.number)

    await world.attempt(job, beginning)
    report = await world.explain(job)
    assert said(report) == ("over_quota", "our code", True)
    assert report["cause"]["evidence"] == ["files: 1 of 0"]
    assert report["remedy"]["command"] == f"sluice quota set {tenant} --files N"


async def test_pages_of_a_month_come_back_with_the_next_month(world: Situations) -> None:
    tenant = await world.project.user()
    job = await world.job("a.txt", tenant)
    await world.project.worker.execute("select ingest.set_quota($1, null, null, 0, null)", tenant)

    async def beginning(claim: Claim, _path: Path, _settling: Callable[[bool], None]) -> None:
        await world.db.fetchrow("begin_fetch", claim.job_id, claim.number)

    await world.attempt(job, beginning)
    report = await world.explain(job)
    assert said(report) == ("over_quota", "our code", True)
    assert moment(report["heals"]["at"]).day == 1
    assert report["remedy"]["command"].endswith("--pages-month N")


async def test_a_file_that_was_deleted_meanwhile_has_nothing_to_heal(world: Situations) -> None:
    user = await world.project.user()
    job = await world.job("a.txt", user)
    await world.claim(job)
    await world.project.remove(user, (await world.project.job(job))["document_id"])
    report = await world.explain(job)
    assert said(report) == ("object_deleted", "storage", None)
    assert report["cause"]["evidence"] == ["the object is not in Storage", "document: gone"]
    assert report["verdict"] == "cancelled"


async def test_an_encrypted_file_is_the_owners_to_mend(world: Situations) -> None:
    job = await world.job()
    await world.attempt(job, Rejected("pdf_encrypted", "The PDF is protected by a password."))
    report = await world.explain(job)
    assert said(report) == ("encrypted", "parser", False)
    assert report["cause"]["says"] == "The PDF is protected by a password."
    assert "owner" in report["remedy"]["says"]


async def test_a_text_that_the_provider_refuses_is_told_from_a_file_that_cannot_be_read(world: Situations) -> None:
    job = await world.job()
    await world.attempt(job, Rejected("embedding_refused", "The service refuses a part.", detail="HTTP 400 bad"))
    report = await world.explain(job)
    assert said(report) == ("provider_refuses_text", "embedder", False)
    assert "raised: HTTP 400" in report["cause"]["evidence"]


async def test_a_poison_document_names_the_times_at_which_workers_were_lost(world: Situations) -> None:
    job = await world.job()
    for _ in range(3):
        await world.claim(job)
        await world.lose(job)
        await world.rescue()
    report = await world.explain(job)
    assert said(report) == ("poison", "our code", False)
    assert report["cause"]["says"].startswith(
        "Workers died or went silent 3 times while they held it, last in stage fetch"
    )
    assert len(report["cause"]["evidence"]) == 3
    assert report["remedy"]["command"] == f"sluice jobs retry {job}"


async def test_the_first_cause_is_named_and_not_the_last_symptom(world: Situations) -> None:
    job = await world.job()
    for _ in range(4):
        await world.attempt(job, Transient("embedding_failed", "The embedding service failed."))
    await world.attempt(job, BUSY)
    report = await world.explain(job)
    assert said(report) == ("attempts_used_up", "embedder", False)
    assert report["job"]["error_code"] == "database_busy"
    assert report["cause"]["says"] == (
        "All 5 attempts failed, first with embedding_failed. The last symptom was database_busy."
    )


async def test_what_was_before_a_retry_by_hand_is_history(world: Situations) -> None:
    job = await world.job()
    for _ in range(5):
        await world.attempt(job, Transient("embedding_failed", "The embedding service failed."))
    await world.project.worker.execute("select ingest.retry_by_hand(array[$1::bigint])", job)
    await world.attempt(job, BUSY)
    report = await world.explain(job)
    assert said(report) == ("backoff", "database", True)
    assert "the first one with database_busy" in report["cause"]["says"]


async def test_a_day_of_waiting_in_vain_names_what_it_waited_for(world: Situations) -> None:
    job = await world.job()
    down = Unavailable("storage_unreachable", "Storage did not answer.", detail="HTTP 503: 503 ")
    await world.attempt(job, down)
    await world.project.admin.execute("update public.jobs set snoozing_since = now() - interval '25 hours'")
    await world.attempt(job, down)
    report = await world.explain(job)
    assert said(report) == ("gave_up_waiting", "storage", False)
    assert report["cause"]["says"] == "It waited a day in vain: storage_unreachable."


async def test_a_replaced_file_points_to_its_newer_job(world: Situations) -> None:
    job = await world.job()
    await world.project.overwrite((await world.project.job(job))["document_id"])
    newer = await world.project.owner.fetchval("select max(id) from public.jobs")
    report = await world.explain(job)
    assert said(report) == ("superseded", "storage", None)
    assert report["remedy"]["command"] == f"sluice jobs explain {newer}"


async def test_a_cancelled_job_says_who_did_it(world: Situations) -> None:
    one, other = await world.job(), await world.job()
    await world.project.worker.execute("select ingest.cancel_by_hand(array[$1::bigint])", one)
    user = await world.project.user()
    await call(world.project, as_operator(world.project.admin, user), "select public.cancel_job($1)", other)
    report = await world.explain(one)
    assert said(report) == ("cancelled", "our code", False)
    assert report["cause"]["says"] == "It was cancelled by hand: login ingest_worker."
    assert report["remedy"]["command"] == f"sluice jobs retry {one}"
    assert (await world.explain(other))["cause"]["says"] == f"It was cancelled by hand: operator {user}."


async def test_a_published_file_says_where_its_time_went(world: Situations) -> None:
    user = await world.project.user()
    job = await world.job("a.txt", user)
    await world.attempt(job, Throttled("provider_rate_limited", "Wait.", retry_after=600, detail="openai: 600.0 s"))
    await world.past(job, 600)
    await world.project.ingest((await world.project.claim())[0], ["text"])
    report = await world.explain(job)
    assert said(report) == ("published", "embedder", None)
    assert report["longest_wait"]["why"] == "waiting for provider_rate_limited"
    assert 599 <= report["longest_wait"]["seconds"] <= 615
    assert "Most of it went to waiting for provider_rate_limited: 10 min." in report["cause"]["says"]
    assert report["verdict"] == "done"


async def test_a_published_file_that_waited_for_its_turn_says_so(world: Situations) -> None:
    job = await world.job()
    await world.past(job, 90)
    await world.project.ingest((await world.project.claim())[0], ["text"])
    report = await world.explain(job)
    assert said(report) == ("published", "our code", None)
    assert report["longest_wait"]["why"] == "waiting for its turn"
    assert 89 <= report["longest_wait"]["seconds"] <= 100


async def test_a_job_that_was_published_before_its_file_was_replaced_is_explained_for_itself(world: Situations) -> None:
    document = await world.project.ready(await world.project.user(), "a.txt", "text")
    job = await world.project.owner.fetchval("select id from public.jobs")
    await world.project.overwrite(document)
    assert said(await world.explain(job))[0] == "published"


async def test_the_time_until_somebody_retried_it_is_nobodys_wait(world: Situations) -> None:
    job = await world.job()
    await world.attempt(job, Rejected("no_text", "The file holds no text."))
    await world.past(job, 500)
    await world.project.worker.execute("select ingest.retry_by_hand(array[$1::bigint])", job)
    await world.project.ingest((await world.project.claim())[0], ["text"])
    longest = (await world.explain(job))["longest_wait"]
    assert (longest["layer"], longest["why"]) == ("our code", "being ended until it was retried")
    assert 499 <= longest["seconds"] <= 515


async def test_the_spans_of_a_job_add_up_to_its_life(world: Situations) -> None:
    job = await world.job()
    await world.past(job, 30)
    await world.attempt(job, BUSY)
    await world.past(job, 60)
    await world.project.ingest((await world.project.claim())[0], ["text"])
    report = await world.explain(job)
    life = moment(report["job"]["finalized_at"]) - moment(report["job"]["created_at"])
    assert sum(row["seconds"] for row in report["layers"]) == pytest.approx(life.total_seconds(), abs=1)


async def test_a_document_whose_jobs_were_pruned_is_explained_as_well(world: Situations) -> None:
    document = await world.project.ready(await world.project.user(), "a.txt", "text")
    await world.project.owner.execute("delete from public.jobs")
    assert said(await world.explain(None, document)) == ("history_pruned", "our code", None)


async def test_a_document_that_waits_without_a_job_is_mended_by_reconcile(world: Situations) -> None:
    job = await world.job()
    document = (await world.project.job(job))["document_id"]
    await world.project.owner.execute("delete from public.jobs")
    report = await world.explain(None, document)
    assert said(report) == ("no_job", "our code", True)
    assert report["remedy"]["command"] == "sluice reconcile"


async def test_an_upload_of_which_nothing_came_says_why(world: Situations) -> None:
    user = await world.project.user()
    await world.project.admin.execute(
        "insert into storage.buckets (id, name) values ('photos', 'photos') on conflict do nothing"
    )
    other = await world.project.upload(user, "a.txt", bucket="photos")
    report = await world.explain(None, other)
    assert said(report) == ("bucket_not_watched", "our code", False)
    assert report["remedy"]["command"] == "sluice backfill photos --watch"
    check_schema(report)

    nobodys = await world.project.upload("public", "a.txt")
    assert said(await world.explain(None, nobodys)) == ("no_tenant_folder", "storage", False)

    await world.project.admin.execute("alter table storage.objects disable trigger sluice_object_changed")
    missed = await world.project.upload(user, "b.txt")
    report = await world.explain(None, missed)
    assert said(report) == ("upload_missed", "database", True)
    assert report["verdict"] == "no document"
    check_schema(report)


async def test_a_file_that_cannot_be_read_is_the_owners_as_well(world: Situations) -> None:
    job = await world.job()
    await world.attempt(job, Rejected("no_text", "The file holds no text."))
    assert said(await world.explain(job)) == ("unreadable_file", "parser", False)


async def test_an_end_that_no_rule_knows_is_told_as_it_is(world: Situations) -> None:
    job = await world.job()
    await world.attempt(job, Superseded("superseded", "Replaced."))
    assert said(await world.explain(job)) == ("ended", "storage", None)


KEYS = {
    "schema", "at", "verdict", "job", "document", "object", "cause", "also", "heals", "remedy", "longest_wait", "usage",
    "layers", "timeline",
}  # fmt: skip
CAUSE = {"rule", "layer", "says", "since", "evidence", "remedy", "command"}


def assert_known(command: str) -> None:
    """Check that the command line has this command; placeholders stand for values."""
    words = shlex.split(command)
    assert words.pop(0) == "sluice"
    found: click.Command = sluice
    while isinstance(found, click.Group):
        found = found.commands[words.pop(0)]
    values = {"USD": "1", "N": "1"}
    found.make_context(found.name, [values.get(word, word) for word in words])


def check_schema(report: dict[str, Any]) -> None:
    assert report.keys() == KEYS
    assert report["schema"] == 1
    for cause in (report["cause"], *report["also"]):
        assert cause.keys() == CAUSE
        assert cause["layer"] in LAYERS
        assert cause["says"]
        assert cause["remedy"].endswith(".")
        assert all(isinstance(line, str) for line in cause["evidence"])
    assert report["heals"].keys() == {"by_itself", "at", "how"}
    assert report["remedy"].keys() == {"says", "command"}
    assert [row["layer"] for row in report["layers"]] == list(LAYERS)
    for row in report["layers"]:
        assert row.keys() == {"layer", "verdict", "seconds", "evidence"}
        assert row["verdict"] in ("cause", "trouble", "ok", "not seen")
    assert sum(row["verdict"] == "cause" for row in report["layers"]) == 1
    for command in filter(None, (report["remedy"]["command"], *(other["command"] for other in report["also"]))):
        assert_known(command)
    for entry in report["timeline"]:
        assert entry.keys() == {"at", "layer", "event", "says", "seconds", "code"}
    times = [moment(entry["at"]) for entry in report["timeline"]]
    assert times == sorted(times)


@pytest.mark.parametrize(
    "error",
    [None, BUSY, Rejected("no_text", "No text."), Misconfigured("storage_refused", "Refused."),
     Unavailable("embedding_unavailable", "Down.", detail="HTTP 503"), Transient("of_a_newer_worker", "New.")],
)  # fmt: skip
async def test_every_report_has_the_same_keys(world: Situations, error: Any) -> None:
    job = await world.job()
    check_schema(await world.explain(job))
    if error is not None:
        await world.attempt(job, error)
    else:
        await world.project.ingest((await world.project.claim())[0], ["text"])
    check_schema(await world.explain(job))


async def test_no_secret_and_no_text_of_a_document_gets_into_a_report(world: Situations) -> None:
    user = await world.project.user()
    job = await world.job("a.txt", user)
    await world.attempt(
        job,
        Misconfigured(
            "embedding_key", "The embedding service refused our key.",
            detail="HTTP 401 Incorrect API key sk-proj-abcdefgh near 'the harbour master said' at http://x/?token=hush",
        ),
    )  # fmt: skip
    await world.project.owner.execute("update public.jobs set scheduled_at = now()")
    await world.project.ingest((await world.project.claim())[0], ["the harbour master said"])
    for told in (await world.explain(job), await world.project.worker.fetchval("select ingest.explain_job($1)", job)):
        text = told if isinstance(told, str) else json.dumps(told)
        assert not any(word in text for word in ("sk-proj", "harbour", "hush", "Title"))


async def test_nobody_but_the_worker_and_the_owner_may_ask(world: Situations) -> None:
    job = await world.job()
    for role in ("anon", "authenticated", "service_role"):
        for signature in (
            "explain_job(bigint, uuid)",
            "retry_by_hand(bigint[])",
            "find_documents(uuid, text, integer)",
        ):
            assert not await world.project.owner.fetchval(
                "select has_function_privilege($1, $2, 'execute')", role, f"ingest.{signature}"
            )
    assert await world.project.worker.fetchval("select ingest.explain_job($1)", job)
    assert await world.project.worker.fetchval("select ingest.explain_job($1)", job + 1) is None


# The folders whose errors end a job; others end a command or a worker's start.
FOLDERS = ("pipeline", "queue", "db")
KINDS = {
    "Transient": "transient", "VectorsMissing": "transient", "Lost": "transient", "Throttled": "throttled",
    "Unavailable": "unavailable", "OverBudget": "budget", "Waiting": "waiting", "Interrupted": "released",
    "Moved": "released", "Rejected": "rejected", "OverQuota": "quota", "Misconfigured": "misconfigured",
    "Superseded": "superseded", "StaleClaim": "transient",
}  # fmt: skip


def raised() -> set[tuple[str, str]]:
    """Return the class and the code of every error that may end a job."""
    found = set()
    for file in (file for folder in FOLDERS for file in (REPOSITORY / "worker" / folder).rglob("*.py")):
        if file.name in ("probe.py", "probes.py"):  # they tell of services, and end no job
            continue
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in KINDS and node.args:
                first = node.args[0]
                if isinstance(first, ast.Constant) and isinstance(first.value, str):
                    found.add((node.func.id, first.value))
    return found


def test_every_code_that_the_worker_raises_is_in_the_table_with_its_kind() -> None:
    found = raised()
    assert len(found) > 60
    at_start = {
        ("Misconfigured", f"database_{why}") for why in ("unreachable", "refused", "plaintext", "tls")
    }  # fmt: skip
    assert {pair for pair in found - at_start if KINDS[pair[0]] != CODES.get(pair[1], (0, "none"))[1]} == set()


def test_every_code_that_the_database_writes_is_in_the_table() -> None:
    text = "\n".join(file.read_text() for file in sorted((REPOSITORY / "supabase" / "migrations").glob("*.sql")))
    found = set()
    for pattern in (
        r"cancel_jobs_of\([^,]+, '(\w+)'", r"p_code => '(\w+)'", r"cancel_live_jobs\([^'\n]+'(\w+)'",
        r"error_code = case when l\.given_up then '(\w+)'", r"then 'worker_lost' else '(\w+)'",
        r"fail_remote_parse\(v_parse[^';]+'(\w+)'",
    ):  # fmt: skip
        matches = set(re.findall(pattern, text))
        assert matches, pattern
        found |= matches
    assert found - CODES.keys() == set()


def test_no_code_is_in_the_table_that_nobody_writes() -> None:
    written = {code for _, code in raised()}
    by_sql = {"document_deleted", "cancelled", "lease_expired", "worker_lost", "parse_too_slow"}
    assert CODES.keys() - written - by_sql == set()
