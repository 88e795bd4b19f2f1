"""The heartbeat and its probes: real requests, each in its own time, by one of all workers."""

from __future__ import annotations

import asyncio
import os
import random
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any
from uuid import UUID, uuid4

import asyncpg
import httpx
import pytest

from local.stack import Stack
from tests.conftest import Database as MigratedDatabase
from tests.database.project import Project
from tests.provider_double import ProviderDouble, Reply
from tests.realtime_server import RealtimeServer
from tests.silent_line import SilentLine
from worker.model import EmbeddingModel
from worker.pipeline.embed.embedder import Batching
from worker.pipeline.embed.openai import OpenAIEmbedder
from worker.pipeline.limits import Limits
from worker.pipeline.parse import remote
from worker.pipeline.parse.answers import Bounds
from worker.queue.heartbeat import About, Heartbeat, HeartbeatPace, Now
from worker.queue.probes import Probes, Provider

KEY = "sb_secret_of_the_tests"
PACE = HeartbeatPace(beat=0.1, probe=0.2)
BUCKETS = Reply(200, [{"id": "documents"}])


def about(worker: UUID, *, embedder: str = "local") -> About:
    return About(worker, "0.1.0", "abc1234", os.getpid(), "a-host", 4, embedder, "a-model", "local")


@asynccontextmanager
async def probes(
    url: str, key: str = KEY, *, seconds: float = 2, hears: bool = False, **providers: Provider
) -> AsyncIterator[Probes]:
    async with httpx.AsyncClient(timeout=5) as http:
        yield Probes(url, key, providers, lambda: hears, http, seconds)


@asynccontextmanager
async def beating(
    url: str, asked: Probes, worker: UUID | None = None, pace: HeartbeatPace = PACE
) -> AsyncIterator[Heartbeat]:
    heartbeat = Heartbeat(
        url, about(worker or uuid4()), lambda: Now(1, "listen", "namespace"), asked, pooler="session", pace=pace
    )
    async with heartbeat.beating():
        yield heartbeat


async def probed(connection: asyncpg.Connection, *services: str, seconds: float = 10) -> dict[str, asyncpg.Record]:
    """Wait until these services have a row, and return all rows."""
    async with asyncio.timeout(seconds):
        while True:
            rows = {row["service"]: row for row in await connection.fetch("select * from ingest.probes")}
            if rows.keys() >= set(services):
                return rows
            await asyncio.sleep(0.02)


async def test_on_the_local_stack_every_service_answers_a_real_request(stack: Stack) -> None:
    connection = await asyncpg.connect(stack.admin_url)
    await connection.execute("delete from ingest.probes; delete from ingest.probe_turns")
    try:
        async with (
            probes(stack.api_url, stack.secret_key) as asked,
            beating(stack.worker_database_url, asked) as heartbeat,
        ):
            rows = await probed(connection, "database", "worker", "supabase_auth", "storage", "realtime")
            assert heartbeat.fresh
        assert {(row["status"], row["code"], row["message"]) for row in rows.values()} == {("ok", None, None)}
        assert all(row["latency_ms"] > 0 for name, row in rows.items() if name != "worker")
    finally:
        await connection.execute("delete from ingest.probes; delete from ingest.probe_turns")
        await connection.close()


async def test_a_wrong_key_is_refused_by_every_service_of_the_stack(stack: Stack) -> None:
    async with probes(stack.api_url, "sb_secret_wrong") as asked:
        for service in asked.services:
            outcome = await asked.ask(service)
            assert outcome.code == "key_refused", service
            assert "Check SUPABASE_URL and SUPABASE_SECRET_KEY" in str(outcome.message)
            assert "sb_secret_wrong" not in str(outcome.message)


async def test_a_publishable_key_shows_no_bucket_and_is_found_out(stack: Stack) -> None:
    async with probes(stack.api_url, stack.publishable_key) as asked:
        outcome = await asked.ask("storage")
    assert outcome.code == "no_bucket"
    assert "must be a secret key" in str(outcome.message)


@pytest.mark.parametrize(
    ("reply", "code"),
    [
        (Reply(401), "key_refused"), (Reply(403), "key_refused"), (Reply(404), "not_found"),
        (Reply(429), "rate_limited"), (Reply(500), "unavailable"), (Reply(503), "unavailable"),
        (Reply(302), "unexpected_answer"), (Reply(200, "no json"), "unreachable"), (Reply(200, []), "no_bucket"),
        (Reply(cut=0), "unreachable"), (Reply(200, BUCKETS.body, seconds=5), "timeout"), (BUCKETS, None),
    ],
)  # fmt: skip
async def test_each_way_in_which_storage_can_fail_has_its_code(reply: Reply, code: str | None) -> None:
    async with ProviderDouble() as double:
        double.on("GET", "/storage/v1/bucket", reply)
        async with probes(double.url, seconds=0.5) as asked:
            outcome = await asked.ask("storage")
        assert outcome.code == code
        assert (outcome.message is None) == (code is None)
        (request,) = double.requests
        assert (request.headers["apikey"], request.headers["authorization"]) == (KEY, f"Bearer {KEY}")


async def test_a_service_that_is_not_there_is_unreachable() -> None:
    async with probes("http://127.0.0.1:1") as asked:
        for service in asked.services:
            assert (await asked.ask(service)).code == "unreachable"


async def test_realtime_is_joined_unless_a_channel_of_ours_stands() -> None:
    server = RealtimeServer(KEY)
    await server.start()
    try:
        async with probes(server.url) as asked:
            assert (await asked.ask("realtime")).code is None
            assert server.joins == 1
            server.refuse = "unauthorized"
            assert (await asked.ask("realtime")).code == "join_refused"
        async with probes(server.url, "sb_secret_wrong") as asked:
            outcome = await asked.ask("realtime")
            assert outcome.code == "key_refused"
            assert "sb_secret_wrong" not in str(outcome.message)
        async with probes(server.url, hears=True) as asked:
            assert (await asked.ask("realtime")).code is None
        assert server.joins == 1
    finally:
        await server.stop()


def embedder(url: str) -> OpenAIEmbedder:
    model = EmbeddingModel("openai", "text-embedding-3-small", 4, max_tokens=8191)
    return OpenAIEmbedder(model, Batching(8, 1000, 1, linger=0), key="sk-test-1234", base_url=f"{url}/v1/")


async def test_the_embedding_service_is_asked_for_its_model_and_for_no_vectors() -> None:
    async with ProviderDouble() as double:
        scopes = {"error": {"message": "You have insufficient permissions. Missing scopes: api.model.read"}}
        double.on(
            "GET", "/v1/models/text-embedding-3-small",
            # A server that speaks the protocol need not know this request, nor a key that may embed be allowed it.
            Reply(200, {}), Reply(404), Reply(401, scopes), Reply(403, scopes), Reply(401), Reply(403), Reply(500),
        )  # fmt: skip
        asks = embedder(double.url)
        async with probes(double.url, openai=asks.probe) as asked:
            assert asked.services == ["supabase_auth", "storage", "realtime", "openai"]
            outcomes = [await asked.ask("openai") for _ in range(7)]
        await asks.aclose()
        assert [outcome.code for outcome in outcomes] == [None] * 4 + ["key_refused"] * 2 + ["unavailable"]
        assert "OPENAI_API_KEY" in str(outcomes[4].message)
        assert {request.headers["authorization"] for request in double.requests} == {"Bearer sk-test-1234"}


async def test_the_parser_is_asked_for_its_projects_and_for_no_pages() -> None:
    async with ProviderDouble() as double:
        double.on("GET", "/api/v1/projects", Reply(200, []), Reply(401), Reply(429))
        limits: Any = Limits(None, random.Random(1))  # type: ignore[arg-type] - never asked by a probe
        setup = remote.Setup("llx-test", limits, Bounds(10, 1000, 0.2), base_url=double.url)
        async with probes(double.url, llamaparse=lambda http: remote.probe(setup, http)) as asked:
            outcomes = [await asked.ask("llamaparse") for _ in range(3)]
        assert [outcome.code for outcome in outcomes] == [None, "key_refused", "rate_limited"]
        assert {request.headers["authorization"] for request in double.requests} == {"Bearer llx-test"}


async def test_two_workers_ask_each_service_once_in_each_round(database: MigratedDatabase, sql: Project) -> None:
    pace = HeartbeatPace(beat=0.05, probe=1.0)
    async with ProviderDouble() as double:
        double.on("GET", "/auth/v1/health", Reply(200, {}))
        double.on("GET", "/storage/v1/bucket", BUCKETS)
        url = database.url("ingest_worker")
        async with (
            probes(double.url, hears=True) as first, probes(double.url, hears=True) as second,
            beating(url, first, pace=pace), beating(url, second, pace=pace),
        ):  # fmt: skip
            await probed(sql.owner, "supabase_auth", "storage")
            assert await sql.owner.fetchval("select count(*) from ingest.workers") == 2
            await asyncio.sleep(0.5)  # both beat ten times
            assert len(double.sent("GET", "/auth/v1/health")) == len(double.sent("GET", "/storage/v1/bucket")) == 1
            began = time.monotonic()
            await double.arrived(4)
            assert time.monotonic() - began < 2
        assert len(double.requests) == 4


async def test_a_slow_service_holds_up_neither_the_heartbeat_nor_the_others(
    database: MigratedDatabase, sql: Project
) -> None:
    async with ProviderDouble() as double:
        double.on("GET", "/auth/v1/health", Reply(200, {}, seconds=30))
        double.on("GET", "/storage/v1/bucket", BUCKETS)
        async with probes(double.url, hears=True, seconds=1) as asked, beating(database.url("ingest_worker"), asked):
            await probed(sql.owner, "storage")
            seen = await sql.owner.fetchval("select seen_at from ingest.workers")
            await sql.until("select seen_at > $1 from ingest.workers", seen)
            assert await sql.owner.fetchval("select count(*) from ingest.probes where service = 'supabase_auth'") == 0
            rows = await probed(sql.owner, "supabase_auth")
            assert (rows["supabase_auth"]["status"], rows["supabase_auth"]["code"]) == ("failed", "timeout")
            assert rows["supabase_auth"]["latency_ms"] >= 1000


async def test_the_row_is_gone_after_an_orderly_end_and_the_connection_too(
    database: MigratedDatabase, sql: Project
) -> None:
    worker = uuid4()
    async with probes("http://127.0.0.1:1", hears=True) as asked:
        async with beating(database.url("ingest_worker"), asked, worker):
            await sql.until("select exists (select from ingest.workers where worker_id = $1)", worker)
            connections = (
                "select count(*) from pg_stat_activity where application_name = 'sluice worker' and datname = $1"
            )
            assert await sql.admin.fetchval(connections, database.name) == 1
        assert await sql.owner.fetchval("select count(*) from ingest.workers") == 0
        await sql.until("select not exists (select from ingest.probe_turns where taken_at > now())")


async def test_a_line_that_falls_silent_is_noticed_and_left_for_a_new_one(
    database: MigratedDatabase, sql: Project
) -> None:
    async with (
        SilentLine(database.url("ingest_worker")).open() as line,
        probes("http://127.0.0.1:1", hears=True) as asked,
        beating(line.url, asked),
    ):
        await sql.until("select exists (select from ingest.workers)")
        line.silence()
        await asyncio.sleep(0.3)
        silent_since = await sql.owner.fetchval("select seen_at from ingest.workers")
        async with asyncio.timeout(15):
            await sql.until("select seen_at > $1 from ingest.workers", silent_since)
