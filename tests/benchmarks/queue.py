"""The queue at size: how many jobs a second, how long a claim takes beside a backlog, and whether it is fair.

`python -m tests.benchmarks.queue` makes a Postgres of its own and measures, in one run:

- jobs that do nothing, claimed and settled 50 at a time with leases and events, by turns with a bare loop over a
  bare table (`for update skip locked`, then an update);
- what the trigger that refuses transitions costs: each other batch on a connection on which triggers do not fire;
- what announcing progress costs: each other batch on a connection on which nothing is announced;
- how long after its commit a job starts in an idle worker that listens;
- a claim beside one tenant's backlog, and 0, 20 and 1,000 other tenants that are busy;
- in 100 trials each, whether the job of a tenant that has nothing waiting starts at the first claim made after its
  commit while one slot is free; the busy tenants have not been served before, then in turn.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from uuid import UUID, uuid4

import asyncpg
import numpy as np
from loguru import logger

from local import migrations, shape
from local.postgres import SUPERUSER, Cluster
from local.secrets import WORKER_ROLE, Secrets
from tests.benchmarks.announcing import announcing
from worker.db.pool import Database
from worker.model import Claim
from worker.queue.attempt import Attempts
from worker.queue.leases import Leases
from worker.queue.listener import Listener
from worker.queue.maintenance import Maintenance
from worker.queue.runner import Runner
from worker.queue.wakeups import Wakeups

LEASE = timedelta(seconds=60)
BATCH = 50
SLOTS = 4
CAP = 4
ROUNDS = 5

CLAIM = "select job_id, claim, tenant_id from ingest.claim_jobs($1, $2, $3, $4)"
SETTLE = "select count(*) from ingest.settle_jobs($1, $2, 'complete')"
FILL = """
    insert into public.jobs (document_id, tenant_id, generation)
    select gen_random_uuid(), t, 1 from generate_series(1, $2::int), unnest($1::uuid[]) t"""
TURNS = "select ingest.take_turn(t), ingest.take_turn(t) from unnest($1::uuid[]) t"  # twice: more than one job waits
BARE_FILL = "insert into public.bare_jobs (payload) select n from generate_series(1, $1::int) n"
BARE_CLAIM = """
    update public.bare_jobs set state = 'running', attempt = attempt + 1 where id in (
      select id from public.bare_jobs where state = 'available' order by id limit $1 for update skip locked)
    returning id"""
BARE_SETTLE = "update public.bare_jobs set state = 'completed' where id = any ($1)"


@dataclass(frozen=True, slots=True)
class Access:
    """A migrated database: connections by role, and the URL with which the worker logs in."""

    connect: Callable[[str], Awaitable[asyncpg.Connection]]
    worker_url: str


def _percentiles(milliseconds: list[float]) -> dict[str, float]:
    return {f"p{p}_ms": round(float(np.percentile(milliseconds, p)), 2) for p in (50, 95, 99)}


class Queue:
    """One database under measurement; `owner` is postgres, `worker` is ingest_worker."""

    def __init__(self, access: Access, owner: asyncpg.Connection, worker: asyncpg.Connection) -> None:
        self.access = access
        self.owner = owner
        self.worker = worker

    @classmethod
    async def open(cls, access: Access) -> Queue:
        """Connect, and make the bare table."""
        owner, worker = await access.connect("postgres"), await access.connect(WORKER_ROLE)
        await owner.execute(
            "create table public.bare_jobs (id bigint generated always as identity primary key,"
            " state text not null default 'available', attempt int not null default 0, payload int);"
            "create index on public.bare_jobs (id) where state = 'available';"
            "grant all on public.bare_jobs to ingest_worker"
        )
        return cls(access, owner, worker)

    async def empty(self) -> None:
        """Forget every job."""
        await self.owner.execute(
            "truncate public.jobs, ingest.job_details, ingest.leases, ingest.turns, public.job_events, public.bare_jobs"
        )

    async def fill(self, tenants: list[UUID], jobs: int) -> None:
        """Queue this many jobs for each tenant."""
        await self.owner.execute(FILL, tenants, jobs)
        await self.owner.execute(TURNS, tenants)

    async def claim(self, limit: int, cap: int = CAP) -> list[asyncpg.Record]:
        """Claim as a worker does."""
        rows: list[asyncpg.Record] = await self.worker.fetch(CLAIM, uuid4(), limit, LEASE, cap)
        return rows

    async def settle(self, claims: list[asyncpg.Record]) -> None:
        """Complete these claims."""
        await self.worker.fetchval(SETTLE, [c["job_id"] for c in claims], [c["claim"] for c in claims])

    async def _rate(self, jobs: int, claim: Callable[[], Awaitable[int]], times: list[float]) -> float:
        start, done = time.perf_counter(), 0
        while done < jobs:
            before = time.perf_counter()
            taken = await claim()
            times.append((time.perf_counter() - before) * 1000)
            if not taken:
                raise RuntimeError(f"{done} of {jobs} jobs were claimed, then none")
            done += taken
        return jobs / (time.perf_counter() - start)

    async def throughput(self, jobs: int) -> dict[str, object]:
        """Claim and settle `jobs` jobs that do nothing, by turns with the bare loop."""
        tenants = [uuid4() for _ in range(20)]
        rates: dict[str, list[float]] = {"queue": [], "bare": []}
        times: dict[str, list[float]] = {name: [] for name in rates}

        async def ours() -> int:
            claims = await self.claim(BATCH, cap=1000)
            await self.settle(claims)
            return len(claims)

        async def bare() -> int:
            rows = await self.worker.fetch(BARE_CLAIM, BATCH)
            await self.worker.execute(BARE_SETTLE, [row["id"] for row in rows])
            return len(rows)

        for turn in range(ROUNDS + 1):
            names = list(rates)
            for name in names[turn % 2 :] + names[: turn % 2]:
                await self.empty()
                if name == "bare":
                    await self.owner.execute(BARE_FILL, jobs)
                else:
                    await self.fill(tenants, jobs // len(tenants))
                await self.owner.execute("analyze public.jobs, public.bare_jobs")
                rate = await self._rate(jobs, bare if name == "bare" else ours, times[name])
                if turn:  # the first round warms up
                    rates[name].append(rate)
        ratios = np.array(rates["queue"]) / np.array(rates["bare"])
        return {
            "jobs": jobs,
            "batch": BATCH,
            "jobs_a_second": {name: round(float(np.median(values))) for name, values in rates.items()},
            "ratio_to_bare": round(float(np.median(ratios)), 3),
            "claim_and_settle_of_a_batch": _percentiles(times["queue"]),
        }

    async def trigger_cost(self, jobs: int) -> dict[str, object]:
        """Time claim and settlement of batches, each other one where triggers do not fire."""
        await self.empty()
        await self.fill([uuid4() for _ in range(20)], jobs // 20)
        await self.owner.execute("analyze public.jobs")
        connections = {role: await self.access.connect(SUPERUSER) for role in ("origin", "replica")}
        times: dict[str, list[float]] = {role: [] for role in connections}
        for role, connection in connections.items():
            await connection.execute(f"set session_replication_role = {role}")
        for number in range(jobs // BATCH):
            role = "origin" if number % 4 in (0, 3) else "replica"
            before = time.perf_counter()
            claims = await connections[role].fetch(CLAIM, uuid4(), BATCH, LEASE, 1000)
            await connections[role].fetchval(SETTLE, [c["job_id"] for c in claims], [c["claim"] for c in claims])
            if number >= 40:  # plans and caches
                times[role].append((time.perf_counter() - before) * 1000)
        medians = {role: float(np.median(values)) for role, values in times.items()}
        return {
            "batches": jobs // BATCH - 40,
            "with_p50_ms": round(medians["origin"], 3),
            "without_p50_ms": round(medians["replica"], 3),
            "ratio": round(medians["origin"] / medians["replica"], 3),
        }

    async def announcing(self, batch: int, batches: int) -> dict[str, object]:
        """Time claim and settlement of batches, each other one where nothing is announced."""

        async def fill(tenants: list[UUID], jobs: int) -> None:
            await self.empty()
            await self.fill(tenants, jobs)

        return await announcing(lambda: self.access.connect(SUPERUSER), fill, batch, batches)

    async def start_latency(self, directory: Path, samples: int) -> dict[str, object]:
        """Enqueue one job at a time for an idle worker that listens, and time its start from before the commit."""
        await self.empty()
        begun: asyncio.Queue[float] = asyncio.Queue()
        db = await Database.open(self.access.worker_url, size=SLOTS + 2)

        async def work(claim: Claim, path: Path, settling: Callable[[bool], None]) -> None:
            begun.put_nowait(time.perf_counter())
            assert not path.exists()
            settling(True)
            await db.fetchval("cancel_job", claim.job_id, claim.number, "measured", "Measured.")

        chance = random.Random(1)
        listener = Listener(db, self.access.worker_url, name="DATABASE_URL")
        wakeups = Wakeups(listener, poll_seconds=60, randomness=chance)
        runner = Runner(
            db, Attempts(db, work, directory, 60, chance), Leases(db, lease_seconds=60, renew_seconds=15), wakeups,
            Maintenance(db, randomness=chance),
            worker_id=uuid4(), slots=SLOTS, tenant_cap=CAP, drain_seconds=1,
        )  # fmt: skip
        running = asyncio.create_task(runner.run())
        times: list[float] = []
        try:
            await _until(lambda: _said(wakeups.hearing))
            for number in range(samples + 20):
                before = time.perf_counter()
                await self.owner.execute("select ingest.enqueue_job(gen_random_uuid(), gen_random_uuid(), 1)")
                async with asyncio.timeout(10):
                    started = await begun.get()
                await _until(lambda: self.owner.fetchval("select not exists (select 1 from ingest.leases)"))
                if number >= 20:  # the first open connections
                    times.append((started - before) * 1000)
        finally:
            runner.stop()
            await running
            await db.close()
        return {"samples": samples, **_percentiles(times)}

    async def backlog(self, jobs: int, others: int, claims: int) -> dict[str, object]:
        """Time `claims` claims of a worker's slots beside a backlog and other busy tenants; they stay busy."""
        await self.prepare(jobs, others)
        times: list[float] = []
        for _ in range(claims):
            before = time.perf_counter()
            taken = await self.claim(SLOTS)
            times.append((time.perf_counter() - before) * 1000)
            await self.settle(taken)
            await self.busy_again(taken)
        return {"backlog": jobs, "other_tenants": others, **_percentiles(times)}

    async def prepare(self, jobs: int, others: int) -> None:
        """Queue a backlog of one tenant and five jobs for each other tenant; nobody has been served yet."""
        await self.empty()
        await self.fill([uuid4()], jobs)
        if others:
            await self.fill([uuid4() for _ in range(others)], 5)
        await self.owner.execute("analyze public.jobs; analyze ingest.turns")

    async def busy_again(self, taken: list[asyncpg.Record]) -> None:
        """Queue another job for each that was taken."""
        await self.owner.execute(
            "select ingest.enqueue_job(gen_random_uuid(), t, 1) from unnest($1::uuid[]) t",
            [claim["tenant_id"] for claim in taken],
        )

    async def fairness(self, jobs: int, others: int, trials: int) -> dict[str, object]:
        """Count the trials in which a newcomer's job is in the first claim of one slot after its commit.

        The other slots are held by busy tenants all the while, and between trials busy tenants are served.
        """
        await self.prepare(jobs, others)
        held = await self.claim(SLOTS - 1)
        times: list[float] = []
        first = 0
        for _ in range(trials):
            newcomer = uuid4()
            await self.owner.execute("select ingest.enqueue_job(gen_random_uuid(), $1, 1)", newcomer)
            before = time.perf_counter()
            taken = await self.claim(1)
            times.append((time.perf_counter() - before) * 1000)
            first += [claim["tenant_id"] for claim in taken] == [newcomer]
            done = [*held, *taken]
            await self.settle(done)
            await self.busy_again([claim for claim in done if claim["tenant_id"] != newcomer])
            held = await self.claim(SLOTS - 1)
        return {"backlog": jobs, "other_tenants": others, "trials": trials, "first": first, **_percentiles(times)}


async def _until(yes: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(30):
        while True:
            if await yes():
                return
            await asyncio.sleep(0.002)


async def _said(yes: bool) -> bool:
    return yes


async def measure(access: Access, directory: Path, jobs: int, backlog: int, trials: int) -> dict[str, object]:
    """Run every measurement on a migrated database of its own."""
    queue = await Queue.open(access)
    result: dict[str, object] = {}
    _say("throughput")
    result["throughput"] = await queue.throughput(jobs)
    _say("trigger")
    result["trigger"] = await queue.trigger_cost(20_000)
    _say("announcing")
    result["announcing"] = [await queue.announcing(batch, batches) for batch, batches in ((BATCH, 400), (SLOTS, 800))]
    _say("start latency")
    result["start"] = await queue.start_latency(directory, 300)
    _say("claims beside a backlog")
    result["claims"] = [await queue.backlog(backlog, others, 300) for others in (0, 20, 1000)]
    _say("fairness")
    result["fairness"] = [await queue.fairness(backlog, others, trials) for others in (0, 20, 1000)]
    return result


async def benchmark(directory: Path, jobs: int, backlog: int, trials: int) -> dict[str, object]:
    """Make a cluster in `directory`, measure, stop it, and return what was measured."""
    secrets = Secrets.generate()
    cluster = Cluster(directory / "postgres", secrets.passwords[SUPERUSER], durable=False)
    connections: list[asyncpg.Connection] = []

    async def connect(role: str) -> asyncpg.Connection:
        url = cluster.admin_url() if role == SUPERUSER else cluster.url(role, secrets.passwords[role])
        connections.append(await asyncpg.connect(url))
        return connections[-1]

    try:
        _say("making a database")
        cluster.create()
        cluster.start()
        admin = await connect(SUPERUSER)
        await shape.make_roles(admin, secrets.passwords)
        await shape.make_schemas(admin)
        await migrations.push(cluster.admin_url(), cluster.url("postgres", secrets.passwords["postgres"]))
        await shape.set_password(admin, WORKER_ROLE, secrets.passwords[WORKER_ROLE])
        worker_url = cluster.url(WORKER_ROLE, secrets.passwords[WORKER_ROLE])
        async with asyncio.timeout(240):
            return await measure(Access(connect, worker_url), directory, jobs, backlog, trials)
    finally:
        for connection in connections:
            connection.terminate()
        cluster.stop()


def _say(text: str) -> None:
    print(f"{text} …", file=sys.stderr, flush=True)


def main() -> None:
    """Parse the arguments, run, print."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.queue", description=__doc__.split("\n\n")[0])
    parser.add_argument("--jobs", type=int, default=10_000, help="jobs a round of the throughput (default: 10000)")
    parser.add_argument("--backlog", type=int, default=200_000, help="jobs of one tenant (default: 200000)")
    parser.add_argument("--trials", type=int, default=100, help="newcomers (default: 100)")
    parser.add_argument("--json", action="store_true", help="print one JSON object in one line")
    arguments = parser.parse_args()
    logger.disable("worker")
    with tempfile.TemporaryDirectory(prefix="sluice-queue-") as directory:
        result = asyncio.run(benchmark(Path(directory), arguments.jobs, arguments.backlog, arguments.trials))
    print(json.dumps(result, indent=None if arguments.json else 2))


if __name__ == "__main__":
    main()
