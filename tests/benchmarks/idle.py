"""`scripts/bench idle`: how long after its insert a document's chunks can be read, where the worker was idle.

Each document's object is inserted by one transaction, as Storage's last step is; a second connection asks every
millisecond whether the document is ready, which says in one transaction with its chunks. What the provider takes of
itself is taken off. The first few open connections and are not counted.
"""

from __future__ import annotations

import asyncio
import sys
import time
from typing import Any

import click
import numpy as np

from local import interrupt
from local.worker_process import working
from tests.benchmarks.w1 import LATENCIES, show
from tests.benchmarks.world import World, say, world

WARM_UP = 5
_READY = "select exists (select 1 from public.documents where name = $1 and state = 'ready')"


async def measure(made: World, latency: str, samples: int, slots: int) -> dict[str, Any]:
    """Insert one document after another into a world without any."""
    seconds, _ = LATENCIES[latency]
    await made.empty()
    await made.double.reset(**{"seconds": seconds})
    times: list[float] = []
    async with working(made.stack, made.directory / "worker.log", **made.settings(8, slots)):
        for number in range(samples + WARM_UP):
            position = len(made.texts)
            await made.new_document(position)
            name = f"{made.tenant}/{position}.md"
            await made.insert([position])
            began = time.perf_counter()
            async with asyncio.timeout(60):
                while not await made.admin.fetchval(_READY, name):  # noqa: ASYNC110 - it is the database that knows
                    await asyncio.sleep(0.001)
            if number >= WARM_UP:
                times.append((time.perf_counter() - began - seconds) * 1000)
            await asyncio.sleep(0.05)
    p50, p99 = np.percentile(times, (50, 99))
    counts = await made.double.counts()
    return {
        "latency": latency, "samples": samples, "slots": slots,
        "p50_ms": round(float(p50), 1), "p99_ms": round(float(p99), 1), "max_ms": round(max(times), 1),
        "requests": counts["requests"], "chunks": await made.admin.fetchval("select count(*) from public.chunks"),
    }  # fmt: skip


async def commit_ms(made: World, times: int = 50) -> float:
    """Return the median milliseconds of one commit of one row on this disk: what every durable step costs."""
    await made.admin.execute("create table bare.commits (n int)")
    took = []
    for number in range(times):
        began = time.perf_counter()
        await made.admin.execute("insert into bare.commits values ($1)", number)
        took.append((time.perf_counter() - began) * 1000)
        await asyncio.sleep(0.02)
    return round(float(np.median(took)), 2)


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--samples", type=click.IntRange(min=1), default=100, show_default=True, help="With each latency.")
@click.option("--slots", type=click.IntRange(1, 256), default=4, show_default=True)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object in the last line.")
def main(samples: int, slots: int, as_json: bool) -> None:
    """Measure an idle worker."""

    async def run() -> int:
        async with world(0) as made:
            found = {}
            for latency in ("0", "80"):
                say(f"latency {latency}")
                found[f"latency_{latency}"] = await measure(made, latency, samples, slots)
            commit = await commit_ms(made)
        show({"samples": samples, "commit_ms": commit, **found}, as_json=as_json)
        return 0

    sys.exit(interrupt.run(run()))


if __name__ == "__main__":
    main(prog_name="scripts/bench idle")
