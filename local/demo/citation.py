"""From a hit to what is shown of it: the passage that answers, and the page on which that passage stands."""

from __future__ import annotations

import re
from collections.abc import Sequence

from worker.model import PAGE_SEPARATOR as SEPARATOR

_WIDTH = 240
_WORD = re.compile(r"\w+")


def passage(content: str, question: str, width: int = _WIDTH) -> tuple[int, int]:
    """Return the range of `content`, about `width` characters, that has the most words of `question`.

    Words of four letters and more count by their first five: a question rarely repeats a form exactly.
    It begins where a word begins, or with the content.
    """
    if len(content) <= width:
        return 0, len(content)
    asked = {word.casefold()[:5] for word in _WORD.findall(question) if len(word) > 3}
    words = [(match.start(), match.group().casefold()[:5]) for match in _WORD.finditer(content)]
    starts = [start for start, _ in words if start <= len(content) - width] or [0]
    counts = [len({word for at, word in words if start <= at < start + width} & asked) for start in starts]
    first = last = counts.index(max(counts))
    while last + 1 < len(counts) and counts[last + 1] == counts[first]:
        last += 1
    # The first stretch of equally good starts, in its middle: the words then stand inside, not at the edge.
    start = starts[(first + last) // 2] if max(counts) else 0
    return start, start + width


def page_at(content: str, offset: int, first: int, pages: Sequence[str]) -> int:
    """Return the page on which `content[offset]` stands, where `content` is a slice of `pages` joined.

    `pages` are the texts of all pages that the slice touches, the first of them with number `first`.
    """
    text = SEPARATOR.join(pages)
    last_begins = len(text) - len(pages[-1])
    start = text.find(content)
    # The slice touches the first page and the last; a look-alike within one of them is not it.
    while start >= 0 and len(pages) > 1 and not (start < len(pages[0]) and start + len(content) > last_begins):
        start = text.find(content, start + 1)
    if start < 0:
        return first
    position, begins = start + offset, 0
    for number, page in enumerate(pages, first):
        begins += len(page) + len(SEPARATOR)
        if position < begins:
            return number
    return first + len(pages) - 1


def one_line(text: str) -> str:
    """Return `text` without line breaks, heading marks, table rules and runs of spaces, fit to print in one line."""
    text = re.sub(r"(?m)^#{1,6} ", "", text)
    return " ".join(re.sub(r"\|(\s*:?-{3,}:?\s*\|)+", " ", text).split())
