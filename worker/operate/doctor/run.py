"""Runs checks: what does not depend on another runs beside it, each within its own time."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable, Sequence

from worker.operate.doctor import api, database, machine, network, provider, schema, settings
from worker.operate.doctor.check import BROKEN, TIMED_OUT, Check, Finding, Ill, NotSet, NotUsed, Problem
from worker.operate.doctor.examination import Examination

CHECKS: tuple[Check, ...] = (
    *settings.CHECKS, *network.CHECKS, *database.CHECKS, *schema.CHECKS, *api.CHECKS, *provider.CHECKS,
    *machine.CHECKS,
)  # fmt: skip
"""In the order in which they are told; what a check needs stands before it."""


def with_needs(chosen: Iterable[Check]) -> list[Check]:
    """Return the chosen checks and all that they need, in order."""
    wanted = {check.name for check in chosen}
    for check in reversed(CHECKS):
        if check.name in wanted:
            wanted.update(check.needs)
    return [check for check in CHECKS if check.name in wanted]


async def examine(examination: Examination, checks: Sequence[Check] = CHECKS) -> list[Finding]:
    """Run the checks and return what each found, in their order; nothing that a check raises comes through."""
    tasks: dict[str, asyncio.Task[Finding]] = {}
    try:
        async with asyncio.TaskGroup() as group:
            for check in checks:
                tasks[check.name] = group.create_task(_one(examination, check, tasks))
    finally:
        await examination.close()
    return [task.result() for task in tasks.values()]


async def _one(examination: Examination, check: Check, tasks: dict[str, asyncio.Task[Finding]]) -> Finding:
    for name in check.needs + check.unless:
        if name not in tasks:
            continue
        before = await tasks[name]
        if before.status == "failed":
            return _finding(check, "skipped", "needs", f"Not looked at: {name} failed.")
        if before.status == "skipped" and name in check.needs:
            return _finding(check, "skipped", before.code, before.message)
    began = time.monotonic()

    def ended(status: str, code: str | None, message: str, remedy: str | None = None) -> Finding:
        clean = examination.without_secrets
        return _finding(
            check, status, code, clean(message), clean(remedy) if remedy else None, time.monotonic() - began
        )

    def ill(problem: Problem, message: str, remedy: str) -> Finding:
        return ended("warning" if problem.warning else "failed", problem.code, message, remedy)

    try:
        async with asyncio.timeout(check.seconds):
            return ended("ok", None, await check.run(examination))
    except Ill as exc:
        found = exc
    except NotUsed as reason:
        return ended("skipped", "not_set" if isinstance(reason, NotSet) else "not_used", str(reason))
    except TimeoutError:
        found = TIMED_OUT.found(name=check.name, seconds=check.seconds)
    except Exception as exc:  # noqa: BLE001 - a doctor that crashes helps nobody; the finding names the class
        found = BROKEN.found(name=check.name, error=type(exc).__name__)
    return ill(found.problem, found.message, found.remedy)


def _finding(
    check: Check, status: str, code: str | None, message: str, remedy: str | None = None, seconds: float = 0
) -> Finding:
    return Finding(check.name, check.layer, status, code, message, remedy, round(seconds * 1000))  # type: ignore[arg-type]
