"""A project whose trigger can be switched off, and the comparison that mends what was missed meanwhile."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any
from uuid import UUID

import asyncpg

from tests.database.project import Project
from worker.db.pool import Database
from worker.queue.reconcile import Reconcile, Report


class Storage:
    """Storage's word on objects, which is the truth unless a test says otherwise."""

    def __init__(self, project: Project) -> None:
        self.project = project
        self.lies: bool | None = None
        self.asked: list[UUID] = []

    async def lacks(self, object_id: UUID, bucket: str, name: str) -> bool:
        self.asked.append(object_id)
        if self.lies is not None:
            return self.lies
        found = await self.project.admin.fetchval(
            "select id from storage.objects where bucket_id = $1 and name = $2", bucket, name
        )
        return bool(found != object_id)


class Reconciling:
    """Runs comparisons as the worker does; `later` moves the sightings instead of waiting."""

    def __init__(self, project: Project, db: Database) -> None:
        self.project = project
        self.db = db
        self.storage = Storage(project)
        self.comparison = Reconcile(db, self.storage)  # type: ignore[arg-type]

    async def run(self, **options: Any) -> Report:
        return await self.comparison.run(**options)

    async def later(self, minutes: float = 6) -> Report:
        """Compare when so many minutes have passed since the last sightings."""
        await self.project.owner.execute(
            "update ingest.missing_objects set first_seen_at = first_seen_at - $1::interval,"
            " last_seen_at = last_seen_at - $1::interval",
            timedelta(minutes=minutes),
        )
        return await self.run()

    @asynccontextmanager
    async def unseen(self) -> AsyncIterator[None]:
        """Let the trigger see nothing of what happens inside."""
        await self.project.admin.execute("alter table storage.objects disable trigger sluice_object_changed")
        try:
            yield
        finally:
            await self.project.admin.execute("alter table storage.objects enable trigger sluice_object_changed")

    async def erase(self, *objects: UUID) -> None:
        """Take objects away as an operator with too many rights would."""
        async with self.project.admin.transaction():
            await self.project.admin.execute("set local storage.allow_delete_query = 'true'")
            await self.project.admin.execute("delete from storage.objects where id = any($1)", list(objects))

    async def files(self, user: UUID, count: int, first: int = 0, bucket: str = "documents") -> list[UUID]:
        """Store many files."""
        return [
            await self.project.upload(user, f"{number:04}.txt", bucket=bucket) for number in range(first, first + count)
        ]

    async def live(self) -> list[tuple[UUID, int, int]]:
        """Return the live jobs as (document, generation, priority)."""
        rows = await self.project.owner.fetch(
            "select document_id, generation, priority from public.jobs where state in ('available', 'running')"
            " order by id"
        )
        return [tuple(row) for row in rows]

    async def documents(self) -> int:
        count: int = await self.project.owner.fetchval("select count(*) from public.documents")
        return count

    async def alerts(self) -> list[asyncpg.Record]:
        rows: list[asyncpg.Record] = await self.project.owner.fetch(
            "select subject, message from ingest.alerts where kind = 'reconcile_refused' and resolved_at is null"
        )
        return rows
