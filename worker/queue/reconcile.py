"""Reconcile: finds what the object trigger missed, page by page, and mends it; see the migration of that name.

objects ──────► documents    missing or behind: taken in as if uploaded now
documents ────► objects      gone: remembered; removed after two sightings and Storage's own `not found`
documents ────► jobs         waiting without one: enqueued
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any
from uuid import UUID

from loguru import logger

from worker.db.pool import Database
from worker.pipeline.fetch import ObjectStore

_EVERY = timedelta(minutes=5)
_DOCUMENTS_A_PAGE = 500
_OBJECTS_A_PAGE = 100  # one transaction: 33 ms when all of them are new, and 30,000 in 11 s
_ASKED_A_BUCKET = 100  # requests to Storage; the rest is asked next time
_NORMAL, _LOW = 2, 4


@dataclass(slots=True)
class Report:
    """What a comparison found and did; everything but `refused` is a count."""

    objects: int = 0
    documents: int = 0
    without_document: int = 0
    behind: int = 0
    mended: int = 0
    failed: int = 0
    without_job: int = 0
    enqueued: int = 0
    gone: int = 0
    confirmed: int = 0
    """Gone at both sightings, and Storage says so too."""
    kept: int = 0
    """Gone at both sightings, but Storage does not say so."""
    removed: int = 0
    failures_cleared: int = 0
    refused: dict[str, str] = field(default_factory=dict)
    """Buckets in which nothing was removed, and why."""

    @property
    def changes(self) -> int:
        """How many things were put right."""
        return self.mended + self.enqueued + self.removed


class Reconcile:
    """Compares objects, documents and jobs. Nothing is removed on the word of SQL alone: `store` is asked too."""

    def __init__(self, db: Database, store: ObjectStore) -> None:
        self._db = db
        self._store = store

    async def take_turn(self) -> int:
        """Compare if no worker did in the last five minutes; return how many things were put right."""
        if not await self._db.fetchval("begin_reconcile", _EVERY):
            return 0
        try:
            report = await self.run()
        finally:
            await self._db.fetchval("end_reconcile")
        for bucket, why in report.refused.items():
            logger.bind(bucket=bucket, detail=why).error("reconcile refused")
        if report.failed:
            logger.bind(count=report.failed).error("reconcile could not mend")
        return report.changes

    async def run(self, *, mend: bool = True) -> Report:
        """Compare everything once. Without `mend` nothing is written, sightings included.

        Raises the errors of errors.py when the database fails; what was mended until then stays so.
        """
        report = Report()
        buckets = [row["bucket_id"] for row in await self._db.fetch("watched_buckets")]
        for bucket in buckets:
            await self._objects(bucket, report, _NORMAL, mend, _nothing)
        await self._documents(report, mend)
        for bucket in buckets:
            await self._remove(bucket, report, mend)
        if mend:
            report.failures_cleared = await self._db.fetchval("clear_trigger_failures")
        return report

    async def backfill(self, bucket: str, advance: Callable[[int], None]) -> Report:
        """Take in what the bucket held before, behind everything else; `advance` hears how many more were seen.

        What has a document already is passed over: it may be interrupted and run again.
        """
        report = Report()
        await self._objects(bucket, report, _LOW, True, advance)
        return report

    async def _objects(
        self, bucket: str, report: Report, priority: int, mend: bool, advance: Callable[[int], None]
    ) -> None:
        after: str | None = ""
        while after is not None:
            page = await self._page("reconcile_objects", bucket, after, _OBJECTS_A_PAGE, priority, mend)
            report.objects += page["seen"]
            report.without_document += page["missing"]
            report.behind += page["behind"]
            report.mended += page["mended"]
            report.failed += page["failed"]
            advance(page["seen"])
            after = page["last_name"]

    async def _documents(self, report: Report, mend: bool) -> None:
        after: UUID | None = None
        while True:
            page = await self._page("reconcile_documents", after, _DOCUMENTS_A_PAGE, mend)
            report.documents += page["seen"]
            report.gone += page["gone"]
            report.without_job += page["idle"]
            report.enqueued += page["enqueued"]
            after = page["last_id"]
            if after is None:
                return

    async def _remove(self, bucket: str, report: Report, mend: bool) -> None:
        rows = await self._db.fetch("missing_documents", bucket, _ASKED_A_BUCKET, mend)
        refused = next((row["refused"] for row in rows if row["refused"] is not None), None)
        if refused is not None:
            report.refused[bucket] = refused
            return
        confirmed = [
            row["document_id"] for row in rows if await self._store.lacks(row["document_id"], bucket, row["name"])
        ]
        report.confirmed += len(confirmed)
        report.kept += len(rows) - len(confirmed)
        if not confirmed or not mend:
            return
        report.removed += await self._db.fetchval("remove_missing", bucket, confirmed)

    async def _page(self, name: str, *arguments: Any) -> dict[str, Any]:
        row = await self._db.fetchrow(name, *arguments)
        if row is None:
            raise AssertionError(f"{name} returns one row, always")
        return dict(row)


def _nothing(_seen: int) -> None:
    pass
