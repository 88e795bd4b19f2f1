"""PDF: PDFium says which characters stand where; pdf_layout.py makes Markdown of them, page by page."""

from __future__ import annotations

import ctypes
import re
from typing import Any, BinaryIO

# Not pypdfium2: its helpers cost each document 20 ms of imports.
import pypdfium2_raw as pdfium  # type: ignore[import-untyped]

from worker.errors import Rejected
from worker.pipeline.parse.draft import Draft, corrupt, needs_ocr
from worker.pipeline.parse.formats import pdf_layout
from worker.pipeline.parse.formats.pdf_lines import Segment

ERRORS: tuple[type[Exception], ...] = ()

_LINE_END = re.compile("\r\n?|\n|\ufffe")
_WORD = re.compile(r"[^\s\ufffe\x00]+")
_BOLD = re.compile(rb"bold|black|heavy|semib|demi", re.IGNORECASE)
_NO_TITLE = re.compile(
    r"^(?:untitled|microsoft word|powerpoint|document\d*$|slide ?\d)|\.\w{2,5}$|^\W*$", re.IGNORECASE
)
_HYPHEN = "\ufffe"  # PDFium writes this for a hyphen at a line's end, and no line end
_GAP = 1.0
"""A gap wider than this many font sizes parts columns or cells; justified text stays below it."""


def parse(file: BinaryIO, draft: Draft) -> None:
    """Fill the draft from a PDF; a password that only forbids printing or copying is no obstacle."""
    data = file.read()
    pdfium.FPDF_InitLibrary()
    document = pdfium.FPDF_LoadMemDocument64(data, len(data), None)
    if not document:
        raise _refusal(pdfium.FPDF_GetLastError())
    count = pdfium.FPDF_GetPageCount(document)
    draft.check_pages(count)
    if count < 1:
        raise corrupt("a PDF without pages")
    pages: list[list[Segment]] = []
    unreadable = []
    for index in range(count):
        page = pdfium.FPDF_LoadPage(document, index)
        if not page:
            unreadable.append(index + 1)
            pages.append([])
            continue
        segments = _segments(page)
        draft.expect(sum(len(segment.text) for segment in segments))
        pages.append(segments)
        pdfium.FPDF_ClosePage(page)
    if len(unreadable) == count:
        raise corrupt("no page of the PDF can be loaded")
    if not any(pages):
        raise needs_ocr()
    if unreadable:
        draft.note(f"Pages that could not be read: {', '.join(map(str, unreadable[:20]))}")
    title = _meta_title(document)
    draft.offer_title(None if _NO_TITLE.search(title) else title)
    for markdown in pdf_layout.pages(pages, draft.offer_title):
        draft.add_page(markdown)


def _refusal(error: int) -> Rejected:
    if error in (pdfium.FPDF_ERR_PASSWORD, pdfium.FPDF_ERR_SECURITY):
        return Rejected(
            "pdf_encrypted",
            "The PDF is protected by a password. Save a copy without the password and upload that.",
        )
    return corrupt(f"PDFium error {error}")


def _meta_title(document: Any) -> str:
    size = pdfium.FPDF_GetMetaText(document, b"Title", None, 0)
    if not 2 < size < 4096:
        return ""
    buffer = ctypes.create_string_buffer(size)
    pdfium.FPDF_GetMetaText(document, b"Title", buffer, size)
    return buffer.raw[: size - 2].decode("utf-16-le", "replace").strip("\0 ")


def _segments(page: Any) -> list[Segment]:
    textpage = pdfium.FPDFText_LoadPage(page)
    if not textpage:
        return []
    try:
        return _Reader(page, textpage).segments()
    finally:
        pdfium.FPDFText_ClosePage(textpage)


class _Reader:
    """One page's text, asked for word by word: five calls a word where five a character took 5 times as long."""

    def __init__(self, page: Any, textpage: Any) -> None:
        self._textpage = textpage
        self._rotation = pdfium.FPDFPage_GetRotation(page)
        self._x = ctypes.c_double()
        self._y = ctypes.c_double()
        self._box = pdfium.FS_RECTF()
        self._matrix = pdfium.FS_MATRIX()
        self._flags = ctypes.c_int()
        self._name = ctypes.create_string_buffer(256)
        count = pdfium.FPDFText_CountChars(textpage)
        if count <= 0:
            self._text, self._shifted = "", False
            return
        buffer = (ctypes.c_ushort * (count + 1))()
        written = pdfium.FPDFText_GetText(textpage, 0, count, buffer) - 1
        # One character a UTF-16 unit, so that indexes stay PDFium's; clean() joins the pairs.
        self._text = "".join(map(chr, buffer[:written]))
        self._shifted = written != count

    def segments(self) -> list[Segment]:
        """Return the page's text in the order of its content, cut at line ends and at wide gaps."""
        found: list[Segment] = []
        start = 0
        for end in [*_LINE_END.finditer(self._text), None]:
            stop = end.start() if end is not None else len(self._text)
            hyphen = end is not None and end.group() == _HYPHEN
            self._line(start, stop, hyphen, found)
            if end is not None:
                start = end.end()
        return found

    def _line(self, start: int, stop: int, hyphen: bool, found: list[Segment]) -> None:
        begun = len(found)
        scale = 0.0
        for match in _WORD.finditer(self._text, start, stop):
            first, last = self._index(match.start()), self._index(match.end() - 1)
            if not scale:
                scale = self._scale(first)
            size = max(pdfium.FPDFText_GetFontSize(self._textpage, first) * scale, 0.1)
            x0, y = self._origin(first)
            x1 = self._right(last)
            x0, x1 = min(x0, x1), max(x0, x1)
            word = match.group()
            current = found[-1] if len(found) > begun else None
            if current is None or x0 - current.x1 > _GAP * max(size, current.size) or abs(y - current.y) > size:
                found.append(Segment(word, x0, x1, y, size, self._is_bold(first), 1))
            else:
                # The size of a line is that of its longest word: footnote marks and drop caps are not.
                if len(word) > current.longest:
                    current.size, current.longest = size, len(word)
                current.text += f" {word}"
                current.x0, current.x1 = min(current.x0, x0), max(current.x1, x1)
                current.words += 1
        if len(found) > begun:
            final = found[-1]
            if final.words > 1 and final.bold:
                final.bold = self._is_bold(self._index(stop - 1 if hyphen else self._last_word(start, stop)))
            if hyphen:
                final.text += _HYPHEN

    def _last_word(self, start: int, stop: int) -> int:
        while stop - 1 > start and self._text[stop - 1].isspace():
            stop -= 1
        return stop - 1

    def _index(self, at: int) -> int:
        return int(pdfium.FPDFText_GetCharIndexFromTextIndex(self._textpage, at)) if self._shifted else at

    def _origin(self, index: int) -> tuple[float, float]:
        pdfium.FPDFText_GetCharOrigin(self._textpage, index, self._x, self._y)
        return self._upright(self._x.value, self._y.value)

    def _right(self, index: int) -> float:
        pdfium.FPDFText_GetLooseCharBox(self._textpage, index, self._box)
        box = self._box
        return max(self._upright(box.right, box.top)[0], self._upright(box.left, box.bottom)[0])

    def _upright(self, x: float, y: float) -> tuple[float, float]:
        """Turn a point as the page is turned for readers; where the origin lies does not matter."""
        match self._rotation:
            case 1:
                return y, -x
            case 2:
                return -x, -y
            case 3:
                return -y, x
        return x, y

    def _scale(self, index: int) -> float:
        """Return what the text matrix makes of a font size: many producers write size 1 and scale."""
        if not pdfium.FPDFText_GetMatrix(self._textpage, index, self._matrix):
            return 1.0
        return float((self._matrix.c**2 + self._matrix.d**2) ** 0.5) or 1.0

    def _is_bold(self, index: int) -> bool:
        length = pdfium.FPDFText_GetFontInfo(self._textpage, index, self._name, 256, self._flags)
        return bool(0 < length <= 256 and _BOLD.search(self._name.raw[:length]))
