"""Embed: vectors for the chunks whose content has none yet, kept as soon as they are there."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence

from worker.errors import IngestError
from worker.model import Chunk, Claim
from worker.pipeline.embed.batcher import Batcher


async def embed(
    batcher: Batcher, claim: Claim, chunks: Sequence[Chunk],
    begin: Callable[[list[bytes]], Awaitable[set[bytes]]], report: Callable[[float], Awaitable[None]],
) -> int:  # fmt: skip
    """Make sure that every chunk has a vector, and return how many texts were embedded for it.

    Each answer is stored when it comes: what a crash can cost are the requests under way. `report` is
    awaited with the share done, between 0 and 1. `begin` enters the stage, unless that is done, and returns
    which of these keys have no vector; it raises StaleClaim or Superseded instead, so that nobody asks for vectors
    that nobody would use.
    """
    db = batcher.vectors.db
    wanted = {chunk.content_sha256: chunk for chunk in chunks}
    with batcher.order(claim) as order:
        # Texts are not asked about again once they wait for a request.
        missing = await begin(list(wanted))
        if not missing:
            return 0
        await batcher.allow(claim)
        order.ask((key, chunk.embedding_text, chunk.token_count) for key, chunk in wanted.items() if key in missing)
        try:
            await order.wait(report)
        except IngestError:
            if order.stored:
                await db.fetchval("note_embedded", claim.job_id, claim.number)
            raise
        return order.paid
