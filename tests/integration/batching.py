"""Tenants with claimed jobs, the batcher that embeds for them, and a provider that is a script."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any
from uuid import UUID

from tests.conftest import Database as MigratedDatabase
from tests.database.project import Project
from tests.database.situations import claim_of
from tests.embeddings import FEW, MODEL, PATH, answer, embedder
from tests.provider_double import ProviderDouble
from worker.db.pool import Database
from worker.model import Chunk, Claim, ModelId
from worker.pipeline.embed.batcher import Batcher
from worker.pipeline.embed.embedder import Batching
from worker.pipeline.embed.stage import embed
from worker.pipeline.embed.vectors import Vectors
from worker.pipeline.ledger import Spent
from worker.pipeline.limits import Limits

SLOW = replace(FEW, linger=0.1)
ONE = replace(FEW, texts=1, at_once=1, linger=0)


class World:
    """Tenants with claimed jobs, and the batcher that embeds for them."""

    def __init__(self, sql: Project, db: Database, model_id: ModelId, double: ProviderDouble) -> None:
        self.sql = sql
        self.db = db
        self.double = double
        self.model_id = model_id
        self.spent: list[Spent] = []
        self.batchers: list[Batcher] = []

    def batcher(self, batching: Batching = FEW, **options: Any) -> Batcher:
        async def spent(shares: Sequence[Spent]) -> None:
            self.spent.extend(shares)

        made = Batcher(
            embedder(self.double, batching), Vectors(self.db, self.model_id), Limits(self.db, random.Random(1)),
            spent=spent, **options,
        )  # fmt: skip
        self.batchers.append(made)
        return made

    async def claim(self, tenant: UUID | None = None) -> Claim:
        tenant = tenant or await self.sql.user()
        await self.sql.upload(tenant, f"{random.random()}.txt")
        return await self.claim_again()

    async def claim_again(self) -> Claim:
        return claim_of(await self.sql.claim_one())

    async def kept(self, tenant: UUID) -> set[bytes]:
        rows = await self.sql.owner.fetch(
            "select content_sha256 from ingest.embeddings where tenant_id = $1 and model_id = $2", tenant, self.model_id
        )
        return {row["content_sha256"] for row in rows}


@asynccontextmanager
async def batching_world(database: MigratedDatabase) -> AsyncIterator[World]:
    """Put a batcher's world on this database, with a provider that answers."""
    sql = await Project(database).open()
    model_id = await sql.owner.fetchval(
        "select ingest.add_embedding_model($1, $2, $3)", MODEL.provider, MODEL.name, MODEL.dimensions
    )
    db = await Database.open(database.url("ingest_worker"), size=6)
    async with ProviderDouble() as double:
        double.on("POST", PATH, answer)
        made = World(sql, db, ModelId(model_id), double)
        yield made
        for batcher in made.batchers:
            await batcher.aclose()
            await batcher._embedder.aclose()
    await db.close()


def chunks(*texts: str) -> list[Chunk]:
    """Cut one chunk of each text."""
    return [Chunk(n, 1, 1, 0, len(text), (), "", text, len(text.split())) for n, text in enumerate(texts)]


def keys(*texts: str) -> set[bytes]:
    """Return the texts' keys, as ingest.embeddings has them."""
    return {chunk.content_sha256 for chunk in chunks(*texts)}


def run(batcher: Batcher, claim: Claim, *texts: str) -> asyncio.Task[int]:
    """Embed a document of these texts; the task returns how many vectors were not there yet."""

    async def ignore(_share: float) -> None:
        pass

    async def begin(keys: list[bytes]) -> set[bytes]:
        return await batcher.vectors.begin(claim, keys, 0.0, None)

    return asyncio.create_task(embed(batcher, claim, chunks(*texts), begin, ignore))


async def until(true: Callable[[], bool]) -> None:
    """Let the loop turn until the batcher is as far as that."""
    async with asyncio.timeout(10):
        while not true():  # noqa: ASYNC110 - it is the batcher's own state
            await asyncio.sleep(0)
