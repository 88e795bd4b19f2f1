"""Workers that are killed or stopped in the middle of a job; alone, or beside others that must not be harmed."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path

import pytest

from local.errors import StackError
from local.stack import Stack
from local.worker_process import working
from tests.integration.killing_worker import POISON
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


async def test_a_document_that_kills_its_worker_costs_three_leases_and_its_neighbours_are_ready(
    stack: Stack, temporary_directory: Path, project: Project, ada: Person
) -> None:
    log = temporary_directory / "poisoned-worker.log"
    poison = await ada.upload("poison.md", POISON, mime_type="text/markdown")
    others = [await ada.upload(f"{n}.md", f"Neighbour {n}.".encode(), mime_type="text/markdown") for n in range(5)]
    for _ in range(3):
        async with working(stack, log, module="tests.integration.killing_worker", SLUICE_LEASE_SECONDS="2") as worker:
            with pytest.raises(StackError, match="exit status -9"):
                async with asyncio.timeout(60):
                    await worker.ended()
    async with working(stack, log, module="tests.integration.killing_worker", SLUICE_LEASE_SECONDS="2"):
        ended = [await project.settled(path) for path in [poison, *others]]

    assert (ended[0]["state"], ended[0]["error_code"]) == ("failed", "worker_lost")
    assert [document["state"] for document in ended[1:]] == ["ready"] * 5
    events = [event["event"] for event in await project.events(poison)]
    assert (events.count("claim"), events.count("rescue")) == (3, 3)
    for path in others:  # each was beside it once at most
        assert [event["event"] for event in await project.events(path)].count("rescue") <= 1


async def test_a_rolling_deploy_loses_nothing_and_charges_nobody(
    stack: Stack, temporary_directory: Path, project: Project, ada: Person
) -> None:
    left = asyncio.Event()

    async def stream() -> list[str]:
        paths = []
        for number in range(60):
            if number == 40:
                await left.wait()
            paths.append(await ada.upload(f"{number}.md", f"Small file {number}.".encode(), mime_type="text/markdown"))
        return paths

    log = temporary_directory / "rolling-worker.log"
    async with working(stack, log, SLUICE_DRAIN_SECONDS="0") as old:
        uploading = asyncio.create_task(stream())
        await project.until(
            "select count(*) as ready from public.documents where tenant_id = $1::uuid and state = 'ready'",
            ada.id,
            when=lambda row: row["ready"] >= 5,
        )
        async with working(stack, log):  # the new one comes up while the old one leaves
            os.kill(old.pid, signal.SIGTERM)
            with pytest.raises(StackError, match="exit status 0"):
                await old.ended()
            left.set()
            ended = [await project.settled(path) for path in await uploading]

    assert [document["state"] for document in ended] == ["ready"] * 60
    jobs = await project.connection.fetch("select * from public.jobs where tenant_id = $1::uuid", ada.id)
    assert [(job["state"], job["attempt"], job["rescues"]) for job in jobs] == [("completed", 1, 0)] * 60
    completions = await project.connection.fetchval(
        "select count(*) from public.job_events where tenant_id = $1::uuid and event = 'complete'", ada.id
    )
    assert completions == 60
    assert await project.count("ingest.leases", ada.id) == 0
