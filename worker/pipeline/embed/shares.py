"""What a request cost, divided among the documents whose texts it carried."""

from __future__ import annotations

from collections.abc import Iterable

from worker.model import Claim, EmbeddingModel
from worker.pipeline.ledger import Spent


def shares(model: EmbeddingModel, texts: Iterable[tuple[Claim, int]], billed: int | None) -> list[Spent]:
    """Divide the billed tokens among the claims by their texts' own counts.

    The shares add up to what was billed; without a bill (None) they are the counts.
    """
    counted: dict[Claim, int] = {}
    for claim, tokens in texts:
        counted[claim] = counted.get(claim, 0) + tokens
    total = sum(counted.values())
    spent = []
    sofar = charged = 0
    for claim, tokens in counted.items():
        sofar += tokens
        # Rounded along the running sum: what one share loses, the next one gets.
        upto = sofar if billed is None else round(billed * sofar / total) if total else billed
        spent.append(
            Spent(
                claim.job_id, claim.number, claim.document_id, claim.tenant_id,
                model.provider, model.name, tokens=upto - charged,
            )
        )  # fmt: skip
        charged = upto
    return spent
