"""What a format writes its pages into, inside the child: it counts as they come, so nothing outgrows its limit."""

from __future__ import annotations

from collections.abc import Sequence

from worker.errors import Rejected
from worker.pipeline.text import clean

_MAX_TITLE = 300
_MAX_NOTES = 20


class Draft:
    """The pages of one document as they are read; raises Rejected as soon as a limit is passed."""

    def __init__(self, mime_type: str, *, max_pages: int, max_text_bytes: int) -> None:
        self.mime_type = mime_type
        self.max_pages = max_pages
        self.max_text_bytes = max_text_bytes
        self.pages: list[str] = []
        self.notes: list[str] = []
        self._title: str | None = None
        self._bytes = 0
        self._expected = 0

    def check_pages(self, count: int) -> None:
        """Refuse a document by the number of pages it declares, before any is read."""
        if count > self.max_pages:
            raise Rejected(
                "too_many_pages",
                f"The document has more than the {self.max_pages} pages that one may have. "
                "Split it and upload the parts.",
                detail=f"{count} pages or more",
            )

    def expect(self, size: int) -> None:
        """Count `size` more code points of a page that is being written: refuses endless ones early."""
        self._expected += size
        if self._bytes + self._expected > self.max_text_bytes:
            raise self._too_much_text()

    def add_page(self, markdown: str) -> None:
        """Clean and keep the next page; blank pages count too, so that numbers stay true."""
        self.check_pages(len(self.pages) + 1)
        page = clean(markdown).strip("\n")
        self._bytes += len(page.encode())
        self._expected = 0
        if self._bytes > self.max_text_bytes:
            raise self._too_much_text()
        self.pages.append(page)

    @property
    def title(self) -> str | None:
        """Return the first title that was offered and holds something."""
        return self._title

    def offer_title(self, title: str | None) -> None:
        """Take this as the title unless there is one already."""
        title = " ".join(clean(title or "").split())[:_MAX_TITLE].rstrip()
        if title and self._title is None:
            self._title = title

    def note(self, text: str) -> None:
        """Say something about the parse that is no reason to refuse it."""
        if len(self.notes) < _MAX_NOTES:
            self.notes.append(text)

    @property
    def has_text(self) -> bool:
        """Tell whether any page holds more than white space."""
        return any(not page.isspace() for page in self.pages if page)

    def note_blank_pages(self) -> None:
        """Note the pages without text, as ranges."""
        blank = [number for number, page in enumerate(self.pages, 1) if not page or page.isspace()]
        if not blank:
            return
        self.note(f"Pages without text: {ranges(blank)}")

    def _too_much_text(self) -> Rejected:
        return Rejected(
            "text_too_large",
            f"The document holds more than the {self.max_text_bytes / 1_048_576:.0f} MB of text that one may have. "
            "Split it and upload the parts.",
        )


def ranges(numbers: Sequence[int]) -> str:
    """Write growing page numbers as ranges, twenty of them at most."""
    found: list[list[int]] = []
    for number in numbers:
        if found and number == found[-1][1] + 1:
            found[-1][1] = number
        else:
            found.append([number, number])
    named = ", ".join(str(a) if a == b else f"{a}–{b}" for a, b in found[:20])
    return f"{named}{' and more' if len(found) > 20 else ''}"


def needs_ocr() -> Rejected:
    """Return the verdict for pages that are pictures."""
    return Rejected(
        "needs_ocr",
        "No page holds text that can be read: the document is probably a scan or made of pictures. "
        "Run text recognition (OCR) over it and upload the result.",
    )


def corrupt(detail: str) -> Rejected:
    """Return the verdict for a file that cannot be opened; `detail` is for operators."""
    return Rejected(
        "file_corrupt",
        "The file is damaged or incomplete and cannot be opened. "
        "Open it in its program, save it again and upload that.",
        detail=detail,
    )


def too_expanded(detail: str) -> Rejected:
    """Return the verdict for an archive whose contents are far larger than it is."""
    return Rejected(
        "archive_too_large",
        "The file unpacks to far more than one document may hold. Split it, or remove what is large, and upload again.",
        detail=detail,
    )
