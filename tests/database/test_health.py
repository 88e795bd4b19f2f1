"""Health in the database: who lives, what answered, how much waits; what is old is unknown."""

from __future__ import annotations

import asyncio
import json
from datetime import timedelta
from typing import Any
from uuid import UUID, uuid4

import pytest

from tests.callers import as_service
from tests.database.project import Project

EVERY = timedelta(seconds=6.5)
SERVICES = ("database", "supabase_auth", "storage", "realtime", "worker")


async def beat(project: Project, worker: UUID, *, embedder: str = "local", parser: str = "local") -> None:
    await project.worker.execute(
        "select ingest.beat($1, '0.1.0', 'abc1234', 7, 'host', 4, 1, 'listen', $2, 'model', $3, 'namespace')",
        worker, embedder, parser,
    )  # fmt: skip


async def probe(project: Project, worker: UUID, service: str, code: str | None = None, message: str = "") -> None:
    await project.worker.execute(
        "select ingest.record_probe($1, $2, 12.5, $3, $4)", worker, service, code, message if code else None
    )


async def well(project: Project, **about: str) -> UUID:
    """Make a worker that lives and has heard good news of every service."""
    worker = uuid4()
    await beat(project, worker, **about)
    for service in (*SERVICES, "openai", "llamaparse"):
        await probe(project, worker, service)
    return worker


async def age(project: Project, table: str, column: str, seconds: float, where: str = "true") -> None:
    await project.owner.execute(
        f"update ingest.{table} set {column} = now() - make_interval(secs => {seconds}) where {where}"
    )


async def health(project: Project) -> dict[str, Any]:
    async with as_service(project.admin):
        told: dict[str, Any] = json.loads(await project.admin.fetchval("select public.health()"))
    return told


def statuses(told: dict[str, Any]) -> dict[str, str]:
    return {name: service["status"] for name, service in told["services"].items()}


async def test_a_project_with_a_fresh_worker_and_good_news_is_ok(project: Project) -> None:
    await well(project)
    told = await health(project)
    assert told["status"] == "ok"
    assert statuses(told) == dict.fromkeys(SERVICES, "ok") | {
        "openai": "not_configured",
        "llamaparse": "not_configured",
    }
    assert all(told["services"][name]["latency_ms"] == 12.5 for name in SERVICES)
    assert (told["version"], told["git_sha"]) == ("0.1.0", "abc1234")
    assert told["migration"] == max(path.name.split("_")[0] for path in project.migrations.glob("*.sql"))
    (worker,) = told["workers"]
    assert (worker["slots"], worker["running"], worker["wake_way"], worker["sandbox"]) == (4, 1, "listen", "namespace")


async def test_an_empty_project_says_that_no_worker_runs(project: Project) -> None:
    told = await health(project)
    assert told["status"] == "unhealthy"
    assert told["services"]["worker"]["code"] == "no_worker"
    assert statuses(told)["storage"] == statuses(told)["openai"] == "unknown"
    assert (told["workers"], told["version"]) == ([], None)
    assert told["queue"] == {
        "depth": 0, "oldest_seconds": None, "paused": False,
        "states": {"available": 0, "scheduled": 0, "running": 0, "discarded": 0},
    }  # fmt: skip


async def test_a_worker_that_was_not_heard_of_for_25_seconds_is_unknown_and_the_project_unhealthy(
    project: Project,
) -> None:
    await well(project)
    await age(project, "workers", "seen_at", 24)
    assert (await health(project))["status"] == "ok"
    await age(project, "workers", "seen_at", 25.1)
    told = await health(project)
    assert (told["status"], statuses(told)["worker"]) == ("unhealthy", "unknown")
    assert "No worker was heard of for 25 s" in told["services"]["worker"]["message"]


@pytest.mark.parametrize(
    ("service", "status"), [("storage", "unhealthy"), ("supabase_auth", "unhealthy"), ("realtime", "degraded")]
)
async def test_a_service_whose_row_is_old_is_unknown_whatever_it_said(
    project: Project, service: str, status: str
) -> None:
    await well(project)
    await age(project, "probes", "checked_at", 24, f"service = '{service}'")
    assert (await health(project))["status"] == "ok"
    await age(project, "probes", "checked_at", 25.1, f"service = '{service}'")
    told = await health(project)
    assert (told["status"], statuses(told)[service]) == (status, "unknown")
    assert told["services"][service]["latency_ms"] is None


@pytest.mark.parametrize(
    ("service", "code", "status"),
    [
        ("storage", "unreachable", "unhealthy"), ("supabase_auth", "timeout", "unhealthy"),
        ("realtime", "key_refused", "degraded"), ("openai", "key_refused", "unhealthy"),
        ("openai", "unavailable", "degraded"), ("llamaparse", "key_refused", "unhealthy"),
        ("llamaparse", "rate_limited", "degraded"),
    ],
)  # fmt: skip
async def test_only_what_stops_the_work_makes_the_project_unhealthy(
    project: Project, service: str, code: str, status: str
) -> None:
    worker = await well(project, embedder="openai", parser="llama-cloud")
    assert (await health(project))["status"] == "ok"
    await probe(project, worker, service, code, "It says no. Look at https://x.example/?token=hush and sk-secret123.")
    told = await health(project)
    assert (told["status"], statuses(told)[service], told["services"][service]["code"]) == (status, "failed", code)
    assert "hush" not in json.dumps(told)
    assert "secret123" not in json.dumps(told)


async def test_a_provider_that_no_worker_uses_any_more_is_not_configured(project: Project) -> None:
    worker = await well(project, embedder="openai")
    await probe(project, worker, "openai", "key_refused", "It refuses the key.")
    assert (await health(project))["status"] == "unhealthy"
    assert await project.worker.fetchval("select ingest.leave_worker($1)", worker)
    await beat(project, uuid4())
    told = await health(project)
    assert (told["status"], statuses(told)["openai"]) == ("ok", "not_configured")


async def test_a_row_goes_with_its_worker_and_others_are_pruned_after_an_hour(project: Project) -> None:
    first, second = uuid4(), uuid4()
    await beat(project, first)
    await age(project, "workers", "seen_at", 3590)
    await beat(project, second)
    assert await project.owner.fetchval("select count(*) from ingest.workers") == 2
    await age(project, "workers", "seen_at", 3601, f"worker_id = '{first}'")
    await beat(project, second)
    assert await project.owner.fetchval("select array_agg(worker_id) from ingest.workers") == [second]
    assert await project.worker.fetchval("select ingest.leave_worker($1)", second)
    assert not await project.worker.fetchval("select ingest.leave_worker($1)", second)
    assert await project.owner.fetchval("select count(*) from ingest.workers") == 0


async def test_ten_workers_that_come_together_take_each_turn_once(project: Project) -> None:
    connections = [await project.database.connect("ingest_worker") for _ in range(10)]
    workers = [uuid4() for _ in connections]

    async def take(number: int) -> list[tuple[str, UUID]]:
        rows = await connections[number].fetch(
            "select * from ingest.take_probes($1, $2, $3)", workers[number], list(SERVICES), EVERY
        )
        return [(row["take_probes"], workers[number]) for row in rows]

    for _ in range(5):
        taken = [turn for turns in await asyncio.gather(*map(take, range(10))) for turn in turns]
        assert sorted(service for service, _ in taken) == sorted(SERVICES)
        kept = await project.owner.fetch("select service, worker_id from ingest.probe_turns")
        assert {tuple(row) for row in kept} == set(taken)
        assert await take(0) == []
        await age(project, "probe_turns", "taken_at", 6.6)


async def test_the_depth_counts_what_is_due_and_the_oldest_is_exact(project: Project) -> None:
    first, second = uuid4(), uuid4()
    await project.enqueue(first, 3)
    (old, later, *_) = await project.enqueue(second, 3)
    await project.owner.execute(
        "update public.jobs set scheduled_at = now() - interval '90 seconds' where id = $1", old
    )
    await project.owner.execute("update public.jobs set scheduled_at = now() + interval '1 hour' where id = $1", later)
    await project.owner.execute("select ingest.pause_queue()")
    queue = (await health(project))["queue"]
    assert queue["states"] == {"available": 5, "scheduled": 1, "running": 0, "discarded": 0}
    assert (queue["depth"], queue["paused"]) == (5, True)
    assert 90 <= queue["oldest_seconds"] < 95
    await project.owner.execute("select ingest.resume_queue()")
    assert len(await project.claim(limit=2)) == 2
    queue = (await health(project))["queue"]
    assert (queue["depth"], queue["states"]["running"], queue["paused"]) == (3, 2, False)


async def test_the_count_ends_at_a_hundred_thousand_and_costs_little_there(project: Project) -> None:
    await project.owner.execute(
        "insert into public.jobs (document_id, tenant_id, generation)"
        " select gen_random_uuid(), '00000000-0000-0000-0000-000000000001', 1 from generate_series(1, 120000)"
    )
    told = await health(project)
    assert told["queue"]["depth"] == 100_000
    taken: list[float] = []
    for _ in range(9):
        began = asyncio.get_running_loop().time()
        await health(project)
        taken.append(asyncio.get_running_loop().time() - began)
    assert sorted(taken)[4] < 0.15, taken
