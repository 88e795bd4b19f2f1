"""Never paid twice: real workers, killed and restarted, counted by the provider that they pay."""

from __future__ import annotations

import asyncio
import os
import signal
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import asyncpg
import pytest

from local.stack import Stack
from local.worker_process import Worker, working
from tests.embeddings import MODEL, PATH, answer, texts_of
from tests.openai_stack import SETTINGS, openai_stack
from tests.people import Person, Project, handbook
from tests.provider_double import ProviderDouble, Reply, Request

CONCURRENCY, TEXTS = 3, 16
SMALL = SETTINGS | {"SLUICE_EMBED_CONCURRENCY": str(CONCURRENCY), "SLUICE_EMBED_BATCH_TEXTS": str(TEXTS)}


@pytest.fixture(scope="module")
async def stack(temporary_directory: Path) -> AsyncIterator[Stack]:
    """A stack of this module's own: its active model is another one."""
    async with openai_stack(temporary_directory / "paid-stack") as running:
        yield running


@pytest.fixture
async def double() -> AsyncIterator[ProviderDouble]:
    async with ProviderDouble() as running:
        running.on("POST", PATH, answer)
        running.aside("GET", "/v1/models/*", Reply(200, {}))
        yield running


def paying(stack: Stack, double: ProviderDouble, directory: Path) -> AsyncIterator[Worker]:
    return working(stack, directory / "paying-worker.log", **SMALL, OPENAI_BASE_URL=f"{double.url}/v1")  # type: ignore[return-value]


async def expire_leases(project: Project) -> None:
    await project.connection.execute("update ingest.leases set expires_at = now() - interval '1 second'")


async def test_killed_with_requests_unanswered_a_worker_repeats_only_those(
    stack: Stack, temporary_directory: Path, project: Project, ada: Person, double: ProviderDouble
) -> None:
    answered, never = 4, asyncio.Event()

    def hold_from_the_fifth(request: Request) -> Reply:
        return replace(answer(request), until=never if len(double.requests) > answered else None)

    double.on("POST", PATH, hold_from_the_fifth)
    async with paying(stack, double, temporary_directory) as worker:
        paths = [
            await ada.upload(f"{n}.md", handbook(300, edition=str(n)), mime_type="text/markdown") for n in range(3)
        ]
        await double.arrived(answered + CONCURRENCY)
        stored = len(texts_of(double.requests[:answered]))
        await project.until(
            "select count(*) as vectors from ingest.embeddings where tenant_id = $1::uuid",
            ada.id,
            when=lambda row: row["vectors"] == stored,
        )
        os.kill(worker.pid, signal.SIGKILL)
    assert len(double.requests) == answered + CONCURRENCY
    unanswered = texts_of(double.requests[answered:])

    double.on("POST", PATH, answer)
    await expire_leases(project)
    async with paying(stack, double, temporary_directory):
        documents = [await project.settled(path) for path in paths]

    assert [document["state"] for document in documents] == ["ready"] * 3
    asked = Counter(texts_of(double.requests))
    assert {text for text, times in asked.items() if times > 1} == set(unanswered)
    assert max(asked.values()) == 2
    # What was paid twice is what `concurrency` requests hold, and no more.
    assert sum(asked.values()) - len(asked) <= CONCURRENCY * TEXTS
    assert await project.count("ingest.embeddings", ada.id) == len(asked)


async def test_killed_between_embed_and_publish_a_worker_pays_for_nothing_again(
    stack: Stack, temporary_directory: Path, project: Project, ada: Person, double: ProviderDouble
) -> None:
    async with paying(stack, double, temporary_directory) as worker:
        blocker = await asyncpg.connect(stack.admin_url)
        async with blocker.transaction():
            await blocker.execute("lock table public.chunks in exclusive mode")  # nobody publishes
            path = await ada.upload("once.md", handbook(30), mime_type="text/markdown")
            await project.until(
                "select count(*) as waiting from pg_locks where relation = 'public.chunks'::regclass and not granted",
                when=lambda row: row["waiting"] > 0,
            )
            os.kill(worker.pid, signal.SIGKILL)
        await blocker.close()
    paid = len(double.requests)
    assert paid > 0

    await expire_leases(project)
    async with paying(stack, double, temporary_directory):
        assert (await project.settled(path))["state"] == "ready"

    assert len(double.requests) == paid


async def test_a_small_edit_pays_for_the_changed_chunks_only_and_a_copy_for_none(
    stack: Stack, temporary_directory: Path, project: Project, ada: Person, double: ProviderDouble
) -> None:
    before = handbook(40)
    after = before.replace(b"Its crane lifts 63 tonnes", b"Its crane lifts 64 tonnes")
    assert after != before
    async with paying(stack, double, temporary_directory):
        path = await ada.upload("edited.md", before, mime_type="text/markdown")
        await project.settled(path)
        first = len(texts_of(double.requests))
        await ada.upload("edited.md", after, mime_type="text/markdown", upsert=True)
        await project.settled(path, generation=2)
        edited = texts_of(double.requests)[first:]
        copy = await ada.upload("copy.md", after, mime_type="text/markdown")
        await project.settled(copy)

    assert len(edited) == 1
    assert "64 tonnes" in edited[0]
    billed = sum(len(text.split()) for text in texts_of(double.requests))
    written = await project.connection.fetch("select * from ingest.usage where tenant_id = $1::uuid", ada.id)
    assert sum(row["tokens"] for row in written) == billed
    assert {(row["provider"], row["model"]) for row in written} == {(MODEL.provider, MODEL.name)}
    assert len(texts_of(double.requests)) == first + 1


async def test_the_same_content_is_paid_for_by_each_tenant(
    stack: Stack, temporary_directory: Path, project: Project, ada: Person, bob: Person, double: ProviderDouble
) -> None:
    async with paying(stack, double, temporary_directory):
        paths = [await person.upload("same.md", handbook(20), mime_type="text/markdown") for person in (ada, bob)]
        for path in paths:
            assert (await project.settled(path))["state"] == "ready"

    assert set(Counter(texts_of(double.requests)).values()) == {2}
    assert await project.count("ingest.embeddings", ada.id) == await project.count("ingest.embeddings", bob.id) > 0


async def test_the_limits_of_the_settings_hold_for_all_workers(
    stack: Stack, temporary_directory: Path, project: Project, ada: Person, double: ProviderDouble
) -> None:
    log = temporary_directory / "limited-worker.log"
    limits = {"SLUICE_EMBED_REQUESTS_PER_MINUTE": "600", "SLUICE_EMBED_TOKENS_PER_MINUTE": "60000"}
    async with working(stack, log, **SMALL, **limits, OPENAI_BASE_URL=f"{double.url}/v1"):
        path = await ada.upload("limited.md", handbook(5), mime_type="text/markdown")
        assert (await project.settled(path))["state"] == "ready"
    row = await project.connection.fetchrow("select * from ingest.rate_limits where provider = 'openai'")
    assert row is not None
    assert (row["requests_per_minute"], row["tokens_per_minute"]) == (600, 60_000)
    assert row["tokens_left"] < 60_000
