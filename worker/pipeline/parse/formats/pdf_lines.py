"""Lines of a PDF page in the order in which people read them, columns one after the other."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable
from itertools import pairwise

_MIN_COLUMN = 4
"""Fewer lines on a side of a gap are a table or a letterhead, not a column."""
_PROSE_WORDS = 3.5
"""Lines of columns have more words than this, half of them; cells of tables have fewer."""


def median(values: Iterable[float]) -> float:
    """Return the middle value; the standard library's `statistics` costs each document 20 ms of imports."""
    ordered = sorted(values)
    return ordered[len(ordered) // 2]


class Segment:
    """Words of one line without a wide gap between them; points, y of the baseline growing upwards."""

    __slots__ = ("bold", "longest", "size", "text", "words", "x0", "x1", "y")

    def __init__(self, text: str, x0: float, x1: float, y: float, size: float, bold: bool, words: int) -> None:
        self.text = text
        self.x0 = x0
        self.x1 = x1
        self.y = y
        self.size = size
        self.bold = bold
        self.words = words
        self.longest = len(text)


class Line(Segment):
    """Segments on one baseline, read together; `cells` counts them, `first` is the text of the leftmost."""

    __slots__ = ("cells", "first")

    def __init__(self, first: Segment) -> None:
        super().__init__(first.text, first.x0, first.x1, first.y, first.size, first.bold, first.words)
        self.longest = first.longest
        self.cells = 1
        self.first = first.text

    def takes(self, segment: Segment) -> bool:
        """Tell whether the segment goes on to the right on the same baseline."""
        near = abs(segment.y - self.y) < 0.35 * max(segment.size, self.size)
        return near and segment.x0 > self.x1 - 0.5 * self.size

    def add(self, segment: Segment) -> None:
        """Append a segment, parted by a space: a row of a table stays one line."""
        if segment.longest > self.longest:
            self.size, self.longest = segment.size, segment.longest
        self.text += f" {segment.text}"
        self.x1 = max(self.x1, segment.x1)
        self.words += segment.words
        self.bold = self.bold and segment.bold
        self.cells += 1


def read(segments: list[Segment]) -> list[Line]:
    """Return the page's lines in reading order.

    The order of the content is kept, as producers mostly write it as it is read, except where it jumps
    to and fro between two columns of prose: then each column is read from top to bottom.
    """
    lines: list[Line] = []
    for segment in _in_order(segments, 3):
        if lines and lines[-1].takes(segment):
            lines[-1].add(segment)
        else:
            lines.append(Line(segment))
    return lines


def _in_order(segments: list[Segment], depth: int) -> list[Segment]:
    gutter = _gutter(segments) if depth else None
    if gutter is None:
        return segments
    sides = [_side(segment, gutter) for segment in segments]
    crossing = sum(side == 0 for side in sides)
    apart = [side for side in sides if side]
    changes = sum(a != b for a, b in pairwise(apart))
    fewer = min(apart.count(-1), apart.count(1))
    # Each column once between two full-width lines is at most this many changes.
    if changes <= 2 * (crossing + 1) or changes < 0.6 * fewer:
        return segments
    across = sorted((s for s in segments if _side(s, gutter) == 0), key=lambda s: -s.y)
    heights = [-s.y for s in across]
    bands: list[tuple[list[Segment], list[Segment]]] = [([], []) for _ in range(len(across) + 1)]
    for segment, side in zip(segments, sides, strict=True):
        if side:
            bands[bisect_left(heights, -segment.y)][side > 0].append(segment)
    ordered: list[Segment] = []
    for number, band in enumerate(bands):
        for column in band:
            column.sort(key=lambda s: (-s.y, s.x0))
            ordered += _in_order(column, depth - 1)
        if number < len(across):
            ordered.append(across[number])
    return ordered


def _side(segment: Segment, gutter: float) -> int:
    if segment.x1 <= gutter + 1:
        return -1
    return 1 if segment.x0 >= gutter - 1 else 0


def _gutter(segments: list[Segment]) -> float | None:
    """Return the x of a vertical gap with prose on both sides, or None."""
    if len(segments) < 2 * _MIN_COLUMN:
        return None
    left, right = min(s.x0 for s in segments), max(s.x1 for s in segments)
    width = int(right - left) + 2
    if not 50 < width < 20_000:
        return None
    steps = [0] * (width + 1)
    for segment in segments:
        steps[max(0, int(segment.x0 - left))] += 1
        steps[min(width, int(segment.x1 - left) + 1)] -= 1
    covered, depth = [], 0
    for step in steps:
        depth += step
        covered.append(depth)
    middle = range(width // 5, width - width // 5)
    least = min((covered[x] for x in middle), default=len(segments))
    if least > len(segments) * 0.3:
        return None
    # The longest stretch that hardly anything crosses.
    best = run = 0
    end = None
    for x in middle:
        run = run + 1 if covered[x] <= least else 0
        if run > best:
            best, end = run, x
    size = median(s.size for s in segments)
    if end is None or best < 0.6 * size:
        return None
    gutter = left + end - best / 2
    for side in (-1, 1):
        column = [s for s in segments if _side(s, gutter) == side]
        if len(column) < _MIN_COLUMN or median(s.words for s in column) < _PROSE_WORDS:
            return None
    return gutter
