"""Draws a paper as PDF, in one column or in several."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

from reportlab import platypus
from reportlab.lib import colors
from reportlab.lib.pagesizes import A4
from reportlab.lib.styles import ParagraphStyle, getSampleStyleSheet
from reportlab.lib.units import mm

from local.samples.paper import Block, Heading, Items, PageBreak, Paragraph, Table

_STYLES = getSampleStyleSheet()
_BODY = ParagraphStyle("body", parent=_STYLES["BodyText"], fontSize=10.5, leading=15, spaceAfter=8)
_GRID = platypus.TableStyle(
    [
        ("GRID", (0, 0), (-1, -1), 0.5, colors.grey),
        ("FONTNAME", (0, 0), (-1, 0), "Helvetica-Bold"),
        ("BACKGROUND", (0, 0), (-1, 0), colors.whitesmoke),
    ]
)
_MARGIN = 22 * mm
_GUTTER = 8 * mm


def pdf(blocks: Sequence[Block], title: str, *, columns: int = 1) -> bytes:
    """Return the PDF; text flows down each column before the next."""
    buffer = io.BytesIO()
    # invariant: no date and no random id in the file.
    template = platypus.BaseDocTemplate(buffer, pagesize=A4, invariant=1, title=title, author="Harbour Board")
    width, height = A4
    column = (width - 2 * _MARGIN - (columns - 1) * _GUTTER) / columns
    frames = [
        platypus.Frame(_MARGIN + index * (column + _GUTTER), _MARGIN, column, height - 2 * _MARGIN)
        for index in range(columns)
    ]
    template.addPageTemplates([platypus.PageTemplate(id="page", frames=frames)])
    template.build([flowable for block in blocks for flowable in _drawn(block)])
    return buffer.getvalue()


def _drawn(block: Block) -> list[Any]:
    match block:
        case Heading(level, text):
            return [platypus.Paragraph(text, _STYLES[f"Heading{level}"])]
        case Paragraph(text):
            return [platypus.Paragraph(text, _BODY)]
        case Items(texts):
            return [platypus.Paragraph(text, _BODY, bulletText="•") for text in texts]
        case Table(rows):
            return [platypus.Table([list(row) for row in rows], hAlign="LEFT", spaceAfter=10, style=_GRID)]
        case PageBreak():
            # By name, so that a break in the first of two columns ends the page and not the column.
            return [platypus.PageBreak("page")]
