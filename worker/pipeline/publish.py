"""Publish: one short fenced transaction that settles the claim and swaps the chunks."""

from __future__ import annotations

import json
from collections.abc import Sequence

from worker.db.pool import Database, VectorsMissing
from worker.errors import StaleClaim, Transient
from worker.model import Chunk, Claim, ModelId, ParseId

_COLUMNS = (
    "ordinal", "page_start", "page_end", "char_start", "char_end", "token_count",
    "heading_path", "context", "content", "content_sha256",
)  # fmt: skip


async def publish(
    db: Database,
    claim: Claim,
    chunks: Sequence[Chunk],
    *,
    model_id: ModelId,
    parse_id: ParseId,
    title: str | None,
    detail: dict[str, int],
) -> None:
    """Make these chunks the document's, in the transaction that completes the job.

    Raises VectorsMissing when a vector was swept meanwhile (embed again), Superseded when the
    document is gone or has a newer generation, StaleClaim when another worker owns the job. When the
    answer to COMMIT is lost, the database is asked what became of it.
    """
    try:
        async with db.transaction() as session:
            await session.fetchval("prepare_incoming_chunks")
            await session.copy("incoming_chunks", _COLUMNS, (_record(chunk) for chunk in chunks))
            await session.fetchval(
                "publish", claim.job_id, claim.number, model_id, parse_id, title, json.dumps(detail, sort_keys=True)
            )
    except VectorsMissing:
        raise
    except Transient as exc:
        outcome = await db.fetchval("claim_outcome", claim.job_id, claim.number)
        if outcome == "completed":
            return
        if outcome == "lost":
            raise StaleClaim("stale_claim", "Another worker owns this job now.") from exc
        raise


def _record(chunk: Chunk) -> tuple[object, ...]:
    return (
        chunk.ordinal, chunk.page_start, chunk.page_end, chunk.char_start, chunk.char_end, chunk.token_count,
        list(chunk.heading_path), chunk.context, chunk.content, chunk.content_sha256,
    )  # fmt: skip
