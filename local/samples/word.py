"""Writes a paper as a Word document."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Sequence

import docx
from docx.enum.text import WD_BREAK

from local.samples.paper import Block, Heading, Items, PageBreak, Paragraph, Table


def word(blocks: Sequence[Block]) -> bytes:
    """Return the DOCX; level 1 becomes its title."""
    document = docx.Document()
    for block in blocks:
        match block:
            case Heading(level, text):
                document.add_heading(text, level - 1)
            case Paragraph(text):
                document.add_paragraph(text)
            case Items(texts):
                for text in texts:
                    document.add_paragraph(text, style="List Bullet")
            case Table(rows):
                table = document.add_table(rows=len(rows), cols=len(rows[0]))
                for row, texts in zip(table.rows, rows, strict=True):
                    for cell, text in zip(row.cells, texts, strict=True):
                        cell.text = text
            case PageBreak():
                document.add_paragraph().add_run().add_break(WD_BREAK.PAGE)
    buffer = io.BytesIO()
    document.save(buffer)
    return _undated(buffer.getvalue())


def _undated(archive: bytes) -> bytes:
    """Give all members of a ZIP one date: they carry the time of their making."""
    fixed = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(archive)) as old, zipfile.ZipFile(fixed, "w", zipfile.ZIP_DEFLATED) as new:
        for member in old.infolist():
            entry = zipfile.ZipInfo(member.filename, (2026, 1, 1, 0, 0, 0))
            new.writestr(entry, old.read(member), zipfile.ZIP_DEFLATED)
    return fixed.getvalue()
