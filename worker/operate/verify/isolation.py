"""A second user, and somebody without any, see nothing of the first one's: tables, search, Storage."""

from __future__ import annotations

import json
from collections.abc import Sequence

from worker.db.pool import Database
from worker.operate.verify.artifacts import Uploaded
from worker.operate.verify.checks import Checks
from worker.operate.verify.person import Person, Refused
from worker.operate.verify.search import ask
from worker.pipeline.embed.embedder import Embedder

# What the owner must see by the same requests: without that an API that answers nothing to anybody would pass.
_OWN = ("chunks", "documents", "job_events", "jobs", "pages", "tenants")


async def check_isolation(
    owner: Person, strangers: dict[str, Person], documents: Sequence[Uploaded], queries: Sequence[str],
    db: Database, embedder: Embedder | None, checks: Checks,
) -> None:  # fmt: skip
    """Ask for everything public as each of `strangers`; whatever names the owner or a document of theirs is a leak."""
    tables = {row["name"]: bool(row["has_tenant"]) for row in await db.fetch("public_relations")}
    marks = [owner.id, *(str(document.id) for document in documents)]
    seen = await _tables(owner, owner.id, tables, marks)
    checks.none("isolation.control", "owner", (t for t in _OWN if not seen.get(t)), "the owner sees rows of each table")
    for who, person in strangers.items():
        leaks = [
            f"{table}: {count}" for table, count in (await _tables(person, owner.id, tables, marks)).items() if count
        ]
        checks.none("isolation.tables", who, leaks, f"no row of theirs in {len(tables)} tables and views")
        hits = sum([await _hits(person, query, marks, embedder) for query in queries])
        checks.add("isolation.search", who, hits == 0, f"{hits} hits for {len(queries)} queries that the owner finds")
        await _storage(who, person, documents, checks)


async def _tables(person: Person, owner: str, tables: dict[str, bool], marks: list[str]) -> dict[str, int]:
    """Count the rows that name the owner, by table: without a filter, and where there is a tenant also with one."""
    counts = {}
    for table, has_tenant in tables.items():
        found = 0
        for equal in ({}, {"tenant_id": owner}) if has_tenant else ({},):
            try:
                rows = await person.rows(table, **equal)
            except Refused:
                continue
            found = max(found, sum(any(mark in json.dumps(row) for mark in marks) for row in rows))
        counts[table] = found
    return counts


async def _hits(person: Person, query: str, marks: list[str], embedder: Embedder | None) -> int:
    try:
        _, hits = await ask(person, query, embedder)
    except Refused as exc:
        # Out of order, or asked too often: then nothing is known of what this person would see.
        if exc.status == 429 or exc.status >= 500:
            raise
        return 0
    return sum(hit["document_id"] in marks for hit in hits)


async def _storage(who: str, person: Person, documents: Sequence[Uploaded], checks: Checks) -> None:
    leaks = []
    for document in documents:
        folder = document.name.rpartition("/")[0]
        for place in (folder.split("/")[0], folder):
            try:
                if await person.listed(document.bucket, place):
                    leaks.append(f"{document.title} is listed")
            except Refused:
                pass
        for what, asked in (
            ("signed", person.sign(document.bucket, document.name)),
            ("given out", person.download(document.bucket, document.name)),
        ):
            try:
                await asked
                leaks.append(f"{document.title} is {what}")
            except Refused:
                pass
        try:
            await person.upload(document.bucket, f"{folder}/{who}.txt", b"not mine", "text/plain")
            leaks.append(f"a file beside {document.title} is taken")
        except Refused:
            pass
    checks.none("isolation.storage", who, leaks, "no list, signed URL, download or upload in the owner's folder")
