"""Markdown and plain text: as they are, once cleaned; form feeds part the pages of plain text."""

from __future__ import annotations

import re
from typing import BinaryIO

from worker.pipeline.filetype import MARKDOWN
from worker.pipeline.parse.draft import Draft
from worker.pipeline.text import decode

ERRORS: tuple[type[Exception], ...] = ()
_TITLE = re.compile(r"^ {0,3}#\s+(\S[^\n]{0,299})", re.MULTILINE)


def parse(file: BinaryIO, draft: Draft) -> None:
    """Fill the draft from text in any encoding."""
    text = decode(file.read())
    if draft.mime_type == MARKDOWN:
        draft.add_page(text)
        title = _TITLE.search(draft.pages[0])
        draft.offer_title(title.group(1).rstrip("# \t") if title else None)
        return
    # Printed text (RFCs, reports, pdftotext) ends its pages with form feeds.
    count = text.count("\f") + 1
    draft.check_pages(count)
    pages = text.split("\f") if count > 1 else [text]
    if len(pages) > 1 and not pages[-1].strip():
        pages.pop()
    for page in pages:
        draft.add_page(page)
