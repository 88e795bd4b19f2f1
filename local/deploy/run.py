"""The steps in their order: all of them are planned before any is carried out."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from local.deploy import check, environment, exposure, functions, history, hooks, login, migrate
from local.deploy.connection import connected
from local.deploy.step import Outcome, Plan, Refused, Status, Step
from local.deploy.target import Target
from local.errors import StackError

STEPS = (
    Step("settings", check.plan),
    Step("history", history.plan),
    Step("migrations", migrate.plan, migrate.apply),
    Step("worker login", login.plan, login.apply),
    Step("hook settings", hooks.plan, hooks.apply),
    Step("functions", functions.plan, functions.apply),
    Step("auth", exposure.plan_auth),
    Step("schemas", exposure.plan_schemas),
    Step("worker environment", environment.plan, environment.apply),
)
Tell = Callable[[Outcome], None]
# One deployment a database, wherever it is started.
_LOCK = "select pg_try_advisory_lock(hashtextextended('sluice deploy', 0))"


async def survey(target: Target, tell: Tell) -> list[Outcome]:
    """Plan every step and change nothing; ends at the first one that fails."""
    return await _go(target, tell, carry_out=False)


async def carry_out(target: Target, tell: Tell) -> list[Outcome]:
    """Plan and carry out step after step; ends at the first one that fails, and what was done before it stands."""
    async with _alone(target):
        return await _go(target, tell, carry_out=True)


async def _go(target: Target, tell: Tell, *, carry_out: bool) -> list[Outcome]:
    outcomes: list[Outcome] = []
    for step in STEPS:
        if outcomes and outcomes[-1].status in (Status.FAILED, Status.NOT_REACHED):
            outcome = Outcome(step.name, Status.NOT_REACHED, "An earlier step failed.")
        else:
            outcome = await _take(step, target, carry_out=carry_out)
        tell(outcome)
        outcomes.append(outcome)
    return outcomes


async def _take(step: Step, target: Target, *, carry_out: bool) -> Outcome:
    plan = Plan("")
    try:
        plan = await step.plan(target)
        if not plan.changes or step.apply is None:
            return Outcome(step.name, Status.UNCHANGED, plan.said, (), plan.warnings)
        if not carry_out:
            return Outcome(step.name, Status.WOULD_CHANGE, plan.said, plan.changes, plan.warnings)
        return Outcome(step.name, Status.CHANGED, await step.apply(target), plan.changes, plan.warnings)
    except StackError as exc:
        return Outcome(step.name, Status.FAILED, str(exc), plan.changes, plan.warnings, isinstance(exc, Refused))


@asynccontextmanager
async def _alone(target: Target) -> AsyncIterator[None]:
    async with connected(target) as connection:
        if not await connection.fetchval(_LOCK):
            raise StackError("Another deployment to this database is under way. Wait for its end, then run this again.")
        yield
