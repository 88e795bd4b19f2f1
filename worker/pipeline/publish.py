"""Publish: one short fenced transaction that settles the claim and swaps the chunks."""

from __future__ import annotations

import json
from collections.abc import Sequence

from worker.db.pool import Database, VectorsMissing
from worker.errors import StaleClaim, Transient
from worker.model import Chunk, Claim, ModelId, ParseId


async def publish(
    db: Database,
    claim: Claim,
    chunks: Sequence[Chunk],
    *,
    model_id: ModelId,
    parse_id: ParseId,
    title: str | None,
    left: str,
    detail: dict[str, int],
) -> None:
    """Make these chunks the document's, in the transaction that completes the job.

    `left` is the stages that are still to be noted, in JSON; `detail` holds counts for the last event.
    Raises VectorsMissing when a vector was swept meanwhile (embed again), Superseded when the
    document is gone or has a newer generation, StaleClaim when another worker owns the job. When the
    answer to COMMIT is lost, the database is asked what became of it.
    """
    try:
        await db.fetchval(
            "publish", claim.job_id, claim.number, model_id, parse_id, title, left, json.dumps(detail, sort_keys=True),
            [chunk.page_start for chunk in chunks],
            [chunk.page_end for chunk in chunks],
            [chunk.char_start for chunk in chunks],
            [chunk.char_end for chunk in chunks],
            [chunk.token_count for chunk in chunks],
            ["\n".join(" ".join(heading.split()) for heading in chunk.heading_path) for chunk in chunks],
            [chunk.context for chunk in chunks],
            [chunk.content for chunk in chunks],
            [chunk.content_sha256 for chunk in chunks],
        )  # fmt: skip
    except VectorsMissing:
        raise
    except Transient as exc:
        outcome = await db.fetchval("claim_outcome", claim.job_id, claim.number)
        if outcome == "completed":
            return
        if outcome == "lost":
            raise StaleClaim("stale_claim", "Another worker owns this job now.") from exc
        raise
