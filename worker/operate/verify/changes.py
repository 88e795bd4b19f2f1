"""What becomes of a document that is stored twice, overwritten, moved and deleted, on a copy of the smallest one."""

from __future__ import annotations

import asyncio
import json
from typing import Any
from uuid import UUID

import asyncpg

from worker.errors import Transient
from worker.operate.verify.artifacts import Tools, Uploaded
from worker.operate.verify.checks import Checks
from worker.operate.verify.person import Person, Refused
from worker.pipeline.fetch import NotFound

_FINAL = ("ready", "failed", "cancelled")


class Changes:
    """Walks one document through its life; `made` takes the names that it stores, for clean-up."""

    def __init__(
        self,
        person: Person,
        source: Uploaded,
        run_id: str,
        tools: Tools,
        checks: Checks,
        made: set[tuple[str, str]],
        seconds: float,
    ) -> None:
        self._person = person
        self._source = source
        self._bucket = source.bucket
        self._name = f"{person.id}/verify-{run_id}/changes/first.pdf"
        self._text = f"# Verification {run_id}\n\nThis text took the place of another file.\n".encode()
        self._db = tools.db
        self._tools = tools
        self._checks = checks
        self._made = made
        self._seconds = seconds

    async def check(self) -> None:
        """Store, overwrite twice, move and delete, and check after each; raises what the target's silence raises."""
        document = await self._store(self._source.given.content, 1)
        await self._same_bytes_cost_nothing(document)
        before = await self._chunks(document)
        await self._store(self._text, 2)
        await self._overwritten(document, before)
        written = await self._chunks(document)
        await self._store(self._text, 3)
        embedded = await self._embedded(document, 3)
        same = [c["content_sha256"] for c in written] == [c["content_sha256"] for c in await self._chunks(document)]
        self._note("changes.same_again", same and embedded == 0, f"generation 3 of the same text embedded {embedded}")
        await self._moved(document)
        await self._deleted(document)

    async def _store(self, content: bytes, generation: int) -> UUID:
        self._made.add((self._bucket, self._name))
        mime_type = "application/pdf" if generation == 1 else "text/markdown"
        await self._person.upload(self._bucket, self._name, content, mime_type, upsert=generation > 1)
        found = await self._person.rows("documents", name=self._name)
        if not found:
            raise Transient(
                "no_document", "An uploaded file has no document row. Is the trigger on storage.objects there?"
            )
        document = UUID(found[0]["id"])
        row = await settled(self._db, document, generation, self._seconds)
        state = None if row is None else (row["state"], row["generation"], row["published_generation"])
        self._note("changes.published", state == ("ready", generation, generation), f"generation {generation}: {state}")
        return document

    async def _same_bytes_cost_nothing(self, document: UUID) -> None:
        embedded = await self._embedded(document, 1)
        chunks = [chunk["content_sha256"] for chunk in await self._chunks(document)]
        first = [chunk["content_sha256"] for chunk in await self._chunks(self._source.id)]
        good = embedded == 0 and chunks == first
        self._note("changes.no_second_embedding", good, f"the same bytes as a second document embedded {embedded}")

    async def _overwritten(self, document: UUID, before: list[asyncpg.Record]) -> None:
        after = await self._chunks(document)
        old = {chunk["content_sha256"] for chunk in before} | {chunk["id"] for chunk in before}
        stay = [c["ordinal"] for c in after if c["content_sha256"] in old or c["id"] in old]
        good = bool(after) and not stay and all(self._text.decode().find(c["content"]) >= 0 for c in after)
        self._note("changes.overwritten", good, f"{len(before)} old chunks, {len(stay)} of them left, {len(after)} new")

    async def _moved(self, document: UUID) -> None:
        before, jobs = await self._chunks(document), len(await self._db.fetch("verify_jobs", document))
        old, new = self._name, self._name.replace("first.pdf", "second.pdf")
        self._made.add((self._bucket, new))
        await self._person.move(self._bucket, old, new)
        row = await self._db.fetchrow("verify_document", document)
        kept = [c["id"] for c in before] == [c["id"] for c in await self._chunks(document)]
        more = len(await self._db.fetch("verify_jobs", document)) - jobs
        good = row is not None and (row["name"], row["generation"]) == (new, 3) and kept and more == 0
        good = good and await self._holds(new, document) and not await self._holds(old, document)
        self._note("changes.moved", good, f"same document, chunks kept: {kept}, {more} new jobs")
        self._name = new

    async def _deleted(self, document: UUID) -> None:
        removed = await self._person.remove(self._bucket, [self._name])
        row = await self._db.fetchrow("verify_document", document)
        chunks = len(await self._chunks(document))
        gone = row is None and chunks == 0 and not await self._holds(self._name, document)
        self._note("changes.deleted", gone and removed == 1, f"document gone: {row is None}, {chunks} chunks left")
        unused = await self._db.fetchrow("verify_unused_vectors", UUID(self._person.id))
        assert unused is not None
        seen = f"{unused['unused']} unused vectors wait for the sweep, {unused['overdue']} for longer than a day"
        self._note("changes.vectors", unused["overdue"] == 0, seen)
        try:
            await self._person.download(self._bucket, self._name)
            self._note("changes.object_gone", False, "its owner can still read the object")
        except Refused as exc:
            self._note("changes.object_gone", True, f"its owner gets {exc.status} {exc.code}".strip())

    async def _holds(self, name: str, document: UUID) -> bool:
        path = self._tools.directory / f"changed-{document}"
        try:
            await self._tools.store.download(
                self._bucket, name, path, max_bytes=10 * max(self._source.given.known.size, 1 << 20)
            )
        except NotFound:
            return False
        finally:
            path.unlink(missing_ok=True)
        return True

    async def _chunks(self, document: UUID) -> list[asyncpg.Record]:
        return await self._db.fetch("verify_chunks", document)

    async def _embedded(self, document: UUID, generation: int) -> int | None:
        """How many texts were sent to the model for this generation, as its completion says."""
        for event in await self._db.fetch("verify_events", document):
            if event["event"] == "complete" and event["generation"] == generation:
                detail: dict[str, Any] = json.loads(event["detail"] or "{}")
                return int(detail.get("embedded", 0))
        return None

    def _note(self, name: str, good: bool, seen: str) -> None:
        self._checks.add(name, self._source.title, good, seen)


async def settled(db: Any, document: UUID, generation: int, seconds: float) -> asyncpg.Record | None:
    """Wait until this generation has ended, well or badly, and return the row; the last one when the time is over."""
    row: asyncpg.Record | None = None
    try:
        async with asyncio.timeout(seconds):
            while True:
                row = await db.fetchrow("verify_document", document)
                if row is not None and row["state"] in _FINAL and row["generation"] >= generation:
                    return row
                await asyncio.sleep(0.1)
    except TimeoutError:
        return row
