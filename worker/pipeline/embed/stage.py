"""Embed: vectors for the chunks whose content has none yet, kept as soon as they are there."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence

import numpy as np
from numpy.typing import NDArray
from pgvector import HalfVector

from worker.db.pool import Database
from worker.model import Chunk, Claim, ModelId
from worker.pipeline.embed.embedder import Embedder, check_vectors


async def embed(
    db: Database,
    embedder: Embedder,
    model_id: ModelId,
    claim: Claim,
    chunks: Sequence[Chunk],
    report: Callable[[float], Awaitable[None]],
) -> int:
    """Make sure that every chunk has a vector, and return how many texts were embedded for it.

    Each batch is stored before the next is asked for: what a crash can cost is one batch. `report`
    is awaited with the share done, between 0 and 1. Raises StaleClaim or Superseded instead of
    asking for vectors that nobody would use.
    """
    texts = {chunk.content_sha256: chunk.embedding_text for chunk in chunks}
    rows = await db.fetch("missing_vectors", model_id, claim.tenant_id, list(texts))
    missing = sorted(row["missing_vectors"] for row in rows)
    for start in range(0, len(missing), embedder.batch_size):
        keys = missing[start : start + embedder.batch_size]
        await db.fetchval("hold_current", claim.job_id, claim.number)  # each request may cost money
        vectors = await embedder.embed([texts[key] for key in keys])
        check_vectors(vectors, count=len(keys), model=embedder.model)
        await _store(db, model_id, claim, keys, vectors)
        await report((start + len(keys)) / len(missing))
    return len(missing)


async def _store(
    db: Database, model_id: ModelId, claim: Claim, keys: Sequence[bytes], vectors: NDArray[np.float32]
) -> None:
    halves = vectors.astype(np.float16)
    async with db.transaction() as session:
        await session.fetchval("prepare_incoming_vectors")
        await session.copy(
            "incoming_vectors",
            ("content_sha256", "embedding"),
            ((key, HalfVector(half)) for key, half in zip(keys, halves, strict=True)),
        )
        await session.fetchval("store_vectors", model_id, claim.tenant_id)
