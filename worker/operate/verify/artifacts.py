"""What a document left in the target, each artifact read back: object, rows, pages, chunks, events, bill."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections import Counter
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any
from uuid import UUID

import asyncpg

from worker.db.pool import Database
from worker.operate.verify import reader
from worker.operate.verify.checks import Checks
from worker.operate.verify.chunks import check_chunks
from worker.operate.verify.documents import Given
from worker.operate.verify.fingerprint import digest, signature
from worker.operate.verify.vectors import check_vectors_of
from worker.pipeline.embed.embedder import Embedder
from worker.pipeline.fetch import NotFound, ObjectStore

STAGES = ("fetch", "parse", "chunk", "embed")
"""What a job reports as it ends each; publishing is one transaction, and shows as the job's completion."""
_AFTER = {
    "enqueue": {"claim", "cancel"},
    "claim": {"complete", "retry", "snooze", "release", "cancel", "discard", "rescue"},
    "retry": {"claim", "cancel"},
    "snooze": {"claim", "cancel"},
    "release": {"claim", "cancel"},
    "rescue": {"claim", "cancel", "discard"},
}
_LEDGER_SECONDS = 10.0


@dataclass(slots=True)
class Uploaded:
    """An acceptance document in the target: where it lies, and what the independent reader found in the file."""

    given: Given
    bucket: str
    name: str
    id: UUID
    read: list[str] = field(default_factory=list)
    upload_seconds: float = 0.0
    ready_seconds: float = 0.0

    @property
    def title(self) -> str:
        """What checks and tables call it."""
        return self.given.known.name


@dataclass(frozen=True, slots=True)
class Tools:
    """What examining needs: the database, Storage with the secret key, and how the worker was set up.

    `embedder` is the worker's model where it can be run here, else None. `chunk_tokens` is the worker's setting.
    """

    db: Database
    store: ObjectStore
    directory: Path
    embedder: Embedder | None
    chunk_tokens: int


async def examine(document: Uploaded, tools: Tools, checks: Checks) -> dict[str, Any]:
    """Check every artifact of a published document and return what the report keeps of it: counts, hashes, times."""
    row = await tools.db.fetchrow("verify_document", document.id)
    if row is None:
        checks.add("document.row", document.title, False, "there is no document row")
        return {"name": document.title, "sha256": document.given.known.sha256}
    stored = await _object(document, tools, checks)
    pages = [page["markdown"] for page in await _pages(document, row, tools, checks)]
    chunks = await tools.db.fetch("verify_chunks", document.id)
    kept = check_chunks(document.title, chunks, pages, tools.chunk_tokens, checks)
    vectors = await check_vectors_of(document.title, document.id, chunks, tools.db, tools.embedder, checks)
    for chunk in kept:
        chunk["vector"] = vectors.fingerprints.get(chunk["ordinal"])
    _row(document, row, len(chunks), checks)
    events, stages = await _events(document, row, tools, checks)
    return {
        "name": document.title,
        "title": document.given.known.title,
        "sha256": document.given.known.sha256,
        "bytes": document.given.known.size,
        "id": str(document.id),
        "stored": stored,
        "parser": {
            "name": row["parser"], "version": row["parser_version"], "options": json.loads(row["options"] or "{}"),
        },
        "model": vectors.model,
        "counts": {
            "pages": len(pages), "chunks": len(chunks), "vectors": len(vectors.fingerprints), "events": len(events),
            "tokens": sum(chunk["token_count"] for chunk in chunks),
        },
        "pages": [
            {"page": number, "sha256": _sha256(page), "characters": len(page), "words": signature(page)}
            for number, page in enumerate(pages, 1)
        ],
        "chunks": kept,
        "digests": {
            "pages": (of_pages := digest(f"{number} {_sha256(page)}" for number, page in enumerate(pages, 1))),
            "chunks": (of_chunks := digest(f"{chunk['ordinal']} {chunk['sha256']}" for chunk in kept)),
            "all": digest([str(stored["sha256"]), of_pages, of_chunks]),
        },
        "events": events,
        "seconds": {"upload": document.upload_seconds, "ready": document.ready_seconds, **stages},
    }  # fmt: skip


async def _object(document: Uploaded, tools: Tools, checks: Checks) -> dict[str, Any]:
    known = document.given.known
    path = tools.directory / f"object-{document.id}"
    try:
        size, sha256 = await tools.store.download(document.bucket, document.name, path, max_bytes=10 * known.size)
    except NotFound:
        checks.add("object.bytes", document.title, False, "Storage has no such object")
        return {"sha256": None, "bytes": None}
    finally:
        path.unlink(missing_ok=True)
    good = (size, sha256.hex()) == (known.size, known.sha256)
    checks.add("object.bytes", document.title, good, f"{size:,} bytes, SHA-256 {sha256.hex()[:16]}…")
    return {"sha256": sha256.hex(), "bytes": size}


def _row(document: Uploaded, row: asyncpg.Record, chunks: int, checks: Checks) -> None:
    known = document.given.known
    wanted = {
        "state": "ready", "generation": 1, "published_generation": 1, "size": known.size, "page_count": known.pages,
        "chunk_count": chunks, "content_sha256": bytes.fromhex(known.sha256), "mime_type": "application/pdf",
        "error_code": None, "name": document.name,
    }  # fmt: skip
    wrong = [name for name, value in wanted.items() if row[name] != value]
    checks.none("document.row", document.title, wrong, f"ready, {row['page_count']} pages, {row['chunk_count']} chunks")


async def _pages(document: Uploaded, row: asyncpg.Record, tools: Tools, checks: Checks) -> list[asyncpg.Record]:
    pages = await tools.db.fetch("read_pages", row["published_parse_id"])
    count = document.given.known.pages
    good = [page["page"] for page in pages] == list(range(1, count + 1)) and row["parsed_pages"] == count
    checks.add("pages.count", document.title, good, f"{len(pages)} of {count} pages, by {row['parser']}")
    if len(document.read) != len(pages):
        seen = f"the reader found {len(document.read)} pages, parsing {len(pages)}"
        checks.add("pages.words", document.title, False, seen)
        return pages
    found = await asyncio.to_thread(reader.recall, document.read, [page["markdown"] for page in pages])
    checks.add(
        "pages.words", document.title, found.document >= reader.DOCUMENT_RECALL and not found.low_pages,
        f"recall {found.document:.4f} (at least {reader.DOCUMENT_RECALL}), lowest page {found.lowest:.3f} "
        f"(at least {reader.PAGE_RECALL}), {len(found.low_pages)} pages below",
    )  # fmt: skip
    return pages


async def _events(
    document: Uploaded, row: asyncpg.Record, tools: Tools, checks: Checks
) -> tuple[list[str], dict[str, float]]:
    jobs = await tools.db.fetch("verify_jobs", document.id)
    mine = [job for job in jobs if job["generation"] == 1]
    checks.add(
        "job.completed", document.title, [job["state"] for job in mine] == ["completed"],
        ", ".join(f"{job['state']} after {job['attempt']} attempts" for job in mine) or "no job",
    )  # fmt: skip
    events = [event for event in await tools.db.fetch("verify_events", document.id) if event["generation"] == 1]
    checks.none("events.order", document.title, disorder(events), f"{len(events)} events in their order")
    told = [f"{event['event']} {event['stage']}" if event["event"] == "stage" else event["event"] for event in events]
    seconds = {
        event["stage"]: round(event["seconds"], 3)
        for event in events
        if event["event"] == "stage" and event["stage"] and event["seconds"] is not None
    }
    if mine and mine[0]["finalized_at"] and mine[0]["started_at"]:
        seconds["queue"] = round((mine[0]["started_at"] - mine[0]["created_at"]).total_seconds(), 3)
        seconds["job"] = round((mine[0]["finalized_at"] - mine[0]["created_at"]).total_seconds(), 3)
    return told, seconds


def disorder(events: list[asyncpg.Record]) -> list[str]:
    """Return what is wrong with the events of one completed job: transitions that no arrow allows, stages astray."""
    wrong = []
    moves = [event for event in events if event["event"] != "stage"]
    if [moves[0]["event"] if moves else None, moves[-1]["event"] if moves else None] != ["enqueue", "complete"]:
        wrong.append("it does not begin with enqueue and end with complete")
    for before, after in pairwise(moves):
        if after["event"] not in _AFTER.get(before["event"], ()):
            wrong.append(f"{after['event']} after {before['event']}")
        if after["at"] < before["at"]:
            wrong.append(f"{after['event']} is older than {before['event']}")
    # The end of a stage is written with the next call, the last one together with the completion.
    last = moves[-1]["claim"] if moves else 0
    stages = [event["stage"] for event in events if event["event"] == "stage" and event["claim"] == last]
    once = [stage for stage in STAGES if stage in stages]
    if len(events) > len(moves) and stages != once:
        wrong.append(f"the stages of the last claim are {', '.join(stages)}")
    claims = {event["claim"] for event in moves if event["event"] == "claim"}
    if any(event["claim"] not in claims for event in events if event["event"] == "stage"):
        wrong.append("a stage of a claim that never was")
    return wrong


async def bill(
    documents: list[Uploaded], tenant: UUID, embedded: dict[str, Any], tools: Tools, checks: Checks
) -> list[dict[str, Any]]:
    """Check that the ledger has what each document's embedding cost, and return its sums.

    The worker writes it beside the job, so it may come a moment later. `embedded` is each document's model.
    """
    wanted = {document.id for document in documents}
    rows: list[asyncpg.Record] = []
    try:
        async with asyncio.timeout(_LEDGER_SECONDS):
            while True:
                rows = await tools.db.fetch("verify_usage", tenant)
                if wanted <= {row["document_id"] for row in rows if row["kind"] == "embed"}:
                    break
                await asyncio.sleep(0.2)
    except TimeoutError:
        pass
    for document in documents:
        mine = [row for row in rows if row["document_id"] == document.id and row["kind"] == "embed"]
        model = embedded.get(document.title) or {}
        good = bool(mine) and all(
            (row["provider"], row["model"]) == (model.get("provider"), model.get("name")) and row["tokens"] > 0
            for row in mine
        )
        tokens = Counter(row["model"] for row in mine)
        seen = f"{sum(row['tokens'] for row in mine):,} tokens in {sum(row['requests'] for row in mine)} requests"
        checks.add(
            "ledger.rows", document.title, good, f"{seen}, {len(tokens)} model" if mine else "nothing is written"
        )
    titles = {document.id: document.title for document in documents}
    return [
        {
            "document": titles.get(row["document_id"], "other"), "provider": row["provider"], "model": row["model"],
            "kind": row["kind"], "pages": row["pages"], "tokens": row["tokens"], "requests": row["requests"],
            "usd": None if row["money"] is None else f"{row['money']:f}",
        }
        for row in rows
    ]  # fmt: skip


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
