"""Did the service return the file's text, or a summary of it? Its own text layer knows."""

from __future__ import annotations

import re
from collections import Counter

from worker.model import Parsed

LOW = 0.7
"""Below this the parse is noted. Running heads that a parser leaves out cost a tenth; a summary, most."""
_FEWEST_WORDS = 50
_FEWEST_NUMBERS = 10
_WORD = re.compile(r"[^\W\d_]{3,}")
_NUMBER = re.compile(r"\d+(?:[.,]\d+)*")


def fidelity(layer: Parsed, answer: Parsed) -> float | None:
    """Return which share of the layer's words and numbers is in the answer, the smaller of the two.

    Order and layout do not count, repetition does. None where the layer holds too little to judge by.
    Linear in both texts: seconds for the largest, so not for the loop that renews leases.
    """
    said, back = layer.text.casefold(), answer.text.casefold()
    words = Counter(_WORD.findall(said))
    if words.total() < _FEWEST_WORDS:
        return None
    share = _share(words, Counter(_WORD.findall(back)))
    numbers = Counter(map(_plain, _NUMBER.findall(said)))
    if numbers.total() >= _FEWEST_NUMBERS:
        share = min(share, _share(numbers, Counter(map(_plain, _NUMBER.findall(back)))))
    return share


def _share(wanted: Counter[str], found: Counter[str]) -> float:
    return (wanted & found).total() / wanted.total()


def _plain(number: str) -> str:
    """Thousands may have come back without their commas."""
    return number.replace(",", "").replace(".", "")
