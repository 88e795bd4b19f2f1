"""`sluice jobs watch`: follow what happens to jobs, or to one until it has ended."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator, Callable
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any
from uuid import UUID

import click

from worker.operate.jobs.selection import resolve
from worker.operate.terminal import ask, say_json, visible
from worker.operate.words import span

if TYPE_CHECKING:
    import asyncpg

    from worker.db.pool import Database
    from worker.queue.wakeups import Wakeups
    from worker.settings import Settings

_OVERLAP = timedelta(seconds=15)
"""How far back it is asked again: an event's time is given before its transaction commits."""
_ROWS = 1000
_ENDED = ("completed", "cancelled", "discarded")


class Following:
    """Asks for events again and again, and tells each once."""

    def __init__(self, db: Database, since: datetime, job: int | None, tenant: UUID | None) -> None:
        self._db = db
        self._since = since
        self._newest = since
        self._job = job
        self._tenant = tenant
        self._told: dict[int, datetime] = {}

    async def news(self) -> list[asyncpg.Record]:
        """Return the events that were not told yet, in order."""
        after, found = max(self._since, self._newest - _OVERLAP), []
        while True:
            rows = await self._db.fetch("events_since", after, self._job, self._tenant, _ROWS)
            new = [row for row in rows if row["id"] not in self._told]
            found += new
            self._told.update((row["id"], row["at"]) for row in new)
            if len(rows) < _ROWS or rows[-1]["at"] == after:
                break
            after = rows[-1]["at"]
        self._newest = max([self._newest, *(row["at"] for row in found)])
        forgotten = self._newest - 2 * _OVERLAP
        self._told = {event: at for event, at in self._told.items() if at >= forgotten}
        return found


@click.command()
@click.argument("job", metavar="[ID|NAME]", required=False)
@click.option("--tenant", type=click.UUID, help="Only this tenant's jobs.")
@click.option(
    "--interval", type=click.FloatRange(0.2, 60), default=1.0, show_default=True,
    help="Seconds after which it asks again though nothing woke it.",
)  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object a line.")
def watch(job: str | None, tenant: UUID | None, interval: float, as_json: bool) -> None:
    """Follow what happens to jobs until Ctrl-C; with one, tell all of its events and end with it.

    It is woken by the database where LISTEN or Realtime comes through, and asks every --interval seconds besides. A
    stage is told when it is left.

    Exit codes: 0 the job was completed; 1 it ended otherwise, there is no such job, or the database did not answer; 2
    wrong usage or settings; 130 after Ctrl-C.
    """
    tell = _json_line if as_json else _line

    async def follow(db: Database, settings: Settings) -> str | None:
        number = (await resolve(db, job))[0] if job else None
        if job and number is None:
            raise click.ClickException(f"{job} has no job any more.")
        return await _follow(db, settings, number, tenant, interval, tell)

    state = ask(follow, size=2)
    if state is not None and state != "completed":
        raise click.exceptions.Exit(1)


async def _follow(
    db: Database, settings: Settings, job: int | None, tenant: UUID | None, interval: float,
    tell: Callable[[asyncpg.Record], None],
) -> str | None:  # fmt: skip
    """Tell events until the job has ended, and return its state; for ever without one."""
    since = await db.fetchval("database_now")
    state: str | None = None
    if job is not None:
        row = await _job(db, job)
        since, state = row["created_at"] - _OVERLAP, row["state"]
    else:
        click.echo("Following all jobs; Ctrl-C ends it.", err=True)
    following = Following(db, since, job, tenant)
    async with _hints(db, settings, interval) as hints:
        while True:
            await hints.wait()
            # The state first: what ended before is in the events after.
            if job is not None:
                state = (await _job(db, job))["state"]
            for event in await following.news():
                tell(event)
            if state in _ENDED:
                return state


async def _job(db: Database, job: int) -> asyncpg.Record:
    rows = await db.fetch("list_jobs", None, None, None, None, None, None, None, job + 1, 1)
    if not rows or rows[0]["id"] != job:
        raise click.ClickException(f"There is no job {job}: it never was, or it was pruned.")
    return rows[0]


@contextlib.asynccontextmanager
async def _hints(db: Database, settings: Settings, interval: float) -> AsyncIterator[Wakeups]:
    """Be woken as a worker is: by LISTEN, else by Realtime, and when the time is up in any case."""
    from loguru import logger

    from worker.queue.broadcast import Broadcast
    from worker.queue.listener import Listener
    from worker.queue.wakeups import Wakeups

    logger.disable("worker")  # how the hints come is of no interest here
    url = settings.listen_database_url or settings.database_url
    wakeups = Wakeups(
        Listener(db, url.get_secret_value(), name="DATABASE_URL"),
        Broadcast(db, settings.supabase_url, settings.supabase_secret_key.get_secret_value()),
        poll_seconds=interval, randomness=random.Random(),  # noqa: S311 - spreads retries; nothing secret
    )  # fmt: skip
    running = asyncio.create_task(wakeups.run())
    try:
        yield wakeups
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        logger.enable("worker")


def _line(event: asyncpg.Record) -> None:
    cells: list[Any] = [
        f"{event['at']:%H:%M:%S}", f"job {event['job_id']}", event["event"], event["state"], event["stage"] or "-",
        f"attempt {event['attempt']}", event["error_code"] or "-",
        "-" if event["seconds"] is None else span(event["seconds"]), event["name"] or "(deleted)",
    ]  # fmt: skip
    click.echo("\t".join(visible(cell) for cell in cells))


def _json_line(event: asyncpg.Record) -> None:
    say_json(dict(event))
