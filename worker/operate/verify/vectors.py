"""The vectors of a document's chunks: one each, of the recorded model, sound, and the same when made again."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

import asyncpg

from worker.db.pool import Database
from worker.operate.verify.checks import Checks
from worker.operate.verify.chunks import embedding_text
from worker.operate.verify.fingerprint import projected
from worker.pipeline.embed.embedder import Embedder

NORM = 0.01
"""How far a vector's length may be from 1: half precision costs a thousandth."""
COSINE = 0.999
"""How near a vector must be to the one that the same model gives here for the same text."""
SAMPLES = 16


@dataclass(slots=True)
class Found:
    """What the report keeps: the model, and a fingerprint of each vector by its chunk's ordinal."""

    model: dict[str, Any] | None = None
    fingerprints: dict[int, list[int]] = field(default_factory=dict)


async def check_vectors_of(
    title: str, document: UUID, chunks: list[asyncpg.Record], db: Database, embedder: Embedder | None, checks: Checks
) -> Found:
    """Check the vectors that search would use for these chunks; a sample is embedded again where it can be."""
    import numpy as np

    rows = [row for row in await db.fetch("verify_vectors", document) if row["active"]]
    ordinals = [row["ordinal"] for row in rows]
    one_each = sorted(ordinals) == [chunk["ordinal"] for chunk in chunks]
    checks.add("vectors.one_each", title, one_each, f"{len(rows)} vectors of {len(chunks)} chunks")
    if not rows:
        return Found()
    provider, name, dimensions = (rows[0][key] for key in ("provider", "name", "dimensions"))
    matrix = [row["embedding"].to_numpy().astype(np.float32) for row in rows]
    sizes = {len(vector) for vector in matrix}
    if not checks.add("vectors.dimensions", title, sizes == {dimensions}, f"{provider}/{name}: {sorted(sizes)}"):
        return Found({"provider": provider, "name": name, "dimensions": dimensions})
    vectors = np.stack(matrix)
    lengths = np.sqrt(np.einsum("ij,ij->i", vectors, vectors, dtype=np.float64))
    unsound = [o for o, length in zip(ordinals, lengths, strict=True) if not abs(length - 1) <= NORM]
    spread = f"lengths {lengths.min():.4f} to {lengths.max():.4f}" if np.isfinite(lengths).all() else "not all finite"
    checks.none("vectors.sound", title, unsound, spread)
    await _again(title, chunks, dict(zip(ordinals, vectors, strict=True)), (provider, name), embedder, checks)
    return Found(
        {"provider": provider, "name": name, "dimensions": dimensions},
        dict(zip(ordinals, projected(np.nan_to_num(vectors, posinf=0, neginf=0)), strict=True)),
    )


async def _again(
    title: str, chunks: list[asyncpg.Record], vectors: dict[int, Any], model: tuple[str, str],
    embedder: Embedder | None, checks: Checks,
) -> None:  # fmt: skip
    """Embed evenly spaced chunks again, the first and the last among them, and compare."""
    import numpy as np

    if embedder is None or (embedder.model.provider, embedder.model.name) != model:
        checks.skip("vectors.again", title, f"{'/'.join(model)} is not run here")
        return
    places = sorted({round(n * (len(chunks) - 1) / (SAMPLES - 1)) for n in range(SAMPLES)}) if chunks else []
    sample = [chunks[place] for place in places if chunks[place]["ordinal"] in vectors]
    made = await embedder.embed([embedding_text(chunk) for chunk in sample])
    stored = np.stack([vectors[chunk["ordinal"]] for chunk in sample])
    with np.errstate(invalid="ignore"):
        cosines = (made * stored).sum(axis=1) / np.linalg.norm(stored, axis=1)
    far = [chunk["ordinal"] for chunk, cosine in zip(sample, cosines, strict=True) if not cosine >= COSINE]
    checks.none("vectors.again", title, far, f"{len(sample)} embedded again: cosine {cosines.min():.5f} at least")
