"""What announcing progress costs the queue: claims and settles with it and without it, batch by batch by turns.

The jobs do nothing, so that the share of the announcements is as large as it can be. Nobody follows: the rows of
realtime.messages are written, what reads them from the log is another process's work.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from uuid import UUID, uuid4

import asyncpg
import numpy as np

WARM_UP = 40
CLAIM = "select job_id, claim from ingest.claim_jobs($1, $2, interval '60 seconds', 1000)"
SETTLE = "select count(*) from ingest.settle_jobs($1, $2, 'complete')"
# Where triggers do not fire those that refuse a transition do so all the same: only announcing makes the difference.
ALWAYS = """
    alter table public.jobs enable always trigger refuse_transition;
    alter table public.jobs enable always trigger refuse_beginning"""


async def announcing(
    connect: Callable[[], Awaitable[asyncpg.Connection]],
    fill: Callable[[list[UUID], int], Awaitable[None]],
    batch: int,
    batches: int,
) -> dict[str, object]:
    """Claim and settle so many batches, each other one on a connection on which nothing is announced.

    `connect` gives a superuser's connection; `fill` queues so many jobs for each tenant in an empty queue.
    """
    connections = {role: await connect() for role in ("origin", "replica")}
    await connections["origin"].execute(ALWAYS)
    await connections["origin"].execute("delete from realtime.messages")
    for role, connection in connections.items():
        await connection.execute(f"set session_replication_role = {role}")
    await fill([uuid4() for _ in range(20)], batch * (batches + WARM_UP) // 20 + 1)
    await connections["replica"].execute("analyze public.jobs")
    times: dict[str, list[float]] = {role: [] for role in connections}
    for number in range(batches + WARM_UP):
        role = "origin" if number % 4 in (0, 3) else "replica"
        before = time.perf_counter()
        claims = await connections[role].fetch(CLAIM, uuid4(), batch)
        await connections[role].fetchval(SETTLE, [c["job_id"] for c in claims], [c["claim"] for c in claims])
        if len(claims) != batch:
            raise RuntimeError(f"a claim of {batch} jobs gave {len(claims)}")
        if number >= WARM_UP:  # plans and caches
            times[role].append(time.perf_counter() - before)
    messages = await connections["replica"].fetchval("select count(*) from realtime.messages")
    announced, silent = (float(np.median(times[role])) for role in ("origin", "replica"))
    fastest = {role: float(np.percentile(times[role], 10)) for role in times}
    return {
        "batch": batch,
        "jobs_a_second_announced": round(batch / announced),
        "jobs_a_second_silent": round(batch / silent),
        "kept": round(silent / announced, 3),
        # Of the fastest tenth of each: what other processes did meanwhile is in neither.
        "kept_undisturbed": round(fastest["replica"] / fastest["origin"], 3),
        "messages_a_job": round(messages / (batch * (batches + WARM_UP) / 2), 2),
    }
