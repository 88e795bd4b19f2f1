"""The edge function health: fast, fresh, and silent about details to whoever has no secret key."""

from __future__ import annotations

import asyncio
import json
import statistics
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from uuid import UUID, uuid4

import httpx
import pytest

from local.stack import Stack
from tests.functions import said, serving
from tests.people import Project
from tests.provider_double import ProviderDouble, Reply

SERVICES = ("database", "supabase_auth", "storage", "realtime", "worker")
CALLS = 200
P95_SECONDS = 0.2


@dataclass
class Function:
    """The function beside the stack, and the stack's keys."""

    url: str
    stack: Stack
    http: httpx.AsyncClient

    async def ask(self, key: str | None = None, method: str = "GET", **headers: str) -> httpx.Response:
        return await self.http.request(method, self.url, headers=({"apikey": key} if key else {}) | headers)

    async def details(self) -> httpx.Response:
        return await self.ask(self.stack.secret_key)


@pytest.fixture(scope="module")
async def function(stack: Stack) -> AsyncIterator[Function]:
    async with (
        serving(
            "health",
            SUPABASE_URL=stack.api_url,
            SUPABASE_PUBLISHABLE_KEYS=json.dumps({"default": stack.publishable_key}),
            SUPABASE_SECRET_KEYS=json.dumps({"default": stack.secret_key, "other": "sb_secret_another"}),
        ) as (url, _),
        httpx.AsyncClient(timeout=30) as http,
    ):
        yield Function(url, stack, http)


@pytest.fixture
async def worker(project: Project) -> AsyncIterator[UUID]:
    """The rows of a worker that lives, as it writes them; gone after the test."""
    worker = uuid4()
    await project.connection.execute(
        "select ingest.beat($1, '0.1.0', 'abc1234', 7, 'a-host', 4, 0, 'listen', 'local', 'm', 'local', 'seccomp')",
        worker,
    )
    for service in SERVICES:
        await project.connection.execute("select ingest.record_probe($1, $2, 3.5, null, null)", worker, service)
    yield worker
    await project.connection.execute("delete from ingest.workers; delete from ingest.probes")


async def test_with_the_secret_key_it_tells_everything_and_that_all_is_well(function: Function, worker: UUID) -> None:
    answer = await function.details()
    assert answer.status_code == 200, answer.text
    told = answer.json()
    assert told.keys() == {
        "status", "timestamp", "version", "git_sha", "migration", "services", "queue", "workers",
    }  # fmt: skip
    assert (told["status"], told["version"], told["git_sha"]) == ("ok", "0.1.0", "abc1234")
    assert told["services"].keys() == {*SERVICES, "openai", "llamaparse"}
    assert {name: told["services"][name]["status"] for name in SERVICES} == dict.fromkeys(SERVICES, "ok")
    assert all(told["services"][name]["latency_ms"] > 0 for name in SERVICES)
    assert told["services"]["openai"]["status"] == "not_configured"
    assert told["queue"]["depth"] >= 0
    assert told["migration"].isdigit()
    assert answer.headers["cache-control"] == "no-store"


async def test_200_answers_come_within_200_milliseconds_in_95_of_100(function: Function, worker: UUID) -> None:
    await function.details()
    taken: list[float] = []
    for _ in range(CALLS):
        began = time.perf_counter()
        answer = await function.details()
        taken.append(time.perf_counter() - began)
        assert answer.status_code == 200
    p95 = statistics.quantiles(taken, n=20)[-1]
    print(
        f"health: p50 {statistics.median(taken) * 1000:.1f} ms, p95 {p95 * 1000:.1f} ms, max {max(taken) * 1000:.1f} ms"
    )
    assert p95 < P95_SECONDS


async def test_without_the_secret_key_there_are_a_status_and_a_time_and_nothing_else(
    function: Function, worker: UUID
) -> None:
    secret = function.stack.secret_key
    for key in (None, function.stack.publishable_key, secret[:-1], secret + "x", secret[:-1] + "~", "sb_secret_wrong"):
        answer = await function.ask(key)
        assert answer.status_code == 200
        assert answer.json().keys() == {"status", "timestamp"}
        assert (await function.ask(authorization=f"Bearer {key}")).json().keys() == {"status", "timestamp"}


async def test_every_secret_key_of_the_project_is_known_in_either_header(function: Function, worker: UUID) -> None:
    for key in (function.stack.secret_key, "sb_secret_another"):
        assert "services" in (await function.ask(key)).json()
        assert "services" in (await function.ask(authorization=f"Bearer {key}")).json()


async def test_it_is_read_only_and_head_has_no_body(function: Function, worker: UUID) -> None:
    for method in ("POST", "PUT", "DELETE", "PATCH"):
        answer = await function.ask(function.stack.secret_key, method)
        assert (answer.status_code, answer.headers["allow"]) == (405, "GET, HEAD, OPTIONS")
    head = await function.ask(method="HEAD")
    assert (head.status_code, head.content, head.headers["cache-control"]) == (200, b"", "no-store")


async def test_without_a_worker_it_is_503_also_for_who_may_know_no_more(function: Function) -> None:
    answer = await function.ask()
    assert (answer.status_code, answer.json()["status"]) == (503, "unhealthy")
    assert answer.json().keys() == {"status", "timestamp"}
    assert (await function.ask(method="HEAD")).status_code == 503
    assert (await function.details()).json()["services"]["worker"]["code"] == "no_worker"


@pytest.mark.parametrize(
    ("table", "column", "service", "status"),
    [
        ("workers", "seen_at", "worker", 503), ("probes", "checked_at", "storage", 503),
        ("probes", "checked_at", "realtime", 200),
    ],
)  # fmt: skip
async def test_rows_older_than_25_seconds_are_unknown(
    function: Function, project: Project, worker: UUID, table: str, column: str, service: str, status: int
) -> None:
    where = f" where service = '{service}'" if table == "probes" else ""
    await project.connection.execute(f"update ingest.{table} set {column} = now() - interval '26 seconds'{where}")
    answer = await function.details()
    assert answer.status_code == status
    assert answer.json()["services"][service]["status"] == "unknown"


async def test_a_refused_provider_key_is_503_with_its_code(function: Function, project: Project, worker: UUID) -> None:
    await project.connection.execute("update ingest.workers set embedder = 'openai'")
    await project.connection.execute(
        "select ingest.record_probe($1, 'openai', 80, 'key_refused', 'It refuses the key (HTTP 401).')", worker
    )
    answer = await function.details()
    assert answer.status_code == 503
    assert answer.json()["services"]["openai"] | {"checked_at": None} == {
        "status": "failed", "latency_ms": 80, "code": "key_refused", "message": "It refuses the key (HTTP 401).",
        "checked_at": None,
    }  # fmt: skip


@pytest.mark.parametrize(
    "reply", [Reply(500, "secret words of the database"), Reply(401), Reply(cut=0), Reply(200, "no json")]
)
async def test_an_api_that_does_not_answer_is_a_database_that_failed(stack: Stack, reply: Reply) -> None:
    async with ProviderDouble() as double:
        double.on("POST", "/rest/v1/rpc/health", reply)
        async with (
            serving("health", SUPABASE_URL=double.url, SUPABASE_SECRET_KEY="sb_secret_one") as (url, process),
            httpx.AsyncClient() as http,
        ):
            plain, told = await asyncio.gather(http.get(url), http.get(url, headers={"apikey": "sb_secret_one"}))
            assert (plain.status_code, plain.json()["status"]) == (503, "unhealthy")
            assert plain.json().keys() == {"status", "timestamp"}
            assert told.json()["services"]["database"]["code"] == "unreachable"
            assert "secret words" not in told.text + await said(process)


async def test_a_database_that_is_silent_is_given_up_within_six_seconds(stack: Stack) -> None:
    async with ProviderDouble() as double:
        double.on("POST", "/rest/v1/rpc/health", Reply(seconds=30))
        async with (
            serving("health", SUPABASE_URL=double.url, SUPABASE_SECRET_KEY="sb_secret_one") as (url, _),
            httpx.AsyncClient(timeout=20) as http,
        ):
            began = time.monotonic()
            assert (await http.get(url)).status_code == 503
            assert time.monotonic() - began < 6


async def test_the_stack_serves_it_too(function: Function, worker: UUID) -> None:
    url = f"{function.stack.api_url}/functions/v1/health"
    answer = await function.http.get(url, headers={"apikey": function.stack.secret_key})
    assert (answer.status_code, answer.json()["status"]) == (200, "ok")
