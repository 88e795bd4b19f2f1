"""CSV and TSV: one page with one Markdown table, read twice so that rows are never all held."""

from __future__ import annotations

import csv
import io
from typing import BinaryIO

from worker.pipeline.filetype import TSV
from worker.pipeline.parse import markdown
from worker.pipeline.parse.draft import Draft
from worker.pipeline.text import clean, decode

ERRORS = (csv.Error,)
_MAX_COLUMNS = 1000
_SAMPLE_ROWS = 50
_SAMPLE_CHARACTERS = 65_536


def parse(file: BinaryIO, draft: Draft) -> None:
    """Fill the draft with a table; what no delimiter parts, or parts too often, stays as text."""
    text = clean(decode(file.read())).strip("\n")
    delimiter = "\t" if draft.mime_type == TSV else find_delimiter(text[:_SAMPLE_CHARACTERS])
    csv.field_size_limit(len(text) + 1)
    width = 0
    if delimiter is not None:
        for cells in csv.reader(io.StringIO(text), delimiter=delimiter):
            width = max(width, len(cells))
            if width > _MAX_COLUMNS:
                break
    if delimiter is None or not 1 <= width <= _MAX_COLUMNS:
        draft.add_page(markdown.plain(text))
        return
    lines: list[str] = []
    for cells in csv.reader(io.StringIO(text), delimiter=delimiter):
        if not any(cell and not cell.isspace() for cell in cells):
            continue
        # Only the header is filled: Markdown takes short rows as they are.
        line = markdown.row([*cells, *[""] * (width - len(cells))] if not lines else cells)
        draft.expect(len(line))
        lines.append(line)
        if len(lines) == 1:
            lines.append(markdown.rule(width))
    draft.add_page("\n".join(lines))


def find_delimiter(sample: str) -> str | None:
    """Return what parts the sample's rows most evenly, or None when nothing does.

    The standard library's sniffer is not used: it takes letters for delimiters, and seconds for long lines.
    """
    best: tuple[float, int, str] | None = None
    for delimiter in ",;\t|":
        widths = []
        for cells in csv.reader(io.StringIO(sample), delimiter=delimiter):
            if cells:
                widths.append(len(cells))
            if len(widths) == _SAMPLE_ROWS:
                break
        if len(widths) > 1:
            widths = widths if len(widths) == _SAMPLE_ROWS else widths[: max(1, len(widths) - 1)]  # the last may be cut
        usual = max(set(widths), key=widths.count, default=0)
        if usual < 2:
            continue
        candidate = (widths.count(usual) / len(widths), usual, delimiter)
        if best is None or candidate[:2] > best[:2]:
            best = candidate
    return best[2] if best is not None else None
