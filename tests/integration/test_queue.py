"""Attempts on a real database, with small work in the pipeline's place: their verdicts, and leases that are lost."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any
from uuid import UUID

import asyncpg
import pytest

from tests.database.project import Project
from tests.database.situations import claim_of
from tests.integration.piecework import Piece, attempts, loop_time
from worker.db.pool import Database
from worker.errors import (
    IngestError,
    Interrupted,
    Misconfigured,
    Moved,
    Rejected,
    StaleClaim,
    Superseded,
    Throttled,
    Transient,
    Unavailable,
    Waiting,
)
from worker.model import Claim
from worker.queue.leases import Held, Leases


async def held_job(sql: Project, leases: Leases, run: Callable[[Held], Awaitable[Any]]) -> tuple[UUID, Held]:
    """Upload a file, claim its job and hold it while `run` works."""
    document = await sql.upload(await sql.user())
    leases.hold(claim_of(await sql.claim_one()), lambda held: asyncio.ensure_future(run(held)), loop_time())
    (held,) = leases.held()
    return document, held


INVALID = "The file cannot be read."


@pytest.mark.parametrize(
    ("error", "state", "attempt", "code"),
    [
        (Transient("provider_failed", "Later."), "available", 1, "provider_failed"),
        (Unavailable("storage_unreachable", "Later."), "available", 0, "storage_unreachable"),
        (Throttled("provider_rate_limited", "Later.", retry_after=9), "available", 0, "provider_rate_limited"),
        (Waiting("parse_in_progress", "Later.", retry_after=9), "available", 0, "parse_in_progress"),
        (Misconfigured("provider_key", "Our key is wrong."), "available", 0, "provider_key"),
        (Interrupted("worker_stopped", "Stopped."), "available", 0, "worker_stopped"),
        (Moved("object_moved", "Renamed."), "available", 0, "object_moved"),
        (Rejected("file_corrupt", INVALID), "discarded", 1, "file_corrupt"),
        (Superseded("superseded", "Replaced."), "cancelled", 1, "superseded"),
        (RuntimeError("a secret and a https://signed.url/?token=x"), "available", 1, "internal"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else "",
)
async def test_the_class_of_an_error_decides_what_becomes_of_the_job(
    sql: Project, db: Database, tmp_path: Path, error: Exception, state: str, attempt: int, code: str
) -> None:
    async def fail(_claim: Claim) -> None:
        raise error

    await sql.upload(await sql.user())
    claim = claim_of(await sql.claim_one())

    await attempts(db, Piece(fail), tmp_path).run(Held(claim))

    job = await sql.job(claim.job_id)
    assert (job["state"], job["attempt"], job["error_code"]) == (state, attempt, code)
    assert "secret" not in (job["error_message"] or "")
    document = await sql.document(claim.document_id)
    assert document is not None
    shown = {"available": "pending", "discarded": "failed", "cancelled": "cancelled"}
    assert document["state"] == shown[state]
    if isinstance(error, IngestError):
        assert document["error_message"] == (None if error.verdict == "release" else error.public_message)


async def test_a_stale_claim_writes_nothing(sql: Project, db: Database, tmp_path: Path) -> None:
    async def fail(_claim: Claim) -> None:
        raise StaleClaim("stale_claim", "Another's.")

    await sql.upload(await sql.user())
    claim = claim_of(await sql.claim_one())
    before = dict(await sql.job(claim.job_id))

    await attempts(db, Piece(fail), tmp_path).run(Held(claim))

    assert dict(await sql.job(claim.job_id)) == before


async def test_work_that_takes_too_long_is_stopped_and_charged(sql: Project, db: Database, tmp_path: Path) -> None:
    await sql.upload(await sql.user())
    claim, work = claim_of(await sql.claim_one()), Piece()

    await attempts(db, work, tmp_path, seconds=0.05).run(Held(claim))

    job = await sql.job(claim.job_id)
    assert (job["state"], job["attempt"], job["error_code"]) == ("available", 1, "job_timeout")
    assert work.ended == [(claim.job_id, "cancelled")]


async def test_work_whose_lease_another_took_is_ended_by_the_next_renewal(
    sql: Project, db: Database, tmp_path: Path
) -> None:
    leases, work = Leases(db, lease_seconds=60, renew_seconds=15), Piece()
    document, held = await held_job(sql, leases, attempts(db, work, tmp_path).run)
    await work.begun.get()
    await sql.admin.execute("update ingest.leases set expires_at = now() - interval '1 second'")
    await sql.owner.execute("select ingest.rescue_jobs()")
    second = await sql.claim_one()

    await leases.renew()
    assert held.task is not None
    await held.task

    assert work.ended == [(held.claim.job_id, "cancelled")]
    job = await sql.job(second["job_id"])
    assert (job["state"], job["claim"]) == ("running", second["claim"])
    assert document == second["document_id"]


async def test_superseded_work_is_ended_by_the_next_renewal_and_cancelled(
    sql: Project, db: Database, tmp_path: Path
) -> None:
    leases, work = Leases(db, lease_seconds=60, renew_seconds=15), Piece()
    document, held = await held_job(sql, leases, attempts(db, work, tmp_path).run)
    await work.begun.get()
    await sql.overwrite(document)

    await leases.renew()
    assert held.task is not None
    await held.task

    assert (await sql.job(held.claim.job_id))["state"] == "cancelled"
    newer = await sql.claim_one()
    assert (newer["document_id"], newer["generation"]) == (document, 2)
    row = await sql.document(document)
    assert row is not None
    assert row["state"] == "pending"


async def test_work_ends_before_its_lease_when_no_renewal_gets_through(
    sql: Project, db: Database, tmp_path: Path
) -> None:
    class Unreachable:
        async def fetch(self, *_arguments: object) -> list[asyncpg.Record]:
            raise Transient("database_unreachable", "No answer.")

    leases = Leases(Unreachable(), lease_seconds=1.2, renew_seconds=0.1)  # type: ignore[arg-type]
    work, began = Piece(), loop_time()
    _, held = await held_job(sql, leases, attempts(db, work, tmp_path).run)
    renewing = asyncio.create_task(leases.run())
    assert held.task is not None
    await held.task
    renewing.cancel()

    assert work.ended == [(held.claim.job_id, "cancelled")]
    assert loop_time() - began < 1.2


async def test_a_job_that_settles_is_left_out_of_renewals(sql: Project, db: Database, tmp_path: Path) -> None:
    leases, work = Leases(db, lease_seconds=60, renew_seconds=15), Piece()
    _, held = await held_job(sql, leases, attempts(db, work, tmp_path).run)
    await work.begun.get()
    held.settling = True
    await sql.admin.execute("delete from ingest.leases")

    await leases.renew()

    assert held.ending is None
    held.end("lost")
    assert held.task is not None
    await held.task
