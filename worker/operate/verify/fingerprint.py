"""What of vectors and pages goes into a report, so that two reports can be compared without either text or vector.

Both are reproducible anywhere: their randomness is SHA-256 of a counter.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from functools import cache
from typing import TYPE_CHECKING

from worker.operate.verify.reader import words

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

PROJECTIONS = 16
STEP = 1000
"""Projections are kept in thousandths."""
TOLERANCE = 0.03
"""The largest estimated distance between two vectors that count as equal: a cosine of 0.9995."""
HASHES = 64

_PRIME = (1 << 61) - 1


@cache
def _signs(dimensions: int) -> NDArray[np.int8]:
    import numpy as np

    needed = PROJECTIONS * dimensions
    bits = b"".join(hashlib.sha256(f"sluice vector {n}".encode()).digest() for n in range(-(-needed // 256)))
    return (
        np.unpackbits(np.frombuffer(bits, np.uint8))[:needed].reshape(PROJECTIONS, dimensions).astype(np.int8) * 2 - 1
    )


def projected(vectors: NDArray[np.float32]) -> list[list[int]]:
    """Return a fingerprint a row: the sums of its numbers under 16 fixed patterns of signs, in thousandths.

    The mean square of two fingerprints' differences estimates the square of the distance between the vectors, whatever
    their dimension; one number of 0.05 with its sign turned is a distance of 0.1.
    """
    import numpy as np

    sums = vectors.astype(np.float64) @ _signs(vectors.shape[1]).T.astype(np.float64)
    return [[int(number) for number in row] for row in np.rint(sums * STEP)]


def distance(mine: Sequence[int], theirs: Sequence[int]) -> float:
    """Estimate the distance between two vectors by their fingerprints."""
    squares = sum((a - b) ** 2 for a, b in zip(mine, theirs, strict=True))
    return float((squares / len(mine)) ** 0.5 / STEP)


def signature(text: str) -> list[int]:
    """Return the MinHash of a page's different words, 64 numbers of 32 bits; empty for a page without words."""
    found = [int.from_bytes(hashlib.blake2b(word.encode(), digest_size=7).digest()) for word in words(text)]
    if not found:
        return []
    return [min((a * word + b) % _PRIME for word in found) & 0xFFFFFFFF for a, b in _permutations()]


@cache
def _permutations() -> list[tuple[int, int]]:
    def number(name: str) -> int:
        return int.from_bytes(hashlib.sha256(f"sluice words {name}".encode()).digest()[:8]) % _PRIME

    return [(number(f"a{n}") or 1, number(f"b{n}")) for n in range(HASHES)]


def similarity(mine: Sequence[int], theirs: Sequence[int]) -> float:
    """Estimate which share of two pages' different words they have in common; its standard error is 0.06 at most."""
    if not mine or not theirs:
        return float(not mine and not theirs)
    return sum(a == b for a, b in zip(mine, theirs, strict=True)) / len(mine)


def digest(parts: Iterable[str]) -> str:
    """Return the SHA-256 of all parts, sorted: a digest of a set of hashes, whatever their order."""
    return hashlib.sha256("\n".join(sorted(parts)).encode()).hexdigest()
