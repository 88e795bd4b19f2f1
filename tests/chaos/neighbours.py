"""What one poison document costs those beside it: the same documents with and without one, in turn."""

from __future__ import annotations

import asyncio
import json
import random
import statistics
import sys
from typing import Any, get_args

import click

from local import interrupt
from local.errors import StackError
from local.stack import Stack
from tests.chaos.database import Observer
from tests.chaos.provider import Provider
from tests.chaos.run import Worst, cut_waits, new_directory, settled, sign_up
from tests.chaos.traffic import Plan, Poison, Traffic, plan_name, text
from tests.chaos.workers import Workers

_WORKERS = 2


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--n", "count", type=click.IntRange(10, 10_000), default=500, show_default=True, help="Documents.")
@click.option("--seed", type=int, default=1, show_default=True)
@click.option("--rounds", type=click.IntRange(1, 20), default=3, show_default=True, help="Of each; medians count.")
@click.option("--lease", type=click.FloatRange(1, 3600), default=2.0, show_default=True, help="Seconds.")
def main(count: int, seed: int, rounds: int, lease: float) -> None:
    """Measure how long all documents but one take, when that one is as the others, refused, or a killer."""
    try:
        sys.exit(interrupt.run(_report(count, seed, rounds, lease)))
    except StackError as error:
        raise click.ClickException(str(error)) from error


async def _report(count: int, seed: int, rounds: int, lease: float) -> int:
    kinds: list[Poison | None] = [None, *get_args(Poison)]
    taken: dict[str, list[dict[str, Any]]] = {kind or "clean": [] for kind in kinds}
    for round_ in range(rounds):
        for kind in kinds:
            taken[kind or "clean"].append(await _measure(count, seed + round_, lease, kind))
    clean = statistics.median(one["seconds"] for one in taken["clean"])
    report = {
        name: {
            "seconds": round(statistics.median(one["seconds"] for one in ones), 2),
            "times_the_clean": round(statistics.median(one["seconds"] for one in ones) / clean, 3),
            "every": [one["seconds"] for one in ones],
            "fewest_ready": min(one["ready"] for one in ones),
            "most_leases_of_the_poison": max(one["poison_leases"] for one in ones),
            "verdicts": sorted({str(one["poison_verdict"]) for one in ones}),
        }
        for name, ones in taken.items()
    }
    click.echo(json.dumps({"n": count, "seed": seed, "rounds": rounds, "lease_seconds": lease, **report}))
    # The poison document is one of the n; in the clean runs its place is taken by one more that is not.
    return 0 if all(one["ready"] >= count - 1 for ones in taken.values() for one in ones) else 1


async def _measure(count: int, seed: int, lease: float, poison: Poison | None) -> dict[str, Any]:
    async with new_directory(None) as directory, Stack(directory / "stack", durable=False) as stack:
        observer = Observer(stack)
        await observer.prepare()
        workers: Workers | None = None

        async def kill(pid: int) -> bool:
            return workers is not None and await workers.kill_pid(pid)

        provider = Provider(seed, kill, faulty=False)
        await provider.start()
        randomness = random.Random(f"neighbours {seed}")
        workers = Workers(stack, observer, directory, provider.port, lease, randomness)
        tenants = await sign_up(observer)
        lives = []
        for number in range(count):
            kind = poison if number == count // 5 else None
            tenant = tenants[number % len(tenants)]
            content = text(randomness, f"{seed}-{number}", kind)
            # At a hundred a second; what is measured begins when all are there.
            lives.append(
                Plan(tenant, plan_name(tenant, number, kind, "txt"), kind, [content], [0, 0], None, False, number / 100)
            )
        await Traffic(stack).live(lives)
        try:
            await workers.start(_WORKERS)
            left = await settled(observer, 300, "neighbours_open")
            # Nobody waits for the poison document's own pauses.
            cutting = asyncio.create_task(cut_waits(observer, Worst()))
            left += await settled(observer, 120)
            cutting.cancel()
        finally:
            await workers.stop()
            provider.stop()
        measured = {
            "seconds": round(await observer.value("neighbours_seconds"), 2),
            "ready": await observer.value("neighbours_ready"),
            "poison_leases": await observer.value("poison_leases"),
            "poison_verdict": await observer.value("poison_verdict"),
            "left": left,
        }
        await observer.forget()
    return measured


if __name__ == "__main__":
    main()
