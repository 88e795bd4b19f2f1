"""Search finds a known passage, by words and by both lists together, within the first three."""

from __future__ import annotations

from typing import Any

from worker.errors import IngestError
from worker.operate.verify.artifacts import Uploaded
from worker.operate.verify.checks import Checks
from worker.operate.verify.person import Person, Refused
from worker.operate.verify.reader import Passage, passage, words
from worker.pipeline.embed.embedder import Embedder

BEST = 3
_COUNT = 20
_SHARE = 0.5


async def check_search(
    document: Uploaded, person: Person, embedder: Embedder | None, checks: Checks
) -> tuple[str, dict[str, Any]]:
    """Search as the owner for a sentence of the document; return the query, and the ranks for the report."""
    chosen = passage(document.read)
    if chosen is None:
        checks.add("search.text", document.title, False, "the reader found no sentence to search for")
        return "", {}
    try:
        way, hits = await ask(person, chosen.text, embedder)
    except (Refused, IngestError) as exc:
        checks.add("search.hybrid", document.title, False, str(exc))
        return chosen.text, {}
    matching = [(rank, hit) for rank, hit in enumerate(hits, 1) if holds(hit, document, chosen)]
    hybrid = min((rank for rank, _ in matching), default=None)
    text = min((hit["text_rank"] for _, hit in matching if hit["text_rank"] is not None), default=None)
    vector = min((hit["vector_rank"] for _, hit in matching if hit["vector_rank"] is not None), default=None)
    for name, rank in (("search.text", text), ("search.hybrid", hybrid)):
        seen = f"page {chosen.page} at rank {rank}, by the {way}"
        checks.add(name, document.title, rank is not None and rank <= BEST, seen)
    return chosen.text, {"page": chosen.page, "way": way, "hybrid": hybrid, "text": text, "vector": vector}


async def ask(person: Person, query: str, embedder: Embedder | None) -> tuple[str, list[dict[str, Any]]]:
    """Search by the edge function, or by the database's function where that is not deployed and the model is here.

    Returns which of them answered, and the hits. Raises Refused.
    """
    try:
        return "edge function", await person.search(query, _COUNT)
    except Refused as exc:
        if exc.status != 404 or embedder is None:
            raise
    vector = (await embedder.embed([query]))[0].tolist()
    return "database function", await person.search_with(query, vector, _COUNT)


def holds(hit: dict[str, Any], document: Uploaded, chosen: Passage) -> bool:
    """Say whether a hit is the passage: of its document, on its page, with half of its different words at least."""
    wanted = set(words(chosen.text))
    return (
        hit["document_id"] == str(document.id)
        and hit["page_start"] <= chosen.page <= hit["page_end"]
        and len(wanted & set(words(hit["content"]))) >= _SHARE * len(wanted)
    )
