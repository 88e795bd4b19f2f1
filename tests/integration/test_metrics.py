"""`/live`, `/ready` and `/metrics` of a real worker, and that nothing in them says whose files they are."""

from __future__ import annotations

import asyncio
import os
import re
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
from prometheus_client import Metric
from prometheus_client.parser import text_string_to_metric_families

from local import deno
from local.stack import Stack
from local.worker_process import Worker, working
from tests.people import Person, Project, handbook
from worker import metrics
from worker.operate.cli import installed_version

OPERATIONS = deno.REPOSITORY / "docs" / "operations.md"


@dataclass
class Watched:
    """A worker with a port for its health."""

    worker: Worker
    url: str
    http: httpx.AsyncClient

    async def get(self, path: str, method: str = "GET") -> httpx.Response:
        return await self.http.request(method, f"{self.url}{path}")

    async def metrics(self) -> dict[str, Metric]:
        answer = await self.get("/metrics")
        assert answer.status_code == 200
        return {family.name: family for family in text_string_to_metric_families(answer.text)}

    async def ready(self) -> None:
        async with asyncio.timeout(20):
            while (await self.get("/ready")).status_code != 200:  # noqa: ASYNC110
                await asyncio.sleep(0.05)


@asynccontextmanager
async def watched(stack: Stack, log: Path, **settings: str) -> AsyncIterator[Watched]:
    async with (
        working(stack, log, SLUICE_HEALTH_PORT="0", SLUICE_GIT_SHA="abc1234", **settings) as worker,
        httpx.AsyncClient(timeout=10) as http,
    ):
        async with asyncio.timeout(30):
            while not (port := re.search(r'"health port is open".*"port": (\d+)', log.read_text())):  # noqa: ASYNC110
                await asyncio.sleep(0.05)
        yield Watched(worker, f"http://127.0.0.1:{port[1]}", http)


def value(families: dict[str, Metric], name: str, **labels: str) -> float:
    (sample,) = [
        sample
        for family in families.values()
        for sample in family.samples
        if sample.name == name and sample.labels == labels
    ]
    return sample.value


async def test_a_worker_that_reads_a_file_tells_it_in_numbers_and_in_no_names(
    stack: Stack, project: Project, ada: Person, tmp_path: Path
) -> None:
    async with watched(stack, tmp_path / "worker.log") as worker:
        await worker.ready()
        path = await ada.upload("harbour-secrets.md", handbook(30), mime_type="text/markdown")
        document = await project.settled(path)
        assert document["state"] == "ready"
        live = await worker.get("/live")
        assert (live.status_code, live.json()["live"]) == (200, True)
        text = (await worker.get("/metrics")).text
        families = await worker.metrics()

        assert value(families, "sluice_claims_total") == 1
        assert value(families, "sluice_jobs_total", verdict="complete") == 1
        assert value(families, "sluice_jobs_total", verdict="discard") == 0
        assert value(families, "sluice_chunks_total") == document["chunk_count"] > 1
        assert value(families, "sluice_provider_requests_total", provider="local") >= 1
        assert value(families, "sluice_tokens_total", provider="local") > 100
        for stage in ("fetch", "parse", "chunk", "embed", "publish"):
            assert value(families, "sluice_stage_seconds_count", stage=stage) == 1
            assert 0 < value(families, "sluice_stage_seconds_sum", stage=stage) < 60
        assert value(families, "sluice_queue_jobs", state="available") == 0
        assert value(families, "sluice_queue_oldest_seconds") == 0
        assert value(families, "sluice_database_up") == value(families, "sluice_ready") == 1
        assert value(families, "sluice_wakeup_way", way="listen") == 1
        assert value(families, "sluice_wakeup_way", way="polling") == 0
        assert (value(families, "sluice_leases_held"), value(families, "sluice_slots")) == (0, 4)
        assert 20e6 < value(families, "sluice_resident_memory_bytes") < 2e9
        assert value(families, "sluice_build_info", version=installed_version(), git_sha="abc1234") == 1
        assert [word for word in (ada.id, "harbour", str(document["id"]), stack.secret_key) if word in text] == []
        labels = {name for family in families.values() for sample in family.samples for name in sample.labels}
        assert labels <= {"verdict", "stage", "provider", "code", "state", "way", "le", "version", "git_sha"}


async def test_only_gets_of_three_paths_are_answered(stack: Stack, tmp_path: Path) -> None:
    async with watched(stack, tmp_path / "worker.log") as worker:
        assert (await worker.get("/")).status_code == 404
        assert (await worker.get("/live", "POST")).status_code == 405
        head = await worker.get("/metrics", "HEAD")
        assert (head.status_code, head.content) == (200, b"")
        host, port = worker.url.removeprefix("http://").split(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(b"nonsense\r\n\r\n")
        await writer.drain()
        assert await reader.read() == b""
        writer.close()
        assert (await worker.get("/live")).status_code == 200


async def test_a_draining_worker_is_alive_and_not_ready_and_its_row_goes_with_it(
    stack: Stack, project: Project, ada: Person, tmp_path: Path
) -> None:
    async with watched(stack, tmp_path / "worker.log", SLUICE_DRAIN_SECONDS="4") as worker:
        await worker.ready()
        assert (
            await project.connection.fetchval("select count(*) from ingest.workers where pid = $1", worker.worker.pid)
            == 1
        )
        path = await ada.upload("long.md", handbook(1500), mime_type="text/markdown")
        await project.until(
            "select state from public.documents where name = $1", path, when=lambda row: row["state"] == "processing"
        )
        os.kill(worker.worker.pid, signal.SIGTERM)
        async with asyncio.timeout(4):
            while (await worker.get("/ready")).status_code == 200:  # noqa: ASYNC110
                await asyncio.sleep(0.02)
        told = (await worker.get("/ready")).json()
        assert (told["ready"], told["draining"], told["claiming"]) == (False, True, False)
        assert (await worker.get("/live")).status_code == 200
    assert await project.connection.fetchval("select count(*) from ingest.workers") == 0


async def test_a_port_that_is_taken_is_said_in_one_sentence(stack: Stack, tmp_path: Path) -> None:
    server = await asyncio.start_server(lambda *_: None, "127.0.0.1", 0)
    port = str(server.sockets[0].getsockname()[1])
    log = tmp_path / "worker.log"
    async with working(stack, log, SLUICE_HEALTH_PORT=port) as worker:
        with pytest.raises(Exception, match=f"Port {port} of 127.0.0.1 cannot be used"):
            await asyncio.wait_for(worker.ended(), 30)
    server.close()


def test_every_metric_of_the_alert_rules_exists_and_has_its_labels() -> None:
    (rules,) = re.findall(r"```yaml\n(groups:.*?)```", OPERATIONS.read_text(encoding="utf-8"), re.DOTALL)
    known = {sample.name for family in text_string_to_metric_families(_exposed()) for sample in family.samples}
    expressions = re.findall(r"expr: (.*)", rules)
    assert len(expressions) >= 8
    named = {name for expression in expressions for name in re.findall(r"\bsluice_\w+", expression)}
    assert len(named) >= 8
    assert named - known == set()
    for label, given in re.findall(r'(\w+)=~?"([^"]+)"', " ".join(expressions)):
        assert label in ("verdict", "stage", "state", "code", "way", "job"), (label, given)


def _exposed() -> str:
    from prometheus_client import generate_latest

    metrics.ERRORS.labels("openai", "x")
    metrics.REQUESTS.labels("openai")
    metrics.TOKENS.labels("openai")
    metrics.QUEUE_JOBS.labels("available")
    metrics.WAKEUP_WAY.labels("listen")
    return generate_latest(metrics.REGISTRY).decode()
