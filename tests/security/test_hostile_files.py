"""Files that are made to harm: each gets its verdict, the worker stays as it was."""

from __future__ import annotations

import io
import os
import random
import time
from pathlib import Path

import pytest
from reportlab.lib.pdfencrypt import StandardEncryption
from reportlab.pdfgen.canvas import Canvas

from tests import hostile
from tests.reading import MB, Reader, local_parser
from worker.errors import IngestError, Rejected
from worker.pipeline.parse import sandbox
from worker.pipeline.parse.local import LocalParser

TIGHT = sandbox.Limits(memory_bytes=512 * MB, cpu_seconds=5, seconds=10, output_bytes=MB)


async def verdict(read: Reader, data: bytes, name: str, parser: LocalParser | None = None) -> IngestError:
    with pytest.raises(IngestError) as caught:
        await read(data, name, parser)
    return caught.value


def text_pdf(pages: int = 3, encrypt: StandardEncryption | None = None) -> bytes:
    out = io.BytesIO()
    canvas = Canvas(out, encrypt=encrypt)
    for page in range(1, pages + 1):
        for line in range(30):
            canvas.drawString(72, 720 - 20 * line, f"Letter {page * page}, line {line} says something plain.")
        canvas.showPage()
    canvas.save()
    return out.getvalue()


def resident() -> int:
    """Return this process's resident memory in bytes."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


# What the child cannot do.


async def test_a_pdf_flate_bomb_is_refused_and_the_worker_stays_as_it_was(read: Reader) -> None:
    data = hostile.flate_bomb_pdf()
    assert len(data) < 20_000
    before = resident()
    assert (await verdict(read, data, "bomb.pdf")).code == "parse_out_of_memory"
    assert resident() - before < 20 * MB


async def test_a_docx_zip_bomb_is_refused_before_it_is_unpacked(read: Reader, parser: LocalParser) -> None:
    data = hostile.zip_bomb_docx()
    assert len(data) < 6 * MB
    before, begun = resident(), time.monotonic()
    refused = await verdict(read, data, "bomb.docx", parser)
    assert isinstance(refused, Rejected)
    assert refused.code == "archive_too_large"
    assert resident() - before < 20 * MB
    assert time.monotonic() - begun < 10


async def test_a_zip_bomb_that_lies_about_its_size_is_not_unpacked_either(read: Reader, parser: LocalParser) -> None:
    assert (await verdict(read, hostile.lying_zip_bomb_docx(), "bomb.docx", parser)).code == "file_corrupt"


async def test_a_part_of_moderate_ratio_is_bounded_too(read: Reader, parser: LocalParser) -> None:
    words = random.Random(1).randbytes(4096).hex()
    data = hostile.docx(f"<x>{words * (200 * MB // len(words))}</x>")
    assert (await verdict(read, data, "large.docx", parser)).code == "archive_too_large"


async def test_a_pdf_of_20000_pages_is_refused_by_its_page_count(read: Reader) -> None:
    data = hostile.many_pages_pdf(20_000)
    begun = time.monotonic()
    refused = await verdict(read, data, "long.pdf")
    assert refused.code == "too_many_pages"
    assert "2000" in refused.public_message
    assert time.monotonic() - begun < 10


async def test_billion_laughs_are_refused(read: Reader, parser: LocalParser) -> None:
    assert (await verdict(read, hostile.billion_laughs_docx(), "laughs.docx", parser)).code == "file_corrupt"


async def test_no_file_of_this_machine_is_included_by_an_entity(read: Reader, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("the secret")
    assert (
        await verdict(read, hostile.external_entity_docx(str(tmp_path / "secret")), "x.docx")
    ).code == "file_corrupt"


async def test_deeply_nested_xml_is_refused(read: Reader, parser: LocalParser) -> None:
    assert (await verdict(read, hostile.deep_docx(), "deep.docx", parser)).code == "file_corrupt"


async def test_deeply_nested_html_keeps_what_can_be_read(read: Reader, parser: LocalParser) -> None:
    assert (await read(hostile.deep_html(1000), "deep.html", parser)).text == "deep\n\nbehind"
    assert (await verdict(read, hostile.deep_html(), "deep.html", parser)).code == "file_corrupt"


async def test_a_sheet_that_claims_every_cell_costs_only_those_it_has(read: Reader, parser: LocalParser) -> None:
    parsed = await read(hostile.sparse_xlsx(), "sparse.xlsx", parser)
    assert "1048576" in parsed.text
    assert len(parsed.text) < 200


async def test_a_sheet_that_would_be_millions_of_empty_cells_is_refused(read: Reader) -> None:
    parser = local_parser(max_text_bytes=4 * MB)
    assert (await verdict(read, hostile.diagonal_xlsx(), "diagonal.xlsx", parser)).code == "text_too_large"
    await parser.aclose()


async def test_a_csv_line_of_10_mb_is_text(read: Reader, parser: LocalParser) -> None:
    parsed = await read(b"a,b," + b"x,y," * (10 * MB // 4), "line.csv", parser)
    assert parsed.mime_type == "text/csv"
    assert len(parsed.text) == 4 + 10 * MB


async def test_more_text_than_allowed_is_refused(read: Reader) -> None:
    parser = local_parser(max_text_bytes=MB)
    assert (await verdict(read, b"word " * MB, "long.txt", parser)).code == "text_too_large"
    await parser.aclose()


@pytest.mark.parametrize("make", [hostile.endless_page_tree_pdf, hostile.endless_form_pdf])
async def test_a_pdf_that_holds_itself_ends(read: Reader, parser: LocalParser, make: object) -> None:
    assert callable(make)
    assert (await verdict(read, make(), "loop.pdf", parser)).code in ("file_corrupt", "needs_ocr")


# Files that cannot be read.


async def test_a_pdf_with_a_user_password_is_refused(read: Reader) -> None:
    data = text_pdf(encrypt=StandardEncryption("secret", "owner", strength=128))
    assert (await verdict(read, data, "locked.pdf")).code == "pdf_encrypted"


async def test_a_pdf_with_an_owner_password_only_is_read(read: Reader) -> None:
    parsed = await read(text_pdf(encrypt=StandardEncryption("", "owner", canPrint=0, strength=128)), "owner.pdf")
    assert "Letter 9, line 29 says something plain." in parsed.text


@pytest.mark.parametrize("kept", [0.2, 0.5, 0.9, 0.97])
async def test_a_truncated_pdf_is_corrupt(read: Reader, kept: float) -> None:
    data = text_pdf()
    assert (await verdict(read, data[: int(len(data) * kept)], "cut.pdf")).code == "file_corrupt"


@pytest.mark.parametrize("kept", [0.3, 0.8])
async def test_a_truncated_office_file_is_corrupt(read: Reader, kept: float) -> None:
    data = hostile.docx(hostile.document("<w:p><w:r><w:t>" + "word " * 5000 + "</w:t></w:r></w:p>"))
    assert (await verdict(read, data[: int(len(data) * kept)], "cut.docx")).code == "file_corrupt"


async def test_a_scan_without_text_needs_ocr(read: Reader) -> None:
    out = io.BytesIO()
    canvas = Canvas(out)
    for _ in range(2):
        canvas.rect(100, 100, 300, 300, fill=1)
        canvas.showPage()
    canvas.save()
    assert (await verdict(read, out.getvalue(), "scan.pdf")).code == "needs_ocr"
