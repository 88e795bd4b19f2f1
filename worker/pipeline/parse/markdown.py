"""Markdown as the formats write it: headings, paragraphs, lists and tables, with only the escapes that matter."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

# A line of plain text that Markdown would read as a heading, a fence, or the underline of a heading.
# Nothing else is escaped: chunks are read and searched as text, and backslashes split words.
_MISREAD = re.compile(r"^([ \t]*)(#{1,6}(?=\s|$)|`{3}|~{3}|(?:=+|-+)[ \t]*$)", re.MULTILINE)
_BLANKS = re.compile(r"[ \t\r\n\f\v]+")


def one_line(text: str) -> str:
    """Return the text with every run of white space made one space."""
    return _BLANKS.sub(" ", text).strip()


def plain(text: str) -> str:
    """Return a paragraph so that Markdown takes it for one."""
    return _MISREAD.sub(r"\1\\\2", text)


def heading(level: int, text: str) -> str:
    """Return a heading; `level` beyond 1 to 6 is brought inside."""
    return f"{'#' * min(max(level, 1), 6)} {one_line(text)}"


def item(depth: int, mark: str, text: str) -> str:
    """Return a list item; `depth` 0 is the outermost, `mark` is `-` or a label such as `2.`."""
    return f"{'   ' * min(depth, 8)}{mark} {one_line(text)}"


def row(cells: Iterable[str]) -> str:
    """Return a table's row; bars inside a cell are escaped, line ends become spaces."""
    return f"| {' | '.join(one_line(cell).replace('|', chr(92) + '|') for cell in cells)} |"


def rule(width: int) -> str:
    """Return the line below a table's header."""
    return f"|{' --- |' * width}"


def table(rows: Sequence[Sequence[str]]) -> str:
    """Return a table whose first row is the header; short rows are filled. No rows give nothing."""
    if not rows:
        return ""
    width = max(len(cells) for cells in rows)
    lines = [row([*cells, *[""] * (width - len(cells))]) for cells in rows]
    return "\n".join([lines[0], rule(width), *lines[1:]])


def blocks(parts: Iterable[str]) -> str:
    """Return the parts that hold something, a blank line between them."""
    return "\n\n".join(part for part in parts if part and not part.isspace())
