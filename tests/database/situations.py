"""Broken situations, made through the queue's own functions and by the worker's own errors, and what `explain` says."""

from __future__ import annotations

import json
import random
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import asyncpg

from tests.database.project import Project
from worker.db.pool import Database
from worker.errors import IngestError
from worker.model import Claim
from worker.operate.explain.facts import Facts
from worker.operate.explain.report import explain
from worker.queue.attempt import Attempts
from worker.queue.leases import Held

Work = Callable[[Claim, Path, Callable[[bool], None]], Awaitable[None]]


class Situations:
    """A project, a worker's pool on it, and attempts that end as they are told."""

    def __init__(self, project: Project, db: Database, directory: Path) -> None:
        self.project = project
        self.db = db
        self.directory = directory

    async def worker_lives(self) -> UUID:
        """Let a worker's heartbeat be seen, where heartbeats are written."""
        worker = uuid4()
        if await self.project.owner.fetchval("select to_regclass('ingest.workers') is not null"):
            await self.project.admin.execute(
                "insert into ingest.workers (worker_id, started_at, seen_at, version, git_sha, pid, host, slots,"
                " running, wake_way, embedder, model, parser, sandbox)"
                " values ($1, now(), now(), '1', 'abc', 1, 'here', 4, 0, 'listen', 'local', 'm', 'local', 'ns')",
                worker,
            )
        return worker

    async def workers_die(self) -> None:
        """Let the last heartbeat be long ago, and the last claim too."""
        if await self.project.owner.fetchval("select to_regclass('ingest.workers') is not null"):
            await self.project.admin.execute("update ingest.workers set seen_at = now() - interval '5 minutes'")
        await self.project.admin.execute("update public.job_events set at = at - interval '5 minutes'")

    async def job(self, name: str = "a.txt", tenant: UUID | None = None) -> int:
        """Upload a file; return its job."""
        document = await self.project.upload(tenant or await self.project.user(), name)
        found: int = await self.project.owner.fetchval("select id from public.jobs where document_id = $1", document)
        return found

    async def claim(self, job: int) -> Claim:
        """Claim this job, which is due, and whatever else is."""
        for row in await self.project.claim():
            if row["job_id"] == job:
                values = dict(row)
                return Claim(number=values.pop("claim"), **values)
        raise AssertionError(f"job {job} was not given out")

    async def attempt(self, job: int, work: Work | IngestError) -> Claim:
        """Claim the job and let the worker's own code settle what `work` raises."""
        await self.project.admin.execute("update public.jobs set scheduled_at = now() where id = $1", job)
        await self.project.owner.fetchval(
            "select ingest.take_turn(tenant_id) from public.jobs where id = $1 and state = 'available'", job
        )
        claim = await self.claim(job)
        await self.run(claim, work)
        return claim

    async def run(self, claim: Claim, work: Work | IngestError) -> None:
        """Work on a claim until it is settled."""

        async def failing(_claim: Claim, _path: Path, _settling: Callable[[bool], None]) -> None:
            assert isinstance(work, IngestError)
            raise work

        chosen = failing if isinstance(work, IngestError) else work
        await Attempts(self.db, chosen, self.directory, 30, random.Random(1)).run(Held(claim))

    async def lose(self, job: int) -> None:
        """Let the worker that holds the job die: its lease runs out."""
        await self.project.owner.execute(
            "update ingest.leases set expires_at = now() - interval '1 second' where job_id = $1", job
        )

    async def rescue(self) -> None:
        """Sweep as every worker does."""
        await self.project.worker.execute("select ingest.rescue_jobs()")

    async def past(self, job: int, seconds: float) -> None:
        """Let all that happened to this job be so much longer ago."""
        for sql in (
            "update public.jobs set created_at = created_at - make_interval(secs => $2), started_at = started_at"
            " - make_interval(secs => $2), scheduled_at = scheduled_at - make_interval(secs => $2) where id = $1",
            "update public.job_events set at = at - make_interval(secs => $2) where job_id = $1",
        ):
            await self.project.admin.execute(sql, job, seconds)

    async def explain(self, job: int | None, document: UUID | None = None, *, cap: int = 4) -> dict[str, Any]:
        """Ask as the worker's login, and return the report as it is printed."""
        told = await self.project.worker.fetchval("select ingest.explain_job($1, $2)", job, document)
        assert told is not None
        report: dict[str, Any] = json.loads(json.dumps(explain(Facts(json.loads(told), tenant_cap=cap))))
        return report

    async def until(self, job: int) -> str:
        """Return until when a job sleeps, as the report writes it."""
        at = await self.project.owner.fetchval("select scheduled_at from public.jobs where id = $1", job)
        return str(at.isoformat())


def claim_of(row: asyncpg.Record) -> Claim:
    """Make of a row what the worker holds."""
    values = dict(row)
    return Claim(number=values.pop("claim"), **values)


def said(report: dict[str, Any]) -> tuple[str, str, bool | None]:
    """Return what the report comes to: the rule, the layer, and whether it heals by itself."""
    return report["cause"]["rule"], report["cause"]["layer"], report["heals"]["by_itself"]
