"""PDFs as Markdown: pages, headings, reading order, tables, hyphens and running heads."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import pytest
from reportlab.lib.pagesizes import A4
from reportlab.lib.styles import getSampleStyleSheet
from reportlab.pdfgen.canvas import Canvas
from reportlab.platypus import BaseDocTemplate, Frame, PageTemplate, Paragraph, SimpleDocTemplate, Spacer, Table

from tests import hostile
from tests.reading import Reader

WORDS = (
    "The lease of a job is bound to the clock of the database and is renewed by its worker every fifteen seconds "
    "until the work is done or the worker is gone, and then another worker takes the job over with a higher number. "
)


@pytest.fixture
def read(tmp_path: Path) -> Reader:
    """Read bytes as the worker does."""
    return Reader(tmp_path)


def drawn(draw: Callable[[Canvas], None]) -> bytes:
    out = io.BytesIO()
    canvas = Canvas(out, pagesize=A4)
    draw(canvas)
    canvas.save()
    return out.getvalue()


def wrapped(text: str, width: int) -> list[str]:
    lines = [""]
    for word in text.split():
        if len(lines[-1]) + len(word) > width:
            lines.append("")
        lines[-1] = f"{lines[-1]} {word}".strip()
    return lines


async def test_headings_by_size_paragraphs_unwrapped_and_rows_kept(read: Reader) -> None:
    out = io.BytesIO()
    styles = getSampleStyleSheet()
    SimpleDocTemplate(out, title="Leases explained").build(
        [
            Paragraph("Leases", styles["Title"]),
            Paragraph("How they begin", styles["Heading1"]),
            Paragraph(WORDS * 2, styles["BodyText"]),
            Paragraph("Renewal", styles["Heading2"]),
            Paragraph(WORDS, styles["BodyText"]),
            Table([["Region", "Jobs", "Share"], ["North", "1,200", "12%"], ["South", "900", "9%"]], colWidths=120),
            Spacer(1, 20),
            Paragraph("How they end", styles["Heading1"]),
            Paragraph(WORDS, styles["BodyText"]),
        ]
    )
    parsed = await read(out.getvalue(), "leases.pdf")
    assert parsed.title == "Leases explained"
    assert parsed.text == "\n\n".join(
        [
            "# Leases", "# How they begin", (WORDS * 2).strip(), "## Renewal", WORDS.strip(),
            "Region Jobs Share\nNorth 1,200 12%\nSouth 900 9%", "# How they end", WORDS.strip(),
        ]
    )  # fmt: skip


async def test_two_columns_written_one_after_the_other_are_read_so(read: Reader) -> None:
    out = io.BytesIO()
    frames = [Frame(50, 50, 235, 300), Frame(310, 50, 235, 300)]
    document = BaseDocTemplate(out, pagesize=A4)
    document.addPageTemplates(PageTemplate(frames=frames))
    style = getSampleStyleSheet()["BodyText"]
    numbered = [Paragraph(f"Paragraph number {n}. {WORDS}", style) for n in range(1, 9)]
    document.build(numbered)
    text = (await read(out.getvalue(), "columns.pdf")).text
    found = [text.index(f"Paragraph number {n}.") for n in range(1, 9)]
    assert found == sorted(found)
    assert text.replace("\n\n", " ").count(WORDS.strip()) == 8


@pytest.mark.parametrize("shift", [0, 5], ids=["same baselines", "other baselines"])
async def test_two_columns_written_line_by_line_are_read_one_after_the_other(read: Reader, shift: int) -> None:
    left, right = wrapped("Left begins. " + WORDS * 2, 45), wrapped("Right begins. " + WORDS * 2, 45)

    def draw(canvas: Canvas) -> None:
        canvas.setFont("Helvetica", 18)
        canvas.drawString(50, 780, "A headline across both of the columns of this page")
        canvas.setFont("Helvetica", 10)
        for number, (a, b) in enumerate(zip(left, right, strict=False)):
            canvas.drawString(50, 740 - 14 * number, a)
            canvas.drawString(310, 740 - shift - 14 * number, b)
        canvas.drawString(
            50, 100, "A line below both columns that is as wide as the page itself, from edge to edge of it all."
        )

    text = (await read(drawn(draw), "columns.pdf")).text
    assert text.startswith("# A headline across both of the columns of this page\n\nLeft begins. The lease")
    assert text.index("Left begins.") < text.index("Right begins.") < text.index("A line below")
    assert text.replace("\n", " ").count(WORDS.strip()) == 4


async def test_a_table_of_short_cells_is_not_taken_for_columns(read: Reader) -> None:
    def draw(canvas: Canvas) -> None:
        for number in range(12):
            for column, cell in enumerate((f"Item {number}", f"{number * 7} pcs", f"{number} EUR")):
                canvas.drawString(60 + 170 * column, 700 - 16 * number, cell)

    lines = (await read(drawn(draw), "table.pdf")).text.split("\n")
    assert lines == [f"Item {n} {n * 7} pcs {n} EUR" for n in range(12)]


async def test_words_parted_at_line_ends_are_joined_where_that_is_safe(read: Reader) -> None:
    def draw(canvas: Canvas) -> None:
        lines = [
            "This is a paragraph about embeddings that are stored beside the publi-",
            "cation of chunks, with a state-of-the-art index and a self-contained re-",
            "conciliation. A self-",
            "contained worker needs for its next run the sheets on the pages 10-",
            "12 and nothing else.",
        ]
        for number, line in enumerate(lines):
            canvas.drawString(60, 700 - 14 * number, line)

    text = (await read(drawn(draw), "hyphens.pdf")).text
    assert "the publication of chunks" in text
    assert "a self-contained reconciliation." in text
    assert "A self-contained worker" in text
    assert "on the pages 10-12 and" in text


async def test_running_heads_and_page_numbers_go_and_content_that_repeats_stays(read: Reader) -> None:
    def draw(canvas: Canvas) -> None:
        for page in range(1, 7):
            canvas.setFont("Helvetica", 9)
            canvas.drawString(60, 800, "Annual report of the company")
            canvas.drawString(300, 30, f"Page {page} of 6")
            canvas.setFont("Helvetica", 11)
            canvas.drawString(60, 760, f"What happened in part {page * page} of the year is told here.")
            for row in range(5):
                canvas.drawString(60, 200 - 14 * row, f"{page * 31 % 17} {page * row} {(page + row) ** 2}")
            canvas.showPage()

    parsed = await read(drawn(draw), "report.pdf")
    assert parsed.text.count("Annual report of the company") == 1
    assert "Page" not in parsed.text
    for page in range(1, 7):
        markdown = parsed.pages[page - 1].markdown
        assert f"What happened in part {page * page} of the year is told here." in markdown
        assert f"{page * 31 % 17} {page * 4} {(page + 4) ** 2}" in markdown


async def test_a_table_of_contents_gives_no_headings(read: Reader) -> None:
    def draw(canvas: Canvas) -> None:
        canvas.setFont("Helvetica-Bold", 14)
        canvas.drawString(60, 750, "Contents of this book")
        for number in range(1, 5):
            canvas.drawString(60, 750 - 30 * number, f"Part {number} of the book {'.' * 40} {number * 10}")
        canvas.setFont("Helvetica", 10)
        for number, line in enumerate(wrapped(WORDS * 3, 80)):
            canvas.drawString(60, 500 - 13 * number, line)

    lines = (await read(drawn(draw), "toc.pdf")).text.split("\n")
    assert [line for line in lines if line.startswith("#")] == ["# Contents of this book"]
    assert "Part 2 of the book … 20" in lines


async def test_bold_lines_of_the_bodys_size_are_headings_where_they_stand_alone(read: Reader) -> None:
    def draw(canvas: Canvas) -> None:
        y = 780
        for name in ("Scope", "Term"):
            canvas.setFont("Helvetica-Bold", 10)
            canvas.drawString(60, y, f"{name} of the agreement")
            canvas.setFont("Helvetica", 10)
            for line in wrapped(WORDS * 2, 80):
                y -= 13
                canvas.drawString(60, y, line)
            y -= 26

    text = (await read(drawn(draw), "bold.pdf")).text
    assert text == "\n\n".join(
        ["# Scope of the agreement", (WORDS * 2).strip(), "# Term of the agreement", (WORDS * 2).strip()]
    )


async def test_blank_pages_keep_the_numbers_true(read: Reader) -> None:
    def draw(canvas: Canvas) -> None:
        for page in range(1, 8):
            if page in (1, 3, 7):
                canvas.drawString(60, 700, f"This is page {page * 111}.")
            canvas.showPage()

    parsed = await read(drawn(draw), "gaps.pdf")
    assert [page.number for page in parsed.pages] == list(range(1, 8))
    assert [page.markdown for page in parsed.pages] == [
        "This is page 111.", "", "This is page 333.", "", "", "", "This is page 777.",
    ]  # fmt: skip
    assert parsed.notes == ("Pages without text: 2, 4–6",)


@pytest.mark.parametrize("turn", [90, 180, 270])
async def test_turned_pages_are_read_as_people_see_them(read: Reader, turn: int) -> None:
    lines = wrapped(WORDS, 40)

    def draw(canvas: Canvas) -> None:
        canvas.setPageRotation(turn)
        width, height = A4
        canvas.translate(*{90: (width, 0), 180: (width, height), 270: (0, height)}[turn])
        canvas.rotate({90: 90, 180: 180, 270: -90}[turn])
        for number, line in enumerate(lines):
            canvas.drawString(60, 500 - 14 * number, line)

    assert (await read(drawn(draw), "turned.pdf")).text == WORDS.strip()


async def test_a_title_that_is_a_file_name_gives_way_to_the_first_heading(read: Reader) -> None:
    def draw(canvas: Canvas) -> None:
        canvas.setTitle("Microsoft Word - final_v2.docx")
        canvas.setFont("Helvetica", 20)
        canvas.drawString(60, 750, "The real title")
        canvas.setFont("Helvetica", 10)
        canvas.drawString(60, 700, WORDS[:100])

    assert (await read(drawn(draw), "a.pdf")).title == "The real title"


async def test_text_that_postgres_refuses_does_not_leave_a_pdf(read: Reader) -> None:
    """A ToUnicode map may say anything: here that a letter is a NUL, a lone surrogate, a right-to-left override."""
    parsed = await read(_lying_font_pdf(), "lies.pdf")
    assert "\0" not in parsed.text
    parsed.text.encode()
    assert not set(parsed.text) & set("\u202e\ufffe\r")


def _lying_font_pdf() -> bytes:
    cmap = b"""/CIDInit /ProcSet findresource begin 12 dict begin begincmap
1 begincodespacerange <00> <ff> endcodespacerange
4 beginbfchar <41> <0000> <42> <d800> <43> <202e> <44> <0058> endbfchar endcmap end end"""
    content = b"BT /F 12 Tf 72 700 Td (DDDADBDCD DD) Tj ET"
    return hostile.pdf(
        [
            b"<< /Type /Catalog /Pages 2 0 R >>",
            b"<< /Type /Pages /Kids [3 0 R] /Count 1 >>",
            b"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 612 792] /Contents 4 0 R "
            b"/Resources << /Font << /F 5 0 R >> >> >>",
            b"<< /Length %d >>\nstream\n%s\nendstream" % (len(content), content),
            b"<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica /ToUnicode 6 0 R >>",
            b"<< /Length %d >>\nstream\n%s\nendstream" % (len(cmap), cmap),
        ]
    )
