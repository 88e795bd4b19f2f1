"""A PDF's lines as Markdown: headings by size and weight, paragraphs unwrapped, running heads left out."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator
from itertools import islice, pairwise

from worker.pipeline.parse import markdown
from worker.pipeline.parse.formats import pdf_lines
from worker.pipeline.parse.formats.pdf_lines import Line, Segment, median

_HYPHEN = "\ufffe"
_LARGER = 1.12
"""A heading's font size is at least this many times the body's."""
_MAX_LEVELS = 5
_EDGE_LINES = 3
"""Running heads are looked for among this many lines at the top and at the bottom of a page."""

_LEADERS = re.compile(r"(?:\s?[.·…_]){4,}\s*(?=\S{0,12}$)|(?:\s?[.…]){5,}")
_BULLET = re.compile(r"^[•●▪◦‣∙■□▸►➢✓\uf0b7\uf0a7\uf0d8]\s*|^[–-]\s+(?=\S)")
_LISTED = re.compile(r"^(?:\(?(?:\d{1,3}|[a-z]|[ivx]{1,4})[.)]\s+|\(\d{1,3}\)\s)", re.IGNORECASE)
_PAGE_NUMBER = re.compile(r"^\W*(?:page\s*)?[\divxlc]{1,5}(?:\s*(?:of|/|-)\s*\d{1,5})?\W*$", re.IGNORECASE)
_LABEL = re.compile(
    r"^(?:(?:section|chapter|part|article|appendix|annex|schedule|exhibit)\s+)?[a-z]?[\divx]*(?:\.\d+)*[.):]?$",
    re.IGNORECASE,
)
_NUMBER = re.compile(r"\d{1,6}")
_LETTERS = re.compile(r"[^\W\d_]")
_OPEN = re.compile(r"[^\W_]-$")
_WORD = re.compile(r"[^\W\d_]+(?:-[^\W\d_]+)*")
_LIGATURES = str.maketrans(
    {"\ufb00": "ff", "\ufb01": "fi", "\ufb02": "fl", "\ufb03": "ffi", "\ufb04": "ffl", "\ufb05": "st", "\ufb06": "st"}
)


def pages(content: list[list[Segment]], offer_title: Callable[[str], None]) -> Iterator[str]:
    """Yield each page's Markdown; what decides (body size, running heads, words) is taken from all of them."""
    read = [pdf_lines.read(segments) for segments in content]
    for lines in read:
        for line in lines:
            line.text = line.text.translate(_LIGATURES)
    _drop_running_heads(read)
    style = _Style(read)
    words = {word.lower() for lines in read for line in lines for word in _WORD.findall(line.text)}
    for lines in read:
        parts = []
        for part in _parts(lines, style, words):
            if isinstance(part, _Heading):
                offer_title(part.text)
                parts.append(markdown.heading(part.level, part.text))
            else:
                parts.append(_paragraph(part, words))
        yield markdown.blocks(parts)


class _Heading:
    def __init__(self, level: int, line: Line) -> None:
        self.level = level
        self.line = line
        self.text = line.text

    def continues(self, line: Line) -> bool:
        """Tell whether the line is the next of the same heading."""
        gap = self.line.y - line.y
        same = abs(line.size - self.line.size) < 0.06 * line.size and line.bold == self.line.bold
        return same and 0 < gap < 1.6 * line.size and not _LISTED.match(line.text) and self.line.words > 1

    def add(self, line: Line, words: set[str]) -> None:
        """Append the heading's next line."""
        parted = self.text.endswith(_HYPHEN)
        self.text = _unhyphenated(self.text[:-1], line.text, words) if parted else f"{self.text} {line.text}"
        self.line = line


class _Style:
    """The body's size, and which other sizes are headings of which level."""

    def __init__(self, read: list[list[Line]]) -> None:
        weights: Counter[float] = Counter()
        bold = total = 0
        for lines in read:
            for line in lines:
                weights[_rounded(line.size)] += len(line.text)
                total += len(line.text)
                bold += len(line.text) if line.bold else 0
        self.body = max(weights, key=lambda size: weights[size], default=10.0)
        self.bold_means = bold < 0.3 * total
        larger = sorted({_rounded(line.size) for lines in read for line in lines if self._may_head(line)}, reverse=True)
        self._levels: list[float] = []
        for size in larger:
            if not self._levels or size < 0.93 * self._levels[-1]:
                self._levels.append(size)

    def _may_head(self, line: Line) -> bool:
        return line.size >= _LARGER * self.body and _reads_as_heading(line)

    def level(self, line: Line, alone: bool) -> int:
        """Return the heading's level, or 0; bold lines of the body's size are headings where they stand `alone`."""
        if self._may_head(line):
            rank = sum(size > 1.035 * _rounded(line.size) for size in self._levels)
            return min(rank + 1, _MAX_LEVELS)
        short = line.words <= 12 and len(line.text) <= 100 and not line.text.endswith((".", ",", ":", ";"))
        if line.bold and self.bold_means and alone and short and line.size >= 0.95 * self.body:
            return min(len(self._levels), _MAX_LEVELS) + 1 if _reads_as_heading(line) else 0
        return 0


def _rounded(size: float) -> float:
    return round(size * 2) / 2


def _reads_as_heading(line: Line) -> bool:
    text = line.text
    numbered = line.cells == 2 and _LABEL.match(line.first) is not None
    return (
        (line.cells == 1 or numbered)
        and line.words <= 25
        and len(text) <= 200
        and len(_LETTERS.findall(text)) >= 2
        and not (text.endswith((".", ",", ";")) and line.words > 8)
        and not _LEADERS.search(text)
        and not _BULLET.match(text)
    )


def _parts(lines: list[Line], style: _Style, words: set[str]) -> Iterator[_Heading | list[Line]]:
    """Yield headings and paragraphs in order."""
    leading = _leading(lines, style.body)
    open_part: _Heading | list[Line] | None = None
    previous: Line | None = None
    for number, line in enumerate(lines):
        gap = previous.y - line.y if previous is not None else 0.0
        after_heading = isinstance(open_part, _Heading)
        following = lines[number + 1] if number + 1 < len(lines) else None
        level = style.level(line, after_heading or _stands_alone(previous, line, following, leading))
        if level:
            if isinstance(open_part, _Heading) and open_part.level == level and open_part.continues(line):
                open_part.add(line, words)
            else:
                if open_part is not None:
                    yield open_part
                open_part = _Heading(level, line)
        elif isinstance(open_part, list) and previous is not None and _goes_on(previous, line, gap, leading):
            open_part.append(line)
        else:
            if open_part is not None:
                yield open_part
            open_part = [line]
        previous = line
    if open_part is not None:
        yield open_part


def _stands_alone(previous: Line | None, line: Line, following: Line | None, leading: float) -> bool:
    """Tell whether a sentence begins with the line and none goes on below it or beside it."""
    if following is not None:
        beside = abs(following.y - line.y) < 0.35 * line.size
        if beside or following.text[:1].islower():
            return False
    if previous is None:
        return True
    gap = previous.y - line.y
    return gap < 0 or gap > 1.15 * leading or previous.text.endswith((".", "!", "?", ":", ";"))


def _leading(lines: list[Line], body: float) -> float:
    steps = [a.y - b.y for a, b in pairwise(lines) if 0.8 * body < a.y - b.y < 3 * body and abs(a.size - b.size) < 1]
    return median(steps) if steps else 1.2 * body


def _goes_on(previous: Line, line: Line, gap: float, leading: float) -> bool:
    """Tell whether the line belongs to the paragraph of the line before it."""
    if abs(line.size - previous.size) > 0.15 * max(line.size, previous.size):
        return False
    if previous.cells == 1 and line.cells > 1 and line.words < 4 * line.cells:
        return False  # a table begins
    if gap < -leading:
        # The next column: a sentence that goes on there is one paragraph.
        return line.text[:1].islower() and not previous.text.endswith((".", "!", "?", ":"))
    # Rows of a table stand further apart than lines of prose.
    most = 2.5 if previous.cells > 1 and line.cells > 1 else 1.35
    return gap <= most * max(leading, 0.9 * line.size)


def _paragraph(lines: list[Line], words: set[str]) -> str:
    """Return lines as one block: full lines of prose are joined, rows, lists and short lines are kept."""
    out: list[str] = []
    previous_full = False
    for run in _columns(lines):
        right = max(line.x1 for line in run)
        width = right - min(line.x0 for line in run)
        for line in run:
            text = _LEADERS.sub(" … ", line.text).strip()
            bullet = _BULLET.match(text)
            if bullet is not None:
                text = f"- {text[bullet.end() :].lstrip()}"
            starts = bullet is not None or _LISTED.match(text) is not None or line.cells > 1
            if out and out[-1].endswith(_HYPHEN):
                out[-1] = _unhyphenated(out[-1].removesuffix(_HYPHEN), text, words)
            elif out and previous_full and not starts:
                # A hyphen that PDFium did not take for one parts numbers and names: 10-12, COVID-19.
                out[-1] += text if _OPEN.search(out[-1]) and text[:1].isalnum() else f" {text}"
            else:
                out.append(text)
            narrow = width < 15 * line.size
            previous_full = (line.cells == 1 and line.words > 2 and line.x1 >= right - 0.15 * width and not narrow) or (
                line is run[-1] and line is not lines[-1]  # a sentence that goes on in the next column
            )
    return markdown.plain("\n".join(out).replace(_HYPHEN, "-"))


def _columns(lines: list[Line]) -> Iterator[list[Line]]:
    """Cut a paragraph where it goes on at the top of the next column."""
    start = 0
    for at in range(1, len(lines)):
        if lines[at].y > lines[at - 1].y + lines[at].size:
            yield lines[start:at]
            start = at
    yield lines[start:]


def _unhyphenated(before: str, after: str, words: set[str]) -> str:
    """Join a word that a line end parted: with its hyphen where the document or its look says so."""
    head = re.search(r"[^\W\d_]+$", before)
    tail = re.match(r"[^\W\d_]+", after)
    if head is None or tail is None:
        return f"{before}-{after}"
    a, b = head.group(), tail.group()
    if (a + b).lower() in words:
        return before + after
    keeps = f"{a}-{b}".lower() in words or not b.islower() or len(a) < 2 or before[: head.start()].endswith("-")
    return f"{before}-{after}" if keeps else before + after


def _drop_running_heads(read: list[list[Line]]) -> None:
    """Remove lines that stand at the same place at the edge of many pages; their first occurrence stays.

    Many is more than half of all pages, of the odd or of the even ones, or four neighbours (a chapter's
    head). One number in the line may count with the pages; other numbers must be the same, or the last
    rows of tables would go.
    """
    places: dict[str, list[tuple[int, Line]]] = {}
    printed = [number for number, lines in enumerate(read) if lines]
    for number in printed:
        lines = sorted(read[number], key=lambda line: -line.y)
        edges = lines if len(lines) <= 2 * _EDGE_LINES else [*lines[:_EDGE_LINES], *lines[-_EDGE_LINES:]]
        for line in edges:
            for key in _running_keys(line, number):
                places.setdefault(key, []).append((number, line))
    dropped: set[int] = set()
    kept: set[int] = set()
    for found in places.values():
        if not _is_running(sorted({number for number, _ in found}), printed):
            continue
        first = found[0][1]
        if not _PAGE_NUMBER.match(first.text) and len(_LETTERS.findall(first.text)) >= 3 and id(first) not in dropped:
            kept.add(id(first))
        dropped.update(id(line) for _, line in found)
    for number, lines in enumerate(read):
        read[number] = [line for line in lines if id(line) not in dropped or id(line) in kept]


def _running_keys(line: Line, page: int) -> Iterator[str]:
    """Yield what this line would share with its like on other pages."""
    text = line.text.casefold()
    place = round(line.y / 6)
    yield f"{place} {text}"
    for match in islice(_NUMBER.finditer(text), 5):
        yield f"{place} {text[: match.start()]}#{int(match.group()) - page}{text[match.end() :]}"
    if _PAGE_NUMBER.match(text):
        yield f"{place} page"


def _is_running(numbers: list[int], printed: list[int]) -> bool:
    if len(numbers) < 3:
        return False
    if len(numbers) > len(printed) / 2:
        return True
    for parity in (0, 1):
        of_kind = [number for number in printed if number % 2 == parity]
        if len(of_kind) >= 3 and sum(number % 2 == parity for number in numbers) > len(of_kind) / 2:
            return True
    return any(numbers[at + 3] - numbers[at] <= 8 for at in range(len(numbers) - 3))
