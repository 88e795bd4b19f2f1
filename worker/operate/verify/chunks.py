"""The chunks of a document: slices of its text, in order, whole, bounded, and hashed as they say."""

from __future__ import annotations

from typing import Any

import asyncpg

from worker.model import PAGE_SEPARATOR, Chunk
from worker.operate.verify.checks import Checks


def check_chunks(
    title: str, chunks: list[asyncpg.Record], pages: list[str], limit: int, checks: Checks
) -> list[dict[str, Any]]:
    """Check the chunks of a document's pages, at most `limit` tokens each; return what the report keeps of each."""
    text, count = PAGE_SEPARATOR.join(pages), f"{len(chunks)} chunks"
    ordinals = [chunk["ordinal"] for chunk in chunks]
    checks.add("chunks.ordinals", title, bool(chunks) and ordinals == list(range(len(chunks))), count)
    checks.none(
        "chunks.slices", title,
        (c["ordinal"] for c in chunks if text[c["char_start"] : c["char_end"]] != c["content"]),
        f"{count} equal the text at their offsets",
    )  # fmt: skip
    checks.none(
        "chunks.pages", title,
        (c["ordinal"] for c in chunks if (c["page_start"], c["page_end"]) != _pages_of(c, pages)),
        f"{count} lie on the pages that they name",
    )  # fmt: skip
    ends = [0, *(chunk["char_end"] for chunk in chunks)]
    starts = [*(chunk["char_start"] for chunk in chunks), len(text)]
    lost = [
        n for n, (end, start) in enumerate(zip(ends, starts, strict=True)) if end > start or text[end:start].strip()
    ]
    checks.none("chunks.whole", title, (f"before {n}" for n in lost), "they hold the whole text and do not overlap")
    checks.none(
        "chunks.tokens", title, (c["ordinal"] for c in chunks if not 0 < c["token_count"] <= limit),
        f"at most {max((c['token_count'] for c in chunks), default=0)} of {limit} tokens",
    )  # fmt: skip
    hashes = {chunk["ordinal"]: hash_of(chunk) for chunk in chunks}
    checks.none(
        "chunks.hashes", title, (c["ordinal"] for c in chunks if hashes[c["ordinal"]] != c["content_sha256"].hex()),
        f"{count} have the SHA-256 of their context and content",
    )  # fmt: skip
    return [
        {
            "ordinal": chunk["ordinal"], "sha256": hashes[chunk["ordinal"]],
            "pages": [chunk["page_start"], chunk["page_end"]], "characters": [chunk["char_start"], chunk["char_end"]],
            "tokens": chunk["token_count"],
        }
        for chunk in chunks
    ]  # fmt: skip


def embedding_text(chunk: asyncpg.Record) -> str:
    """Return what of this chunk is embedded, as the pipeline says it."""
    return _as_chunk(chunk).embedding_text


def hash_of(chunk: asyncpg.Record) -> str:
    """Return the SHA-256 that this chunk must have, made from what stands in its row."""
    return _as_chunk(chunk).content_sha256.hex()


def _as_chunk(row: asyncpg.Record) -> Chunk:
    return Chunk(
        row["ordinal"], row["page_start"], row["page_end"], row["char_start"], row["char_end"], (), row["context"],
        row["content"], row["token_count"],
    )  # fmt: skip


def _pages_of(chunk: asyncpg.Record, pages: list[str]) -> tuple[int, int]:
    first = last = 0
    begins = 0
    for number, page in enumerate(pages, 1):
        if begins <= chunk["char_start"]:
            first = number
        if begins < chunk["char_end"]:
            last = number
        begins += len(page) + len(PAGE_SEPARATOR)
    return first, last
