"""What every embedder promises, and the check that its vectors pass before they are stored."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from worker.errors import Misconfigured, Transient
from worker.model import EmbeddingModel

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class Batching:
    """How texts are joined into requests.

    One carries at most so many texts and tokens, `at_once` are under way together, and one that is not full waits
    `linger` seconds for more texts.
    """

    texts: int
    tokens: int
    at_once: int
    linger: float


def unbilled(_tokens: int) -> None:
    """Take no notice of what a request cost."""


class Embedder(Protocol):
    """Turns texts into vectors of one embedding model.

    A vector is a function of its text alone: the database keeps one vector for equal content, so
    neighbours in a batch, their order and the number of threads must not show in it.
    """

    model: EmbeddingModel
    batching: Batching
    """What one call of `embed` should carry at most; more is accepted where the provider takes it."""

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        """Count each text in the model's own tokens, special tokens included, never truncated.

        Blocks on the processor: call it in a thread for whole documents.
        """
        ...

    async def embed(self, texts: Sequence[str], *, billed: Callable[[int], None] = unbilled) -> NDArray[np.float32]:
        """Return one unit-length row a text, in the order of the texts, shaped (n, dimensions).

        `billed` is called with the tokens that the provider says it counted, where it says so. Raises Rejected for
        a text over `model.max_tokens`, and for texts of which the provider refuses at least one: nothing is ever
        cut.
        """
        ...

    async def aclose(self) -> None:
        """Free threads and connections; the embedder is of no use afterwards."""
        ...


def check_vectors(vectors: NDArray[np.float32], *, count: int, model: EmbeddingModel) -> NDArray[np.float64]:
    """Refuse what must not be stored (wrong number or size, infinities, NaN, zero length); return the lengths.

    Raises Misconfigured for a wrong dimension, which no retry can mend, and Transient for the rest.
    """
    import numpy as np  # here: a command that only says its options would wait 0.1 s for it

    if vectors.ndim == 2 and vectors.shape[1] != model.dimensions:
        raise Misconfigured(
            "embedding_dimension",
            "The embedding model gave vectors of another size than it is registered with. "
            "An operator must correct the embedding model's dimensions; the document then continues by itself.",
            detail=f"{model.provider}/{model.name}: {vectors.shape[1]} dimensions, registered {model.dimensions}",
        )
    if vectors.shape != (count, model.dimensions):
        raise invalid_answer(model, f"shape {vectors.shape}, expected {(count, model.dimensions)}")
    # In float64: the squares of large but finite float32 values overflow, and of small ones vanish.
    squares: NDArray[np.float64] = np.einsum("ij,ij->i", vectors, vectors, dtype=np.float64)
    lengths = np.sqrt(squares)
    if not np.isfinite(lengths).all():
        raise invalid_answer(model, f"vector {int(np.flatnonzero(~np.isfinite(lengths))[0])} is not finite")
    if not (lengths > 0).all():
        raise invalid_answer(model, f"vector {int(np.flatnonzero(lengths <= 0)[0])} is zero")
    return lengths


def invalid_answer(model: EmbeddingModel, detail: str) -> Transient:
    """Return the error for an answer that cannot be used; `detail` holds nothing of the answer's content."""
    return Transient(
        "embedding_invalid",
        "The embedding model gave an unusable answer. It is tried again by itself; nothing needs to be done.",
        detail=f"{model.provider}/{model.name}: {detail}",
    )
