"""`scripts/bench load`: W1 into an index that is there, and W1 first with the index built afterwards.

The index is HNSW with pgvector's own parameters, over the partition of the model's vectors.
"""

from __future__ import annotations

import sys
import time
from statistics import median
from typing import Any

import click

from local import interrupt
from tests.benchmarks.documents import DOCUMENTS
from tests.benchmarks.w1 import show
from tests.benchmarks.world import Run, say, world


async def measure(documents: int, rounds: int) -> dict[str, Any]:
    """Load in both ways by turns."""
    inline: list[float] = []
    deferred: list[tuple[float, float]] = []
    run: Run | None = None
    async with world(documents) as made:
        for number in range(rounds):
            for after in (True, False)[:: -1 if number % 2 else 1]:
                say(f"round {number + 1} of {rounds}, index {'afterwards' if after else 'from the beginning'}")
                await made.drop_index()
                await made.fill(bare=False)
                await made.double.reset()
                if not after:
                    await made.index_vectors()
                run = await made.work(made.settings(8, 32))
                if not after:
                    inline.append(run.steady)
                    continue
                began = time.monotonic()
                await made.index_vectors()
                deferred.append((run.steady, time.monotonic() - began))
    assert run is not None
    index = median(built for _, built in deferred)
    load = median(steady for steady, _ in deferred)
    return {
        "documents": documents, "rounds": rounds, "chunks": run.chunks,
        "inline_seconds": round(median(inline), 2),
        "deferred_seconds": round(median(steady + built for steady, built in deferred), 2),
        "of_which_index_seconds": round(index, 2),
        "times_faster": round(median(inline) / median(steady + built for steady, built in deferred), 2),
        # What the index itself costs a row: inline, it is what the load takes longer than without it.
        "index_rows_per_second_deferred": round(run.chunks / index),
        "index_rows_per_second_inline": round(run.chunks / max(1e-9, median(inline) - load)),
    }  # fmt: skip


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--documents", type=click.IntRange(min=2), default=DOCUMENTS, show_default=True)
@click.option("--rounds", type=click.IntRange(min=1), default=3, show_default=True)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object in the last line.")
def main(documents: int, rounds: int, as_json: bool) -> None:
    """Measure an initial load."""

    async def run() -> int:
        show(await measure(documents, rounds), as_json=as_json)
        return 0

    sys.exit(interrupt.run(run()))


if __name__ == "__main__":
    main(prog_name="scripts/bench load")
