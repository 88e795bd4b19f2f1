"""How soon health says that something is gone, how fast it answers, and what it costs: in real time, on a stack."""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import statistics
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

import asyncpg
import click
import httpx

from local import interrupt
from local.errors import StackError
from local.stack import Stack
from local.worker_process import Worker, working
from tests.chaos.run import new_directory
from tests.provider_double import ProviderDouble, Reply, Request
from tests.silent_line import SilentLine
from worker.queue.heartbeat import About, Heartbeat, Now
from worker.queue.probes import Probes

MODEL = "text-embedding-3-small"
CALLS = 200
LIMIT_SECONDS = 30.0
LIMIT_MS = 200.0
_COST_SECONDS = 30.0
_PATIENCE_SECONDS = 60.0


@dataclass(frozen=True)
class Behind:
    """A stack whose worker reaches the database by another URL."""

    stack: Stack
    database_url: str

    def environment(self) -> dict[str, str]:
        return self.stack.environment() | {"DATABASE_URL": self.database_url}


@dataclass(frozen=True)
class Watcher:
    """Asks the function health of a stack, as a monitor does."""

    stack: Stack
    http: httpx.AsyncClient

    async def ask(self) -> httpx.Response:
        return await self.http.get(
            f"{self.stack.api_url}/functions/v1/health", headers={"apikey": self.stack.secret_key}
        )

    async def until(self, status: int) -> tuple[float, dict[str, Any]]:
        """Ask every quarter of a second until it answers so; return the seconds and what it said."""
        began = time.monotonic()
        async with asyncio.timeout(_PATIENCE_SECONDS):
            while (answer := await self.ask()).status_code != status:  # noqa: ASYNC110
                await asyncio.sleep(0.25)
        return time.monotonic() - began, answer.json()


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--rounds", type=click.IntRange(1, 20), default=3, show_default=True, help="Of each fault.")
@click.option("--seed", type=int, default=1, show_default=True, help="Decides when in a beat a fault comes.")
@click.option("--json", "only_json", is_flag=True, help="Print nothing but the JSON line.")
def main(rounds: int, seed: int, only_json: bool) -> None:
    """Measure how many seconds pass until health says unhealthy, and ok again.

    Exit codes: 0 every fault was told within 30 s and 95 of 100 answers came within 200 ms; 1 not so.
    """
    try:
        status = interrupt.run(_report(rounds, seed, only_json))
    except StackError as error:
        raise click.ClickException(str(error)) from error
    sys.exit(status)


async def _report(rounds: int, seed: int, only_json: bool) -> int:
    randomness = random.Random(f"health {seed}")
    report: dict[str, Any] = {"rounds": rounds, "seed": seed, "faults": {}}
    async with (
        new_directory(None) as directory, Stack(directory / "stack", durable=False) as stack,
        httpx.AsyncClient(timeout=10) as http,
    ):  # fmt: skip
        watcher, log = Watcher(stack, http), directory / "worker.log"
        report["cost"] = await _cost(stack)
        for name, measure in (("kill -9 of the worker", _kill), ("stopped proxy before the database", _proxy),
                              ("provider key refused", _key)):  # fmt: skip
            told: list[float] = []
            again: list[float] = []
            for _ in range(rounds):
                one = await measure(watcher, log, randomness)
                told.append(one[0])
                again.append(one[1])
                if not only_json:
                    click.echo(f"{name}: unhealthy after {one[0]:.1f} s, ok again after {one[1]:.1f} s", err=True)
            report["faults"][name] = {
                "unhealthy_seconds": [round(each, 1) for each in told],
                "ok_again_seconds": [round(each, 1) for each in again],
            }
        async with working(stack, log):
            await watcher.until(200)
            report["answers"] = await _answers(watcher)
    click.echo(json.dumps(report))
    slowest = max(max(fault["unhealthy_seconds"]) for fault in report["faults"].values())
    return 0 if slowest <= LIMIT_SECONDS and report["answers"]["p95_ms"] <= LIMIT_MS else 1


async def _kill(watcher: Watcher, log: Path, randomness: random.Random) -> tuple[float, float]:
    async with working(watcher.stack, log) as worker:
        await _settle(watcher, randomness)
        os.kill(worker.pid, signal.SIGKILL)
        told, health = await watcher.until(503)
        _expect(health, "unknown", "worker", "storage", "supabase_auth")
    async with working(watcher.stack, log):
        again, _ = await watcher.until(200)
    await _forget(watcher)
    return told, again


async def _proxy(watcher: Watcher, log: Path, randomness: random.Random) -> tuple[float, float]:
    async with _behind_a_proxy(watcher.stack, log) as (stop, _):
        await _settle(watcher, randomness)
        await stop()
        told, health = await watcher.until(503)
        _expect(health, "unknown", "worker", "storage", "supabase_auth")
    async with working(watcher.stack, log):
        again, _ = await watcher.until(200)
    await _forget(watcher)
    return told, again


@asynccontextmanager
async def _behind_a_proxy(stack: Stack, log: Path) -> AsyncIterator[tuple[Any, Worker]]:
    line = SilentLine(stack.worker_database_url)
    opened = line.open()
    await opened.__aenter__()
    stopped = False

    async def stop() -> None:
        nonlocal stopped
        if not stopped:
            stopped = True
            await opened.__aexit__(None, None, None)

    try:
        async with working(Behind(stack, line.url), log, SLUICE_DRAIN_SECONDS="0") as worker:  # type: ignore[arg-type]
            yield stop, worker
    finally:
        await stop()


async def _key(watcher: Watcher, log: Path, randomness: random.Random) -> tuple[float, float]:
    refused = asyncio.Event()

    def describe(_request: Request) -> Reply:
        return Reply(401, {"error": {"message": "Incorrect API key provided."}}) if refused.is_set() else Reply(200, {})

    async with ProviderDouble() as double:
        double.on("GET", f"/v1/models/{MODEL}", describe)
        await _activate(watcher.stack, "openai", MODEL, 1536)
        try:
            async with working(
                watcher.stack, log, SLUICE_EMBEDDER="openai", OPENAI_API_KEY="sk-of-the-tests",
                OPENAI_BASE_URL=f"{double.url}/v1",
            ):  # fmt: skip
                await _settle(watcher, randomness)
                refused.set()
                told, health = await watcher.until(503)
                _expect(health, "failed", "openai")
                refused.clear()
                again, _ = await watcher.until(200)
        finally:
            await _activate(watcher.stack, "local", "all-MiniLM-L6-v2", 384)
    await _forget(watcher)
    return told, again


async def _settle(watcher: Watcher, randomness: random.Random) -> None:
    """Wait until all is well, and then for a moment within a round of probes."""
    await watcher.until(200)
    await asyncio.sleep(randomness.uniform(0, 10))
    answer = await watcher.ask()
    if answer.status_code != 200:
        raise StackError(f"health was {answer.text} before anything was broken")


def _expect(health: dict[str, Any], status: str, *services: str) -> None:
    """Raise StackError unless one of these is the reason: what the dead worker asked may grow old before it does."""
    found = {name: health["services"][name]["status"] for name in services}
    if status not in found.values():
        raise StackError(f"one of {found} should be {status}: {json.dumps(health)}")


async def _forget(watcher: Watcher) -> None:
    """Leave no rows: the next round begins as if nobody had ever worked here."""
    await _execute(watcher.stack, "delete from ingest.workers")
    await _execute(watcher.stack, "delete from ingest.probes")


async def _activate(stack: Stack, provider: str, name: str, dimensions: int) -> None:
    await _execute(
        stack,
        "select ingest.activate_embedding_model(coalesce("
        "(select id from ingest.embedding_models where provider = $1 and name = $2 and dimensions = $3),"
        " ingest.add_embedding_model($1, $2, $3)))",
        provider, name, dimensions,
    )  # fmt: skip


async def _execute(stack: Stack, statement: str, *arguments: object) -> None:
    connection = await asyncpg.connect(stack.admin_url)
    try:
        await connection.execute(statement, *arguments)
    finally:
        await connection.close()


async def _answers(watcher: Watcher) -> dict[str, float]:
    taken = []
    for _ in range(CALLS):
        began = time.perf_counter()
        answer = await watcher.ask()
        taken.append((time.perf_counter() - began) * 1000)
        if answer.status_code != 200:
            raise StackError(f"health answered {answer.status_code}: {answer.text}")
    return {
        "count": CALLS,
        "p50_ms": round(statistics.median(taken), 1),
        "p95_ms": round(statistics.quantiles(taken, n=20)[-1], 1),
        "max_ms": round(max(taken), 1),
    }


async def _cost(stack: Stack) -> dict[str, float]:
    """Run a heartbeat with all its probes and nothing else, and see what it takes from its process and its loop."""
    async with httpx.AsyncClient(timeout=5) as http:
        probes = Probes(stack.api_url, stack.secret_key, {}, lambda: False, http)
        about = About(uuid4(), "0", None, os.getpid(), "cost", 1, "local", "none", "local")
        heartbeat = Heartbeat(stack.worker_database_url, about, lambda: Now(0, "polling", None), probes)
        async with heartbeat.beating():
            await asyncio.sleep(5)  # what is imported and connected once
            before = time.process_time()
            await asyncio.sleep(_COST_SECONDS)
            used = time.process_time() - before
            late = await _latest(_COST_SECONDS)
    await _execute(stack, "delete from ingest.probes")
    return {
        "cpu_percent": round(used / _COST_SECONDS * 100, 2),
        "loop_late_ms_at_most": round(late * 1000, 1),
        # What the machine does to an idle loop, with nothing of ours in it.
        "loop_late_ms_without": round(await _latest(_COST_SECONDS) * 1000, 1),
    }


async def _latest(seconds: float) -> float:
    """Return by how much the loop came late at most to a timer of 10 ms."""
    clock, worst = asyncio.get_running_loop().time, 0.0
    end = clock() + seconds
    while (due := clock() + 0.01) < end:
        await asyncio.sleep(0.01)
        worst = max(worst, clock() - due)
    return worst


if __name__ == "__main__":
    main()
