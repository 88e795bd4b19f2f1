"""`scripts/bench w1`: workload W1 by a real worker, beside the bare loop and the limits of this machine, in one run.

500 documents wait, their bytes in Storage and their jobs in the queue, when the worker starts: with the OpenAI adapter,
full bookkeeping, and no index over vectors unless `--hnsw`. Worker and bare loop work by turns, the one first that
was last before; each figure is the median of the rounds. Steady is from the first request to the last commit.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

import click

from local import interrupt
from tests.benchmarks import reference
from tests.benchmarks.documents import DOCUMENTS
from tests.benchmarks.world import CHUNK_TOKENS, Run, World, say, world

LATENCIES = {"0": (0.0, 0.0), "80": (0.08, 0.0), "80+10": (0.08, 0.01 / 1000)}
"""Seconds a request, and seconds a token of it."""


@dataclass(frozen=True, slots=True)
class Workload:
    """What is asked of a worker."""

    documents: int = DOCUMENTS
    rounds: int = 3
    concurrency: int = 8
    slots: int = 32
    latency: str = "0"
    hnsw: bool = False
    tokens_per_minute: int = 0
    untold: bool = False
    """Whether the worker learns of the limit only by being refused."""

    def manner(self) -> dict[str, Any]:
        """Return how the double is to answer."""
        seconds, a_token = LATENCIES[self.latency]
        return {"seconds": seconds, "seconds_a_token": a_token, "tokens_a_minute": self.tokens_per_minute}


@dataclass(frozen=True, slots=True)
class Measured:
    """All runs of one workload, by turns."""

    workload: Workload
    ours: Sequence[Run]
    bare: Sequence[Run]
    copied: Sequence[float]

    def report(self) -> dict[str, Any]:
        """Return every figure; ratios are of medians."""
        ours, bare, workload = self.ours, self.bare, self.workload
        rate = median(run.rate for run in ours)
        found: dict[str, Any] = {
            "documents": workload.documents, "rounds": workload.rounds, "concurrency": workload.concurrency,
            "slots": workload.slots, "latency": workload.latency, "hnsw": workload.hnsw, "chunk_tokens": CHUNK_TOKENS,
            "chunks": ours[-1].chunks,
            "chunks_per_second": round(rate),
            "chunks_per_second_of_rounds": [round(run.rate) for run in ours],
            "reference_chunks_per_second": None,
            "ratio": None,
            "cpu_ms_per_chunk": round(median(1000 * run.cpu / run.chunks for run in ours), 3),
            "cpu_ms_per_chunk_with_start": round(median(1000 * run.cpu_total / run.chunks for run in ours), 3),
            "postgres_cpu_ms_per_chunk": round(median(1000 * run.postgres_cpu / run.chunks for run in ours), 3),
            "peak_rss_mb": round(max(run.peak_rss_mb for run in ours)),
            "requests": ours[-1].counts["requests"],
            "most_at_once": max(run.counts["most_at_once"] for run in ours),
            "steady_seconds": round(median(run.steady for run in ours), 2),
            "total_seconds": round(median(run.total for run in ours), 2),
            "start_seconds": round(median(run.total - run.steady for run in ours), 2),
            "not_ready": sum(workload.documents - run.left.get("ready", 0) for run in ours),
        }  # fmt: skip
        if bare:
            bare_rate = median(run.rate for run in bare)
            found |= {
                "reference_chunks_per_second": round(bare_rate),
                "reference_chunks_per_second_of_rounds": [round(run.rate) for run in bare],
                "ratio": round(rate / bare_rate, 3),
                "reference_cpu_ms_per_chunk": round(median(1000 * run.cpu / run.chunks for run in bare), 3),
                "reference_peak_rss_mb": round(max(run.peak_rss_mb for run in bare)),
                "reference_requests": bare[-1].counts["requests"],
            }
        if self.copied:
            found["copy_rows_per_second"] = round(median(self.copied))
            found["share_of_copy"] = round(rate / median(self.copied), 3)
        if any(LATENCIES[workload.latency]):
            formula = median(self._formula(run) for run in ours)
            found |= {"formula_chunks_per_second": round(formula), "share_of_formula": round(rate / formula, 3)}
            if bare:
                found["reference_share_of_formula"] = round(
                    median(run.rate for run in bare) / median(self._formula(run) for run in bare), 3
                )
        if workload.tokens_per_minute:
            rate_limit = workload.tokens_per_minute
            ideals = [_ideal(run, rate_limit, rate_limit) for run in ours]
            found |= {
                "tokens_per_minute": workload.tokens_per_minute,
                "ideal_seconds": round(median(ideals), 2),
                "times_the_ideal": round(
                    median(run.steady / ideal for run, ideal in zip(ours, ideals, strict=True)), 3
                ),
                "untold": workload.untold,
                "throttled": ours[-1].counts["throttled"],
            }
        return found

    def _formula(self, run: Run) -> float:
        """Return concurrency x chunks a request / latency of such a request."""
        seconds, a_token = LATENCIES[self.workload.latency]
        requests = run.counts["answered"]
        latency = seconds + a_token * run.counts["tokens"] / requests
        return float(self.workload.concurrency * run.counts["texts"] / requests / latency)


def _ideal(run: Run, tokens_per_minute: int, held: float) -> float:
    """Return how long the tokens take from a bucket that holds so many at the start."""
    return float(max(1e-9, (run.counts["tokens"] - held) * 60 / tokens_per_minute))


async def measure(made: World, workload: Workload) -> Measured:
    """Run everything on a prepared world."""
    if workload.hnsw:
        await made.index_vectors()
        await made.admin.execute("create index on bare.chunks using hnsw (embedding extensions.vector_cosine_ops)")
    told = workload.tokens_per_minute and not workload.untold
    more = {"SLUICE_EMBED_TOKENS_PER_MINUTE": str(workload.tokens_per_minute)} if told else {}
    settings = made.settings(workload.concurrency, workload.slots, **more)
    manner = workload.manner()
    ours: list[Run] = []
    bare: list[Run] = []
    copied: list[float] = []

    async def one(which: str) -> None:
        await made.fill(bare=which == "reference")
        await made.admin.execute("delete from ingest.rate_limits where provider = 'openai'")
        await made.double.reset(**manner)
        say(which)
        if which == "worker":
            ours.append(await made.work(settings))
        else:
            bare.append(await made.refer(workload.concurrency))

    for number in range(workload.rounds):
        say(f"round {number + 1} of {workload.rounds}")
        # The bare loop dies of a 429.
        turns = ["worker"] if workload.tokens_per_minute else ["reference", "worker"][:: -1 if number % 2 else 1]
        for which in turns:
            await one(which)
        await made.empty()
        if not workload.hnsw:
            copied.append(await reference.copy_rate(made.admin))
    return Measured(workload, ours, bare, copied)


def table(report: dict[str, Any]) -> str:
    """Write the figures for a person."""
    lines = [f"  {name.replace('_', ' '):38} {value}" for name, value in report.items() if value is not None]
    return "\n".join(lines)


def show(report: dict[str, Any], *, as_json: bool) -> None:
    """Print the figures, in one line at the end where asked for."""
    print(table(report), flush=True)
    if as_json:
        print(json.dumps(report), flush=True)


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--documents", type=click.IntRange(min=2), default=DOCUMENTS, show_default=True)
@click.option("--rounds", type=click.IntRange(min=1), default=3, show_default=True, help="By turns with the bare loop.")
@click.option("--concurrency", type=click.IntRange(1, 256), default=8, show_default=True, help="Requests under way.")
@click.option("--slots", type=click.IntRange(1, 256), help="Documents under way.  [default: 4 times the concurrency]")
@click.option("--latency", type=click.Choice(list(LATENCIES)), default="0", show_default=True,
              help="Of the provider: milliseconds a request, + milliseconds for 1,000 tokens.")  # fmt: skip
@click.option("--hnsw", is_flag=True, help="With an HNSW index over the vectors from the beginning.")
@click.option("--tokens-per-minute", type=click.IntRange(min=0), default=0, help="What the provider allows.")
@click.option("--untold", is_flag=True, help="The worker is not told of it, and learns by 429.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object in the last line.")
def main(
    documents: int, rounds: int, concurrency: int, slots: int | None, latency: str, hnsw: bool, tokens_per_minute: int,
    untold: bool, as_json: bool,
) -> None:  # fmt: skip
    """Measure workload W1."""
    slots = slots or min(256, 4 * concurrency)
    workload = Workload(documents, rounds, concurrency, slots, latency, hnsw, tokens_per_minute, untold)

    async def run() -> int:
        async with world(documents) as made:
            show((await measure(made, workload)).report(), as_json=as_json)
        return 0

    sys.exit(interrupt.run(run()))


if __name__ == "__main__":
    main(prog_name="scripts/bench w1")
