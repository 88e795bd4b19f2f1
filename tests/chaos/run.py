"""One chaos run: a fresh stack, workers, people and faults; then quiet, and the books are checked."""

from __future__ import annotations

import asyncio
import random
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

from local.stack import Stack
from tests.chaos import invariants
from tests.chaos.database import Observer
from tests.chaos.faults import Faults
from tests.chaos.provider import Provider
from tests.chaos.traffic import Traffic, plans
from tests.chaos.workers import Workers

_TENANTS = 8
# A longer wait for anything but a provider's Retry-After is cut short.
_LONGEST_WAIT = 3.0


@dataclass(frozen=True)
class Settings:
    """`count` uploads and overwrites at `rate` a second; `fault_rate` faults a second."""

    count: int
    seed: int
    workers: int = 3
    rate: float = 8.0
    fault_rate: float = 2.5
    lease_seconds: float = 2.0
    only_kills: bool = False
    unfenced: bool = False


@asynccontextmanager
async def new_directory(keep: Path | None) -> AsyncIterator[Path]:
    if keep is not None:
        keep.mkdir(parents=True)
        yield keep
        return
    with tempfile.TemporaryDirectory(prefix="sluice-chaos-", ignore_cleanup_errors=True) as name:
        yield Path(name)


async def run(settings: Settings, keep: Path | None = None) -> dict[str, Any]:
    """Carry a run out and return its report; with `keep`, the stack's data and the logs stay in that new folder."""
    began = time.monotonic()
    async with new_directory(keep) as directory, Stack(directory / "stack", durable=False) as stack:
        observer = Observer(stack)
        await observer.prepare(unfenced=settings.unfenced)
        workers: Workers | None = None

        async def killed_by_a_document(pid: int) -> bool:
            return workers is not None and await workers.kill_pid(pid)

        provider = Provider(settings.seed, killed_by_a_document)
        await provider.start()
        randomness = random.Random(f"faults {settings.seed}")
        workers = Workers(stack, observer, directory, provider.port, settings.lease_seconds, randomness)
        faults = Faults(
            stack, observer, workers, randomness, settings.fault_rate, settings.lease_seconds, settings.only_kills
        )
        traffic = Traffic(stack)
        await workers.start(settings.workers)
        overdue = Worst()
        housekeeping = asyncio.create_task(cut_waits(observer, overdue))
        try:
            injecting = asyncio.create_task(faults.run())
            await traffic.live(plans(settings.count, settings.seed, await sign_up(observer), settings.rate))
            await _until_few_are_open(observer, settings.count // 20)
            injecting.cancel()
            with suppress(asyncio.CancelledError):
                await injecting
            await faults.end()
            # A document that kills its workers lasts three leases.
            unsettled = await settled(observer, 60 + 4 * settings.lease_seconds + settings.count / 10)
        finally:
            housekeeping.cancel()
            await workers.stop()
            provider.stop()
        with suppress(asyncio.CancelledError):
            await housekeeping  # what it failed with
        found = await invariants.check(observer, traffic.accepted, directory / "stack" / "storage")
        found.orphans += invariants.left_behind(directory / "work", workers.pids)
        found.lost += [f"refused: {what}" for what in traffic.refused]
        injected = workers.done + faults.done + sum((w.proxy.done for w in workers.places), Counter[str]())
        recovered = await invariants.recoveries(observer)
        report: dict[str, Any] = {
            "jobs": await observer.value("jobs"),
            "kills": sum(n for what, n in workers.done.items() if what.startswith("kill: ")),
            **found.counts(),
            "seconds": round(time.monotonic() - began, 1),
            "n": settings.count,
            "seed": settings.seed,
            "lease_seconds": settings.lease_seconds,
            "unsettled": unsettled,
            "workers_that_did_not_stop": len(workers.unexpected),
            "longest_overdue_lease_seconds": round(overdue.seconds, 2),
            "recovery_seconds": _spread(recovered),
            "injected": dict(sorted(injected.items())),
            "traffic": dict(sorted(traffic.done.items())),
            "provider": dict(sorted(provider.answers.items())),
            "events": {row[0]: row[1] for row in await observer.fetch("events")},
            "most_rescues_of_a_job": await observer.value("most_rescues"),
            "problems": {name: said[:20] for name, said in vars(found).items() if said},
        }  # fmt: skip
        await observer.forget()
    return report


def passed(report: dict[str, Any]) -> bool:
    """Whether nothing was found wrong."""
    zero = ("lost", "discarded_innocent", "committed_twice", "stale_documents", "orphans", "attempts_charged_by_429",
            "broken_claims", "unsettled", "workers_that_did_not_stop")  # fmt: skip
    return not any(report[name] for name in zero)


class Worst:
    """The worst that was seen."""

    seconds = 0.0


async def cut_waits(observer: Observer, overdue: Worst) -> None:
    """Cut long waits, and look how long leases stand after their end."""
    while True:
        await asyncio.sleep(0.5)
        with suppress(TimeoutError):
            await observer.fetch("cut_waits", _LONGEST_WAIT)
            overdue.seconds = max(overdue.seconds, await observer.value("longest_overdue"))


async def sign_up(observer: Observer) -> list[str]:
    """Return new tenants."""
    users = [str(uuid4()) for _ in range(_TENANTS)]
    for user in users:
        await observer.fetch("add_user", user)
    return users


async def _until_few_are_open(observer: Observer, few: int) -> None:
    """Let faults go on while there is work; half a minute at most."""
    until = time.monotonic() + 30
    while int(await observer.value("open")) > few and time.monotonic() < until:  # noqa: ASYNC110 - a table, no event
        await asyncio.sleep(0.1)


async def settled(observer: Observer, seconds: float, question: str = "open") -> int:
    """Wait until nothing is open any more, and return how much is after so long."""
    until = time.monotonic() + seconds
    while (left := int(await observer.value(question))) and time.monotonic() < until:  # noqa: ASYNC110
        await asyncio.sleep(0.1)
    return left


def _spread(sorted_: list[float]) -> dict[str, float]:
    if not sorted_:
        return {}
    return {
        "count": len(sorted_),
        "p50": round(sorted_[len(sorted_) // 2], 2),
        "p99": round(sorted_[min(len(sorted_) - 1, int(len(sorted_) * 0.99))], 2),
        "max": round(sorted_[-1], 2),
    }
