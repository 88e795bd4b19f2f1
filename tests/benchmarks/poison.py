"""`scripts/bench poison`: W1 with one document that the provider refuses, by turns with W1 without it."""

from __future__ import annotations

import sys
from statistics import median
from typing import Any

import click

from local import interrupt
from tests.benchmarks.documents import DOCUMENTS
from tests.benchmarks.w1 import show
from tests.benchmarks.world import Run, say, world

WORD = "refusedbytheprovider"


async def measure(documents: int, rounds: int, slots: int) -> dict[str, Any]:
    """Return how the others fared."""
    clean: list[Run] = []
    poisoned: list[Run] = []
    async with world(documents, WORD) as made:
        for number in range(rounds):
            for refuse in ("", WORD)[:: -1 if number % 2 else 1]:
                say(f"round {number + 1} of {rounds}, {'with the poison' if refuse else 'clean'}")
                await made.fill(bare=False)
                await made.double.reset(refuse=refuse)
                (poisoned if refuse else clean).append(await made.work(made.settings(8, slots)))
    seconds = {name: median(run.steady for run in runs) for name, runs in (("clean", clean), ("poisoned", poisoned))}
    return {
        "documents": documents, "rounds": rounds, "slots": slots,
        "clean_seconds": round(seconds["clean"], 2), "poisoned_seconds": round(seconds["poisoned"], 2),
        "times_the_clean": round(seconds["poisoned"] / seconds["clean"], 3),
        "others_ready": min(run.left.get("ready", 0) for run in poisoned),
        "given_up": max(run.left.get("failed", 0) for run in poisoned),
        "requests": poisoned[-1].counts["requests"], "refused": poisoned[-1].counts["refused"],
        "clean_requests": clean[-1].counts["requests"],
    }  # fmt: skip


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--documents", type=click.IntRange(min=2), default=DOCUMENTS, show_default=True)
@click.option("--rounds", type=click.IntRange(min=1), default=3, show_default=True)
@click.option("--slots", type=click.IntRange(1, 256), default=32, show_default=True)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object in the last line.")
def main(documents: int, rounds: int, slots: int, as_json: bool) -> None:
    """Measure 500 documents of which one is refused."""

    async def run() -> int:
        show(await measure(documents, rounds, slots), as_json=as_json)
        return 0

    sys.exit(interrupt.run(run()))


if __name__ == "__main__":
    main(prog_name="scripts/bench poison")
