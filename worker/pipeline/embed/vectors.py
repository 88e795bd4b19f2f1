"""Vectors in the database: which texts have none yet, and those of one answer, kept as soon as it is there."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from worker.db.pool import AlreadyThere, Database
from worker.model import Claim, ModelId, TenantId

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_COLUMNS = ("tenant_id", "content_sha256", "embedding")


@dataclass(frozen=True, slots=True)
class Vectors:
    """The vectors of one embedding model; each belongs to a tenant and to a content."""

    db: Database
    model_id: ModelId

    async def begin(self, claim: Claim, keys: Sequence[bytes], progress: float, left: str | None) -> set[bytes]:
        """Enter the stage with what was left before it (None: it is entered), and return the keys without a vector.

        Raises StaleClaim or Superseded for work that nobody wants any more.
        """
        rows = await self.db.fetch(
            "begin_embed", claim.job_id, claim.number, progress, left, self.model_id, claim.tenant_id, keys
        )
        return {row["begin_embed"] for row in rows}

    async def store(self, owners: Sequence[tuple[TenantId, bytes]], vectors: NDArray[np.float32]) -> None:
        """Keep a row of `vectors` for each tenant and content, in one transaction; those that exist stay as they are.

        The vectors are checked already and no longer than a half float can hold: of unit length.
        """
        from pgvector import HalfVector  # brings numpy

        halves = vectors.astype("float16")
        # In the order of the key: two writers of the same contents wait for each other in a line, not in a circle.
        rows = sorted(
            ((*owner, HalfVector(half)) for owner, half in zip(owners, halves, strict=True)),
            key=lambda row: (row[0].bytes, row[1]),
        )
        try:
            # Straight into the table: by way of another one it takes the database 2.3 ms for 32 vectors, and not 1.1.
            await self.db.copy(
                "embeddings", ("model_id", *_COLUMNS), ((self.model_id, *row) for row in rows), schema="ingest"
            )
        except AlreadyThere:  # another worker was paid for the same text at the same time
            async with self.db.transaction() as session:
                await session.fetchval("prepare_incoming_embeddings")
                await session.copy("incoming_embeddings", _COLUMNS, rows)
                await session.fetchval("store_embeddings", self.model_id)
