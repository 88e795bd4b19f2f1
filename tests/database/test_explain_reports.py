"""What every report of `sluice jobs explain` holds, what none does, and the table of the codes that it tells."""

from __future__ import annotations

import ast
import json
import re
from pathlib import Path
from typing import Any

import pytest

from tests.database.report import check_schema
from tests.database.situations import Situations
from worker.errors import Misconfigured, Rejected, Transient, Unavailable
from worker.operate.explain.codes import CODES

REPOSITORY = Path(__file__).parents[2]
BUSY = Transient("database_busy", "The database was busy.")


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
        if file.name in ("join.py", "probe.py", "probes.py"):  # they tell of services, and end no job
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
