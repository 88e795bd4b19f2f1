"""Vectors in the database: which texts have none yet, and those of one answer, kept as soon as it is there."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from pgvector import HalfVector

from worker.db.pool import Database
from worker.model import ModelId, TenantId


@dataclass(frozen=True, slots=True)
class Vectors:
    """The vectors of one embedding model; each belongs to a tenant and to a content."""

    db: Database
    model_id: ModelId

    async def missing(self, tenant_id: TenantId, keys: Sequence[bytes]) -> set[bytes]:
        """Return those of the tenant's contents that have no vector yet."""
        rows = await self.db.fetch("missing_vectors", self.model_id, tenant_id, keys)
        return {row["missing_vectors"] for row in rows}

    async def store(self, owners: Sequence[tuple[TenantId, bytes]], vectors: NDArray[np.float32]) -> None:
        """Keep a row of `vectors` for each tenant and content, in one transaction; those that exist stay as they are.

        The vectors are checked already and no longer than a half float can hold: of unit length.
        """
        halves = vectors.astype(np.float16)
        async with self.db.transaction() as session:
            await session.fetchval("prepare_incoming_embeddings")
            await session.copy(
                "incoming_embeddings",
                ("tenant_id", "content_sha256", "embedding"),
                ((tenant, key, HalfVector(half)) for (tenant, key), half in zip(owners, halves, strict=True)),
            )
            await session.fetchval("store_embeddings", self.model_id)
