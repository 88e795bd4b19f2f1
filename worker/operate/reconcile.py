"""`sluice reconcile` and `sluice backfill`: the comparison of objects and documents, by hand."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import AsyncIterator
from dataclasses import asdict
from functools import partial

import click
from rich.console import Console
from rich.progress import Progress

from worker.db.pool import Database
from worker.operate.terminal import ask
from worker.pipeline.fetch import ObjectStore
from worker.queue.reconcile import Reconcile, Report
from worker.settings import Settings

_TOLD = (
    ("objects", "objects seen"),
    ("documents", "documents seen"),
    ("without_document", "objects without a document"),
    ("behind", "documents behind their object"),
    ("without_job", "waiting documents without a job"),
    ("gone", "documents without an object"),
    ("confirmed", "of them confirmed by Storage at the second sighting"),
    ("kept", "of them kept: Storage does not confirm it"),
    ("mended", "objects taken in"),
    ("enqueued", "jobs made"),
    ("removed", "documents removed"),
    ("failures_cleared", "recorded failures put right"),
    ("failed", "could not be mended"),
)


@click.command()
@click.option("--dry-run", is_flag=True, help="Count only; change nothing.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def reconcile(dry_run: bool, as_json: bool) -> None:
    """Find objects without documents, documents without objects and generations behind, and mend them.

    The workers do the same every five minutes. A document is removed only after two sightings five
    minutes apart and when Storage confirms that its object is gone.

    Exit codes: 0 done; 1 removing was refused, or something could not be mended.
    """
    report = ask(partial(_reconcile, mend=not dry_run))
    if as_json:
        click.echo(json.dumps(asdict(report)))
    else:
        _print(report)
    _complain(report)


@click.command()
@click.argument("bucket")
@click.option("--watch", is_flag=True, help="Watch the bucket from now on, if it is not watched yet.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def backfill(bucket: str, watch: bool, as_json: bool) -> None:
    """Take in what BUCKET held before it was watched, at low priority.

    What has a document already is passed over, so it may be interrupted and run again.

    Exit codes: 0 done; 1 something could not be taken in; 2 there is no such bucket, or it is not watched.
    """
    report = ask(partial(_backfill, bucket=bucket, watch=watch))
    if as_json:
        click.echo(json.dumps({"bucket": bucket, "objects": report.objects, "enqueued": report.mended,
                               "failed": report.failed}))  # fmt: skip
    else:
        click.echo(f"{report.objects} objects seen in {bucket}, {report.mended} taken in.")
    _complain(report)


async def _reconcile(db: Database, settings: Settings, *, mend: bool) -> Report:
    async with _comparison(db, settings) as comparison:
        return await comparison.run(mend=mend)


async def _backfill(db: Database, settings: Settings, *, bucket: str, watch: bool) -> Report:
    async with _comparison(db, settings) as comparison:
        watched = {row["bucket_id"] for row in await db.fetch("watched_buckets")}
        if bucket not in watched:
            if not watch:
                raise click.UsageError(
                    f"The bucket {bucket} is not watched. With --watch it is from now on, and its files are taken in."
                )
            if await db.fetchval("watch_bucket", bucket) == "no such bucket":
                raise click.UsageError(f"There is no bucket {bucket}. Check the name, or create it in Storage first.")
        console = Console(stderr=True)
        # Only for eyes: in a pipe or a log it would be noise.
        with Progress(console=console, disable=not console.is_terminal) as progress:
            task = progress.add_task(bucket, total=await db.fetchval("count_objects", bucket))
            return await comparison.backfill(bucket, lambda seen: progress.advance(task, seen))


@contextlib.asynccontextmanager
async def _comparison(db: Database, settings: Settings) -> AsyncIterator[Reconcile]:
    store = ObjectStore(settings.supabase_url, settings.supabase_secret_key.get_secret_value())
    try:
        yield Reconcile(db, store)
    finally:
        await store.close()


def _print(report: Report) -> None:
    for name, words in _TOLD:
        count = getattr(report, name)
        if count or name in ("objects", "documents"):
            click.echo(f"{count:>8}  {words}")


def _complain(report: Report) -> None:
    for why in report.refused.values():
        click.echo(why, err=True)
    if report.failed:
        click.echo(
            f"{report.failed} objects could not be taken in. The reasons stand in ingest.trigger_failures "
            "(operation RECONCILE); they are tried again every five minutes.",
            err=True,
        )
    if report.refused or report.failed:
        sys.exit(1)
