"""Workers that are killed or stopped in the middle of a job; no other worker runs meanwhile."""

from __future__ import annotations

import os
import signal
from pathlib import Path

from local.stack import Stack
from local.worker_process import working
from tests.people import Person, Project, handbook


async def test_after_kill_9_during_embed_the_document_is_ready_once_and_nothing_is_embedded_again(
    stack: Stack, temporary_directory: Path, project: Project, ada: Person
) -> None:
    log = temporary_directory / "dying-worker.log"
    async with working(stack, log) as first:
        path = await ada.upload("long.md", handbook(400), mime_type="text/markdown")
        await project.until(
            "select count(*) as vectors from ingest.embeddings where tenant_id = $1::uuid",
            ada.id,
            when=lambda row: row["vectors"] > 20,
        )
        os.kill(first.pid, signal.SIGKILL)
    kept = await project.connection.fetch(
        "select content_sha256, created_at from ingest.embeddings where tenant_id = $1::uuid", ada.id
    )
    assert (await project.document(path))["state"] == "processing"
    # The lease runs out on the database's clock: moved, not waited for.
    await project.connection.execute("update ingest.leases set expires_at = now() - interval '1 second'")

    async with working(stack, log):
        document = await project.settled(path, seconds=120)

    assert document["state"] == "ready"
    events = [event["event"] for event in await project.events(path)]
    assert events.count("complete") == 1
    assert events.count("rescue") == 1
    assert await project.count("public.chunks", ada.id) == document["chunk_count"]
    assert await project.embedded(path) == document["chunk_count"] - len(kept)
    unchanged = await project.connection.fetchval(
        "select count(*) from ingest.embeddings e join unnest($2::bytea[], $3::timestamptz[]) as k(sha, at)"
        " on e.content_sha256 = k.sha and e.created_at = k.at where e.tenant_id = $1::uuid",
        ada.id,
        [row["content_sha256"] for row in kept],
        [row["created_at"] for row in kept],
    )
    assert unchanged == len(kept) > 20


async def test_sigterm_hands_a_running_job_back_uncharged_and_exits_0(
    stack: Stack, temporary_directory: Path, project: Project, ada: Person
) -> None:
    log = temporary_directory / "drained-worker.log"
    async with working(stack, log, SLUICE_DRAIN_SECONDS="0"):
        path = await ada.upload("interrupted.md", handbook(400), mime_type="text/markdown")
        await project.until(
            "select stage from public.jobs where tenant_id = $1::uuid",
            ada.id,
            when=lambda row: row["stage"] == "embed",
        )

    job = await project.connection.fetchrow("select * from public.jobs where tenant_id = $1::uuid", ada.id)
    assert job is not None
    assert (job["state"], job["attempt"], job["error_code"]) == ("available", 0, "worker_stopped")
    assert await project.count("ingest.leases", ada.id) == 0
    await ada.client.storage.from_("documents").remove([path])
