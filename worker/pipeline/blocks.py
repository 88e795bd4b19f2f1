"""A page's Markdown as blocks: headings, paragraphs, fenced code and tables, each a slice of the text.

Only what matters for cutting is recognised. A line that could be several things is a paragraph's, and
a block ends with its page, so that one stray fence cannot swallow a document.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

Kind = Literal["heading", "prose", "code", "table"]

MAX_HEADING = 300
"""A longer line is a paragraph, whatever stands before it."""

SHORT = 80
"""Paragraphs that together fill no line are one block: a million of them cost a minute and a half otherwise."""

_FENCE = re.compile(r"[ \t]*(`{3,}(?=[^`]*$)|~{3,})")
_ATX = re.compile(r" {0,3}(#{1,6})[ \t]+(\S.*)")
_CLOSING = re.compile(r"(?:^|[ \t])#+[ \t]*$")
_UNDERLINE = re.compile(r" {0,3}(=+|--+)[ \t]*")
_NO_TITLE = re.compile(r"[ \t]*[-+>|]|[ \t]*\*[ \t]")


@dataclass(slots=True)
class Block:
    """Code points [start, end) of a text, its line ends and the blank lines below it included.

    `level` and `title` belong to headings, `head` (the header row as it stands) to tables.
    """

    kind: Kind
    start: int = 0
    end: int = 0
    level: int = 0
    title: str = ""
    head: str = ""


def blocks(text: str, start: int, end: int) -> Iterator[Block]:
    """Yield the blocks of the page at [start, end), which touch and cover it from its first line with words.

    Lazily: a page may have millions of lines, and none of them need be kept.
    """
    last: Block | None = None
    open_kind: Kind | None = None  # of the paragraph or table that the next line may continue
    while start < end:
        line, after = _line(text, start, end)
        if not line or line.isspace():
            open_kind = None
        else:
            block, after = _begin(text, start, end, open_kind)
            if last and last.kind == "prose" and block and block.kind == "prose" and after - last.start <= SHORT:
                open_kind = "prose"
            elif block is not None:
                if last is not None:
                    last.end = start
                    yield last
                block.start = start
                last = block
                open_kind = block.kind if block.kind in ("prose", "table") else None
        start = after
    if last is not None:
        last.end = end
        yield last


def _line(text: str, start: int, end: int) -> tuple[str, int]:
    """The line that begins at `start`, and where the next one does."""
    stop = text.find("\n", start, end)
    return (text[start:end], end) if stop < 0 else (text[start:stop], stop + 1)


def _begin(text: str, start: int, end: int, open_kind: Kind | None) -> tuple[Block | None, int]:
    """The block that begins with this line, if one does, and where its first lines that are read at once end."""
    line, after = _line(text, start, end)
    if fence := _FENCE.match(line[:MAX_HEADING]):
        return Block("code"), _fence_end(text, after, end, fence[1])
    if len(line) <= MAX_HEADING and (atx := _ATX.fullmatch(line)) and (title := _title(_CLOSING.sub("", atx[2]))):
        return Block("heading", level=len(atx[1]), title=title), after
    if open_kind != "table" and after < end:
        below, after_below = _line(text, after, end)
        # Only a line of its own is a title: in plain text from a PDF a paragraph above dashes is none.
        if open_kind is None and (level := _underlined(line, below)):
            return Block("heading", level=level, title=_title(line)), after_below
        if "|" in line and "|" in below and "-" in below and not below.strip(" \t|:-"):
            return Block("table", head=line.strip()), after_below
    if open_kind is None or (open_kind == "table" and "|" not in line):
        return Block("prose"), after
    return None, after


def _fence_end(text: str, start: int, end: int, fence: str) -> int:
    """Where the line after the closing fence begins, or the page ends."""
    while start < end:
        line, start = _line(text, start, end)
        line = line.strip()
        if line.startswith(fence) and not line.strip(fence[0]):
            return start
    return end


def _underlined(line: str, below: str) -> int:
    """The level of a title underlined with = or -, else 0."""
    if max(len(line), len(below)) > MAX_HEADING or not (underline := _UNDERLINE.fullmatch(below)):
        return 0
    if _NO_TITLE.match(line) or not _title(line):
        return 0
    return 1 if underline[1].startswith("=") else 2


def _title(line: str) -> str:
    """A heading's words, without emphasis around them and runs of blanks between them."""
    return " ".join(line.split()).strip("*_ ")
