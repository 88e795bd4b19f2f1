"""What slices of one document cost, and what may stand above a chunk.

A slice costs its tokens without the special ones, so that the costs of neighbours add up to about the
cost of both. The sum is an estimate; chunks are counted again as they will be embedded.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

CountTokens = Callable[[Sequence[str]], list[int]]

CHARS_A_TOKEN = 16
"""Sixteen code points cost a token at least: MiniLM takes any word over 100 characters for one unknown
token and blanks for none, so tokens alone would let a chunk grow to megabytes."""
CONTEXT_SHARE = 4
"""Headings may take a quarter of the limit and a table's header another, which leaves half for content."""
SMALLEST_LIMIT = 8
CACHE = 100_000


@dataclass(frozen=True, slots=True)
class Context:
    """The text above a chunk's content, and its cost."""

    text: str
    cost: int


class Ruler:
    """Measures one document's text with one model's tokens; `limit` is what context and content may cost together."""

    def __init__(self, text: str, count_tokens: CountTokens, max_tokens: int) -> None:
        self.text = text
        self.count = count_tokens
        self.max_tokens = max_tokens
        self._special = count_tokens([""])[0]
        self.limit = max_tokens - self._special
        if self.limit < SMALLEST_LIMIT:
            raise ValueError(
                f"A limit of {max_tokens} tokens leaves {self.limit} for text; {SMALLEST_LIMIT} are needed."
            )
        self._known: dict[str, int] = {}
        self._contexts: dict[tuple[tuple[str, ...], str], Context] = {}

    def costs(self, slices: Sequence[tuple[int, int]]) -> list[int]:
        """Cost each slice; one that is too long whatever its tokens is not tokenised at all."""
        texts = [self.text[a:b] if b - a <= self.limit * CHARS_A_TOKEN else "" for a, b in slices]
        return [
            max(tokens - self._special, -((a - b) // CHARS_A_TOKEN))
            for (a, b), tokens in zip(slices, self.count(texts), strict=True)
        ]

    def fits(self, above: Context, cost: int) -> bool:
        return above.cost + cost <= self.limit

    def learn(self, phrases: Iterable[str]) -> None:
        """Count what contexts will be made of, all at once."""
        if len(self._known) > CACHE:
            self._known.clear()
            self._contexts.clear()
        new = list({phrase for phrase in phrases if phrase not in self._known})
        self._known.update(
            (phrase, tokens - self._special) for phrase, tokens in zip(new, self.count(new), strict=True)
        )

    def context(self, headings: tuple[str, ...], head: str = "") -> Context:
        """What stands above content under these headings, and below this table header.

        Headings that do not fit go from the outermost on, header cells from the last on.
        """
        key = headings, head
        if key not in self._contexts:
            self._contexts[key] = self._context(headings, cells(head))
        return self._contexts[key]

    def _context(self, headings: tuple[str, ...], header: list[str]) -> Context:
        self.learn((*headings, *header))
        # A separator costs a token or two; what joins context and content, at most one.
        deepest, spent = self._fitting(headings[::-1], 2)
        lines = [" > ".join(deepest[::-1])] if deepest else []
        first, spent_on_header = self._fitting(header, 1)
        if first:
            lines.append(f"| {' | '.join(first)} |")
        cost = spent + spent_on_header + len(lines)
        return Context("\n".join(lines), cost)

    def _fitting(self, phrases: Sequence[str], separator: int) -> tuple[list[str], int]:
        spent, fitting = 0, []
        for phrase in phrases:
            cost = self._known[phrase] + separator
            if spent + cost > self.limit // CONTEXT_SHARE:
                break
            spent += cost
            fitting.append(phrase)
        return fitting, spent


def cells(head: str) -> list[str]:
    """A header row's cells, blanks between words made single."""
    return [" ".join(cell.split()) for cell in head.strip().strip("|").split("|")] if head else []
