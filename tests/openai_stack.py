"""A stack whose active model is OpenAI's, as tests/embeddings.py answers for it, and a worker's settings to match."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import asyncpg

from local.stack import Stack
from tests.embeddings import KEY, MODEL

SETTINGS = {
    "SLUICE_EMBEDDER": "openai", "OPENAI_API_KEY": KEY, "SLUICE_EMBED_DIMENSIONS": str(MODEL.dimensions),
}  # fmt: skip
"""All but OPENAI_BASE_URL, which is the double's."""


@asynccontextmanager
async def openai_stack(directory: Path) -> AsyncIterator[Stack]:
    """Run a stack of its own in this directory: the session's has another active model."""
    async with Stack(directory, durable=False) as running:
        connection = await asyncpg.connect(running.admin_url)
        await connection.execute(
            "select ingest.activate_embedding_model(ingest.add_embedding_model($1, $2, $3))",
            MODEL.provider, MODEL.name, MODEL.dimensions,
        )  # fmt: skip
        await connection.close()
        yield running
