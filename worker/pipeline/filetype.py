"""What a file is, from its own bytes: names and declared types only choose among kinds of text.

Nothing is unpacked here and at most some 1.1 MiB are read: the worker itself looks at untrusted bytes.
"""

from __future__ import annotations

import posixpath
import re
import struct
from typing import TYPE_CHECKING, BinaryIO

from worker.errors import Rejected
from worker.pipeline.text import decode, wide_order

if TYPE_CHECKING:
    from pathlib import Path  # the child, which imports this for the types' names, starts 8 ms sooner without

PDF = "application/pdf"
DOCX = "application/vnd.openxmlformats-officedocument.wordprocessingml.document"
PPTX = "application/vnd.openxmlformats-officedocument.presentationml.presentation"
XLSX = "application/vnd.openxmlformats-officedocument.spreadsheetml.sheet"
HTML = "text/html"
MARKDOWN = "text/markdown"
CSV = "text/csv"
TSV = "text/tab-separated-values"
TEXT = "text/plain"

_HEAD = 8192
_MAX_DIRECTORY = 1024 * 1024
_MAIN_PARTS = {b"word/document.xml": DOCX, b"ppt/presentation.xml": PPTX, b"xl/workbook.xml": XLSX}
_BY_SUFFIX = {
    ".md": MARKDOWN, ".markdown": MARKDOWN, ".mdown": MARKDOWN, ".mkd": MARKDOWN,
    ".csv": CSV, ".tsv": TSV, ".tab": TSV, ".htm": HTML, ".html": HTML, ".xhtml": HTML,
}  # fmt: skip
# Atomic groups: comments could otherwise be parted in exponentially many ways.
_HTML_START = re.compile(
    r"\s*+(?:<\?xml[^>]*+>\s*+)?(?>(?>(?s:<!--.*?-->))\s*+)*+<(?:!doctype\s+html|html|head|body)\b", re.IGNORECASE
)
_TAG = re.compile(r"<(?:p|div|h[1-6]|table|ul|ol|span|br|a|title|meta|main|article|section)\b[^>]*>", re.IGNORECASE)
_OLE = b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1"
_KNOWN = (
    (b"{\\rtf", "an RTF document", "Save it as .docx"),
    (b"\x89PNG", "a picture", "Make a PDF with text recognition (OCR) of it"),
    (b"\xff\xd8\xff", "a picture", "Make a PDF with text recognition (OCR) of it"),
    (b"GIF8", "a picture", "Make a PDF with text recognition (OCR) of it"),
    (b"II*\0", "a picture", "Make a PDF with text recognition (OCR) of it"),
    (b"MM\0*", "a picture", "Make a PDF with text recognition (OCR) of it"),
    (b"%!PS", "a PostScript file", "Save it as PDF"),
    (b"\x1f\x8b", "a packed archive", "Unpack it"),
    (b"7z\xbc\xaf", "a packed archive", "Unpack it"),
    (b"Rar!", "a packed archive", "Unpack it"),
)


def sniff(path: Path, name: str) -> str:
    """Return the MIME type of the bytes in `path`; `name` is a hint for text formats only.

    HTML is HTML whatever its name says. Raises Rejected: `file_empty`, `file_encrypted`,
    `file_corrupt` or `file_unsupported`.
    """
    with path.open("rb") as file:
        head = file.read(_HEAD)
        if not head:
            raise Rejected("file_empty", "The file has no content (0 bytes). Upload it again.")
        if head.startswith(b"%PDF-"):
            return PDF
        if head.startswith((b"PK\x03\x04", b"PK\x05\x06")):
            return _sniff_zip(file)
        if head.startswith(_OLE):
            raise _refuse_ole(file, head)
    for magic, what, advice in _KNOWN:
        if head.startswith(magic):
            raise _unsupported(what, advice)
    kind = _sniff_text(head, name)
    # Readers accept a PDF whose header stands within the first kilobyte.
    if kind != HTML and b"%PDF-" in head[:1024]:
        return PDF
    if kind is None:
        raise _unsupported("not a kind of file that can be read", "Save it as PDF or .docx")
    return kind


def _sniff_text(head: bytes, name: str) -> str | None:
    text = decode(head)
    if wide_order(head) is None and not head.startswith((b"\xff\xfe", b"\xfe\xff")):
        # Text may hold a stray control or NUL (they are dropped), binary files are full of them.
        controls = sum(1 for char in text if char < " " and char not in "\t\n\r\f\x0b\x1b")
        if controls > len(text) / 50 + 2:
            return None
        binary = sum(1 for byte in head if 0x80 <= byte < 0xA0)
        if text.count("\ufffd") > len(text) / 10 or (binary > len(head) / 4 and not _is_utf8(head)):
            return None
    if _HTML_START.match(text.removeprefix("\ufeff")):
        return HTML
    kind = _BY_SUFFIX.get(posixpath.splitext(name)[1].lower(), TEXT)
    if kind == HTML and not _TAG.search(text):
        return TEXT
    return kind


def _is_utf8(head: bytes) -> bool:
    try:
        head.decode("utf_8")
    except UnicodeDecodeError as exc:
        return exc.start > len(head) - 4  # only the last character is cut
    return True


def _sniff_zip(file: BinaryIO) -> str:
    """Look for the main part in the central directory: where the first entries lie says nothing."""
    size = file.seek(0, 2)
    file.seek(max(0, size - 65_557))
    tail = file.read(65_557)
    end = tail.rfind(b"PK\x05\x06")
    if end < 0 or len(tail) < end + 22:
        raise Rejected(
            "file_corrupt",
            "The file is damaged or incomplete and cannot be opened. "
            "Open it in its program, save it again and upload that.",
            detail="zip without its central directory",
        )
    length, offset = struct.unpack_from("<II", tail, end + 12)
    file.seek(min(offset, size))
    directory = file.read(min(length, _MAX_DIRECTORY))
    at = 0
    while len(directory) >= at + 46 and directory[at : at + 4] == b"PK\x01\x02":
        name_length, extra, comment = struct.unpack_from("<HHH", directory, at + 28)
        found = _MAIN_PARTS.get(directory[at + 46 : at + 46 + name_length])
        if found is not None:
            return found
        at += 46 + name_length + extra + comment
    raise _unsupported("a packed archive or an office format that is not read", "Unpack it, or save it as .docx")


def _refuse_ole(file: BinaryIO, head: bytes) -> Rejected:
    """Tell an encrypted office file from one of the old formats: both are OLE containers."""
    shift = int.from_bytes(head[30:32], "little")
    first = int.from_bytes(head[48:52], "little")
    directory = b""
    if 7 <= shift <= 16:
        file.seek((first + 1) << shift)
        directory = file.read(4096)
    if "EncryptedPackage".encode("utf-16-le") in directory:
        return Rejected(
            "file_encrypted",
            "The file is protected by a password. Remove the password in its program and upload it again.",
        )
    return _unsupported("in an old office format (.doc, .xls, .ppt)", "Save it as .docx, .xlsx, .pptx or PDF")


def _unsupported(what: str, advice: str) -> Rejected:
    return Rejected(
        "file_unsupported",
        f"The file is {what}. {advice} and upload that. PDF, DOCX, PPTX, XLSX, HTML, Markdown, text and CSV are read.",
    )
