"""What every embedder promises, and the check that its vectors pass before they are stored."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from worker.errors import Misconfigured, Transient
from worker.model import EmbeddingModel


class Embedder(Protocol):
    """Turns texts into vectors of one embedding model.

    A vector is a function of its text alone: the database keeps one vector for equal content, so
    neighbours in a batch, their order and the number of threads must not show in it.
    """

    model: EmbeddingModel
    batch_size: int
    """Texts that one call should carry at most; more are accepted, but keep the caller waiting longer."""

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        """Count each text in the model's own tokens, special tokens included, never truncated.

        Blocks on the processor: call it in a thread for whole documents.
        """
        ...

    async def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Return one unit-length row a text, in the order of the texts, shaped (n, dimensions).

        Raises Rejected for a text over `model.max_tokens`: nothing is ever cut.
        """
        ...

    async def aclose(self) -> None:
        """Free threads and connections; the embedder is of no use afterwards."""
        ...


def check_vectors(vectors: NDArray[np.float32], *, count: int, model: EmbeddingModel) -> None:
    """Refuse what must not be stored: the wrong number or size of vectors, infinities, NaN, zero length.

    Raises Misconfigured for a wrong dimension, which no retry can mend, and Transient for the rest.
    """
    if vectors.ndim == 2 and vectors.shape[1] != model.dimensions:
        raise Misconfigured(
            "embedding_dimension",
            "The embedding model gave vectors of another size than it is registered with. "
            "An operator must correct the embedding model's dimensions; the document then continues by itself.",
            detail=f"{model.provider}/{model.name}: {vectors.shape[1]} dimensions, registered {model.dimensions}",
        )
    if vectors.shape != (count, model.dimensions):
        raise _invalid(model, f"shape {vectors.shape}, expected {(count, model.dimensions)}")
    # In float64: the squares of large but finite float32 values overflow, and of small ones vanish.
    lengths = np.linalg.norm(vectors.astype(np.float64), axis=1)
    if not np.isfinite(lengths).all():
        raise _invalid(model, f"vector {int(np.flatnonzero(~np.isfinite(lengths))[0])} is not finite")
    if not (lengths > 0).all():
        raise _invalid(model, f"vector {int(np.flatnonzero(lengths <= 0)[0])} is zero")


def _invalid(model: EmbeddingModel, detail: str) -> Transient:
    return Transient(
        "embedding_invalid",
        "The embedding model gave an unusable answer. It is tried again by itself; nothing needs to be done.",
        detail=f"{model.provider}/{model.name}: {detail}",
    )
