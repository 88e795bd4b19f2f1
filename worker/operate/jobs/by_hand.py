"""`sluice jobs retry` and `sluice jobs cancel`: one job, or many by filter, counted before anything is done."""

from __future__ import annotations

import asyncio
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, TypeVar
from uuid import UUID

import click

from worker.operate.jobs.selection import Selection, filters
from worker.operate.terminal import ask, confirmed, say_json
from worker.operate.words import counted

if TYPE_CHECKING:
    from worker.db.pool import Database

Action = Literal["retry", "cancel"]
F = TypeVar("F", bound=Callable[..., Any])

_MOST = 10_000
_BATCH = 100
_HELD_TRIES = 6
_HELD_SECONDS = 0.5
_WORDS: dict[Action, tuple[str, str]] = {"retry": ("Retry", "retried"), "cancel": ("Cancel", "cancelled")}


@dataclass(slots=True)
class Done:
    """What became of the jobs that were asked for, up to now."""

    done: list[int] = field(default_factory=list)
    refused: dict[int, str] = field(default_factory=dict)
    held: list[int] = field(default_factory=list)

    async def act(self, db: Database, action: Action, jobs: Sequence[int]) -> None:
        """Act on the jobs in batches of one transaction each; those that somebody holds are tried again."""
        from rich.console import Console
        from rich.progress import Progress

        console = Console(stderr=True)
        with Progress(console=console, disable=not console.is_terminal, transient=True) as progress:
            task = progress.add_task(_WORDS[action][0], total=len(jobs))
            for start in range(0, len(jobs), _BATCH):
                batch = jobs[start : start + _BATCH]
                await self._batch(db, action, batch)
                progress.advance(task, len(batch))
            for _ in range(_HELD_TRIES):
                if not self.held:
                    break
                await asyncio.sleep(_HELD_SECONDS)
                again, self.held = self.held, []
                for start in range(0, len(again), _BATCH):
                    await self._batch(db, action, again[start : start + _BATCH])

    async def _batch(self, db: Database, action: Action, jobs: Sequence[int]) -> None:
        for row in await db.fetch(f"{action}_by_hand", list(jobs)):
            if row["done"]:
                self.done.append(row["job_id"])
            elif row["why"] == "held":
                self.held.append(row["job_id"])
            else:
                self.refused[row["job_id"]] = row["why"]


def _options(*states: str) -> Callable[[F], F]:
    """Add the jobs, the filters and what bounds them."""
    options = (
        click.argument("jobs", metavar="[ID]...", nargs=-1, type=click.IntRange(1)),
        filters(*states),
        click.option(
            "--limit", type=click.IntRange(1, _MOST), default=1000, show_default=True,
            help=f"With filters: how many at most, the newest first; {_MOST:,} is the most.",
        ),
        click.option("--yes", is_flag=True, help="Do not ask."),
        click.option("--json", "as_json", is_flag=True, help="Print one JSON object."),
    )  # fmt: skip

    def add(command: F) -> F:
        for option in reversed(options):
            command = option(command)
        return command

    return add


@click.command()
@_options("discarded", "cancelled")
def retry(jobs: tuple[int, ...], limit: int, yes: bool, as_json: bool, **filtered: Any) -> None:
    """Bring back discarded and cancelled jobs, with five more attempts: by ID, or by filter.

    What matches the filters is counted and shown first, and only that is retried, whatever ends meanwhile. Ctrl-C
    stops between two batches; run it again for the rest.

    Exit codes: 0 all were retried; 1 nothing matched, some could not be retried (it says why), or declined; 2 wrong
    usage or settings; 130 interrupted.
    """
    _run("retry", jobs, _selection(("discarded", "cancelled"), **filtered), limit, yes, as_json)


@click.command()
@_options("available", "running")
def cancel(jobs: tuple[int, ...], limit: int, yes: bool, as_json: bool, **filtered: Any) -> None:
    """Stop jobs that wait or run: by ID, or by filter. Their documents stay, and what was published stays searchable.

    What matches the filters is counted and shown first, and only that is cancelled. Ctrl-C stops between two
    batches; run it again for the rest.

    Exit codes: 0 all were cancelled; 1 nothing matched, some had ended already (it says so), or declined; 2 wrong
    usage or settings; 130 interrupted.
    """
    _run("cancel", jobs, _selection(("available", "running"), **filtered), limit, yes, as_json)


def _selection(
    default: tuple[str, ...], states: tuple[str, ...], tenant: UUID | None, document: str | None, code: str | None,
    since: Any, stage: str | None,
) -> tuple[bool, Selection]:  # fmt: skip
    """Return whether a filter was given, and the selection, which is of the command's own states at least."""
    asked = Selection(states, tenant, document, code, since, stage)
    return asked.narrow, Selection(states or default, tenant, document, code, since, stage)


def _run(
    action: Action, jobs: tuple[int, ...], selected: tuple[bool, Selection], limit: int, yes: bool, as_json: bool
) -> None:
    narrow, selection = selected
    if bool(jobs) == narrow:
        raise click.UsageError("Give the ids of jobs, or filters that say which; not both, and not every job there is.")
    if len(jobs) > _MOST:
        raise click.UsageError(f"{len(jobs):,} ids are too many: {_MOST:,} at most.")
    more = False
    if not jobs:
        rows = ask(lambda db, _: selection.all(db, limit + 1))
        more, rows = len(rows) > limit, rows[:limit]
        jobs = tuple(row["id"] for row in rows)
        _count(rows, more)
    else:
        yes = True
    done = Done()
    verb = _WORDS[action]
    if not jobs:
        _tell(action, jobs, more, done, as_json)
        click.echo("No job matches.", err=True)
        sys.exit(1)
    if not yes and not confirmed(f"{verb[0]} {counted(len(jobs), 'job')}?"):
        click.echo("Nothing was done.", err=True)
        sys.exit(1)

    def interrupted() -> None:
        _tell(action, jobs, more, done, as_json, interrupted=True)

    # The oldest first, as they came.
    ask(lambda db, _: done.act(db, action, sorted(set(jobs))), interrupted=interrupted)
    _tell(action, jobs, more, done, as_json)
    if done.refused or done.held:
        sys.exit(1)


def _count(rows: Sequence[Any], more: bool) -> None:
    """Show what matches before anything is done to it."""
    if not rows:
        return
    tenants = len({row["tenant_id"] for row in rows})
    kinds = Counter((row["state"], row["error_code"] or "no code") for row in rows)
    listed = ", ".join(f"{count:,} {state} with {code}" for (state, code), count in kinds.most_common(8))
    rest = ", …" if len(kinds) > 8 else ""
    click.echo(f"{counted(len(rows), 'job')} of {counted(tenants, 'tenant')} match: {listed}{rest}.", err=True)
    if more:
        click.echo("More match than --limit: only these newest ones are meant.", err=True)


def _tell(
    action: Action, jobs: Sequence[int], more: bool, done: Done, as_json: bool, *, interrupted: bool = False
) -> None:
    whys = Counter(done.refused.values())
    if interrupted:
        click.echo(f"Interrupted after {len(done.done):,} of {len(jobs):,}. Run it again for the rest.", err=True)
    if as_json:
        say_json(
            {
                "action": action, "matched": len(jobs), "more": more, "done": len(done.done),
                "refused": [{"job_id": job, "why": why} for job, why in sorted(done.refused.items())],
                "held": sorted(done.held), "interrupted": interrupted,
            }
        )  # fmt: skip
        return
    if jobs:
        click.echo(f"{len(done.done):,} of {counted(len(jobs), 'job')} {_WORDS[action][1]}.")
    for why, count in whys.most_common():
        click.echo(f"{count:,} could not be: {why}.", err=True)
    if done.held:
        click.echo(f"{len(done.held):,} are being changed at this moment; try them again.", err=True)
