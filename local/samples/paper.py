"""A paper's blocks, read from the little Markdown that the samples are written in."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Heading:
    """`#` is level 1."""

    level: int
    text: str


@dataclass(frozen=True, slots=True)
class Paragraph:
    """Running text; its line breaks are only the source's."""

    text: str


@dataclass(frozen=True, slots=True)
class Items:
    """A list with bullets."""

    texts: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Table:
    """Rows of cells; the first row is the header."""

    rows: tuple[tuple[str, ...], ...]


@dataclass(frozen=True, slots=True)
class PageBreak:
    """What follows begins on a new page: a line `---`."""


Block = Heading | Paragraph | Items | Table | PageBreak


def read(path: Path) -> list[Block]:
    """Read the blocks of a paper; blank lines stand between them."""
    return [_block(text.splitlines()) for text in re.split(r"\n{2,}", path.read_text(encoding="utf-8").strip())]


def _block(lines: list[str]) -> Block:
    first = lines[0]
    if first == "---":
        return PageBreak()
    if first.startswith("#"):
        marks, text = first.split(" ", 1)
        return Heading(len(marks), text)
    if first.startswith("|"):
        rows = [tuple(cell.strip() for cell in line.strip("|").split("|")) for line in lines]
        return Table((rows[0], *rows[2:]))
    if first.startswith("- "):
        return Items(tuple(line.removeprefix("- ") for line in lines))
    return Paragraph(" ".join(lines))
