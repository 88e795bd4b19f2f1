"""What a file is comes from its bytes; its name only chooses among kinds of text."""

from __future__ import annotations

import random
import time
from pathlib import Path

import pytest

from tests import hostile
from worker.errors import Rejected
from worker.pipeline import filetype
from worker.pipeline.filetype import sniff


def kind(tmp_path: Path, data: bytes, name: str) -> str:
    path = tmp_path / "source"
    path.write_bytes(data)
    return sniff(path, name)


def refusal(tmp_path: Path, data: bytes, name: str) -> Rejected:
    with pytest.raises(Rejected) as caught:
        kind(tmp_path, data, name)
    return caught.value


@pytest.mark.parametrize(
    ("data", "name", "expected"),
    [
        (b"%PDF-1.7\n%\xe2\xe3\xcf\xd3", "a.pdf", filetype.PDF),
        (b"%PDF-1.7\n", "a.txt", filetype.PDF),
        (b"junk before\n%PDF-1.4\n", "a.pdf", filetype.PDF),
        (hostile.docx("<x/>"), "a.pdf", filetype.DOCX),
        (hostile.xlsx("<x/>"), "a", filetype.XLSX),
        (hostile.package({"ppt/presentation.xml": "<x/>"}), "a.zip", filetype.PPTX),
        (b"\xef\xbb\xbf<!-- a --><!-- b -->\n<!DOCTYPE HTML><p>x", "a.txt", filetype.HTML),
        (b"<?xml version='1.0'?><html xmlns='x'>", "a.xml", filetype.HTML),
        (b"<h1>fragment</h1>", "a.html", filetype.HTML),
        (b"no tags at all", "a.html", filetype.TEXT),
        (b"# Title", "a.MD", filetype.MARKDOWN),
        (b"# Title", "a.txt", filetype.TEXT),
        (b"a,b", "tenant/x y'\"/../a.csv", filetype.CSV),
        (b"a\tb", "a.tsv", filetype.TSV),
        (b"print('x')", "a.py", filetype.TEXT),
        ("wide text".encode("utf-16"), "a.txt", filetype.TEXT),
        ("breit und ohne Marke".encode("utf-16-le"), "a.md", filetype.MARKDOWN),
        ("Grüße aus Köln".encode("cp1252"), "a.txt", filetype.TEXT),
        ("日本語のテキスト".encode() * 1000, "a.txt", filetype.TEXT),
        (b"one\x00stray NUL", "a.txt", filetype.TEXT),
    ],
)
def test_the_bytes_say_what_a_file_is(data: bytes, name: str, expected: str, tmp_path: Path) -> None:
    assert kind(tmp_path, data, name) == expected


def test_html_named_pdf_is_html(tmp_path: Path) -> None:
    assert kind(tmp_path, b"<html><body>Please log in. %PDF-1.7</body></html>", "invoice.pdf") == filetype.HTML


@pytest.mark.parametrize(
    ("data", "name", "code", "advice"),
    [
        (b"", "a.pdf", "file_empty", "Upload it again"),
        (random.Random(1).randbytes(5000), "a.pdf", "file_unsupported", "PDF"),
        (random.Random(2).randbytes(64), "a.txt", "file_unsupported", "PDF"),
        (b"\x89PNG\r\n\x1a\n" + b"\0" * 50, "a.png", "file_unsupported", "OCR"),
        (b"{\\rtf1 hello}", "a.doc", "file_unsupported", ".docx"),
        (hostile.ole("WordDocument"), "a.doc", "file_unsupported", ".docx"),
        (hostile.ole("EncryptionInfo", "EncryptedPackage"), "a.docx", "file_encrypted", "Remove the password"),
        (hostile.package({"a.txt": "x"}), "a.zip", "file_unsupported", "Unpack"),
        (hostile.docx("<x/>" * 1000)[:-30], "a.docx", "file_corrupt", "save it again"),
        (b"PK\x05\x06" + b"\xff" * 18, "a.zip", "file_unsupported", "Unpack"),
        (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + b"\xff" * 600, "a.doc", "file_unsupported", ".docx"),
    ],
)
def test_what_cannot_be_read_is_refused_with_advice(
    data: bytes, name: str, code: str, advice: str, tmp_path: Path
) -> None:
    refused = refusal(tmp_path, data, name)
    assert refused.code == code
    assert advice in refused.public_message


@pytest.mark.parametrize("data", [b"<!-- -->" * 1000, b"<?xml >" * 1000, b"<!--" * 2000, b" " * 8000, b"<p" * 4000])
def test_no_text_makes_sniffing_slow(data: bytes, tmp_path: Path) -> None:
    begun = time.process_time()
    kind(tmp_path, data, "a.html")
    assert time.process_time() - begun < 1
