"""DOCX, PPTX, XLSX and HTML as Markdown, page by page."""

from __future__ import annotations

import io
from datetime import date, datetime
from pathlib import Path
from typing import Any

import docx
import openpyxl
import pptx
import pytest
from docx.enum.text import WD_BREAK

from tests import hostile
from tests.reading import Reader
from worker.errors import Rejected
from worker.model import Parsed


@pytest.fixture
def read(tmp_path: Path) -> Reader:
    """Read bytes as the worker does."""
    return Reader(tmp_path)


def saved(document: Any) -> bytes:
    out = io.BytesIO()
    document.save(out)
    return out.getvalue()


def pages(parsed: Parsed) -> list[str]:
    return [page.markdown for page in parsed.pages]


# DOCX


async def test_headings_lists_and_tables_of_word(read: Reader) -> None:
    made = docx.Document()
    made.core_properties.title = "The contract"
    made.add_heading("Contract", 0)
    made.add_heading("Parties", 1)
    made.add_paragraph("Between A\u00a0and B.\n# not a heading")
    made.add_paragraph("first", style="List Bullet")
    made.add_paragraph("second", style="List Bullet")
    made.add_paragraph("one", style="List Number")
    made.add_paragraph("two", style="List Number")
    table = made.add_table(2, 2)
    for number, text in enumerate(("Fee|", "Due", "5 €", "2025")):
        table.cell(number // 2, number % 2).text = text
    made.add_heading("Deeper", 3)
    parsed = await read(saved(made), "contract.docx")
    assert pages(parsed) == [
        "# Contract\n\n# Parties\n\nBetween A and B.\n\\# not a heading\n\n- first\n- second\n1. one\n2. two\n\n"
        "| Fee\\| | Due |\n| --- | --- |\n| 5 € | 2025 |\n\n### Deeper"
    ]
    assert parsed.title == "The contract"


async def test_explicit_page_breaks_of_word_make_pages_blank_ones_too(read: Reader) -> None:
    made = docx.Document()
    broken = made.add_paragraph("on one")
    broken.add_run().add_break(WD_BREAK.PAGE)
    broken.add_run("on two")
    made.add_page_break()
    made.add_page_break()
    made.add_paragraph("on four")
    made.add_paragraph("on five").paragraph_format.page_break_before = True
    made.add_section()
    made.add_paragraph("on six")
    parsed = await read(saved(made), "breaks.docx")
    assert pages(parsed) == ["on one", "on two", "", "on four", "on five", "on six"]
    assert parsed.notes == ("Pages without text: 3",)


def paragraph(text: str, *, before: str = "", properties: str = "") -> str:
    return f"<w:p><w:pPr>{properties}</w:pPr><w:r>{before}<w:t>{text}</w:t></w:r></w:p>"


RENDERED = "<w:lastRenderedPageBreak/>"


async def test_where_word_last_ended_its_pages_is_kept_and_counted_once(read: Reader) -> None:
    data = hostile.docx(
        hostile.document(
            paragraph("one"),
            paragraph("two", before=RENDERED),
            '<w:p><w:r><w:br w:type="page"/></w:r></w:p>',
            paragraph("three", before=RENDERED),
            paragraph("four", before=RENDERED, properties="<w:pageBreakBefore/>"),
        )
    )
    assert pages(await read(data, "a.docx")) == ["one", "two", "three", "four"]


async def test_a_table_over_two_pages_has_its_header_on_both(read: Reader) -> None:
    def row(*cells: str) -> str:
        return f"<w:tr>{''.join(f'<w:tc>{cell}</w:tc>' for cell in cells)}</w:tr>"

    table = f"<w:tbl>{row(paragraph('A'), paragraph('B'))}{row(paragraph('1'), paragraph('2'))}"
    table += f"{row(paragraph('3', before=RENDERED), paragraph('4'))}</w:tbl>"
    assert pages(await read(hostile.docx(hostile.document(table)), "a.docx")) == [
        "| A | B |\n| --- | --- |\n| 1 | 2 |",
        "| A | B |\n| --- | --- |\n| 3 | 4 |",
    ]


async def test_deleted_text_and_fallbacks_are_left_out_links_and_insertions_kept(read: Reader) -> None:
    def run(text: str) -> str:
        return f"<w:r><w:t>{text}</w:t></w:r>"

    data = hostile.docx(
        hostile.document(
            f"<w:p>{run('kept ')}<w:ins>{run('inserted ')}</w:ins><w:hyperlink>{run('linked')}</w:hyperlink>"
            "<w:del><w:r><w:delText>deleted</w:delText></w:r></w:del>"
            '<mc:AlternateContent xmlns:mc="http://schemas.openxmlformats.org/markup-compatibility/2006">'
            f"<mc:Fallback>{run('twice')}</mc:Fallback></mc:AlternateContent></w:p>"
            f"<w:sdt><w:sdtContent><w:p>{run('in a control')}</w:p></w:sdtContent></w:sdt>"
        )
    )
    assert pages(await read(data, "a.docx")) == ["kept inserted linked\n\nin a control"]


async def test_numbers_that_word_shows_and_does_not_store_are_counted(read: Reader) -> None:
    w = 'xmlns:w="http://schemas.openxmlformats.org/wordprocessingml/2006/main"'
    numbering = (
        f'<w:numbering {w}><w:abstractNum w:abstractNumId="0">'
        '<w:lvl w:ilvl="0"><w:start w:val="3"/><w:numFmt w:val="decimal"/><w:lvlText w:val="%1."/></w:lvl>'
        '<w:lvl w:ilvl="1"><w:start w:val="1"/><w:numFmt w:val="lowerLetter"/><w:lvlText w:val="%1.%2)"/></w:lvl>'
        '</w:abstractNum><w:num w:numId="7"><w:abstractNumId w:val="0"/></w:num></w:numbering>'
    )

    def numbered(text: str, level: int, outline: str = "") -> str:
        return paragraph(text, properties=f'{outline}<w:numPr><w:ilvl w:val="{level}"/><w:numId w:val="7"/></w:numPr>')

    body = hostile.document(
        numbered("Scope", 0, '<w:outlineLvl w:val="0"/>'), numbered("x", 1), numbered("y", 1), numbered("Term", 0),
        numbered("z", 1),
    )  # fmt: skip
    data = hostile.docx(body, **{"word/numbering.xml": numbering})
    assert pages(await read(data, "a.docx")) == ["# 3. Scope\n\n   3.a) x\n   3.b) y\n4. Term\n   4.a) z"]


async def test_a_document_of_pictures_needs_ocr(read: Reader) -> None:
    data = hostile.docx(hostile.document("<w:p/>"), **{"word/media/image1.png": b"\x89PNG"})
    with pytest.raises(Rejected) as refused:
        await read(data, "scan.docx")
    assert refused.value.code == "needs_ocr"


# PPTX


async def test_a_slide_is_a_page_with_title_bullets_table_and_notes(read: Reader) -> None:
    made = pptx.Presentation()
    slide = made.slides.add_slide(made.slide_layouts[1])
    slide.shapes.title.text = "Results"
    body = slide.placeholders[1].text_frame
    body.text = "up"
    body.add_paragraph().text = "a detail"
    body.paragraphs[1].level = 1
    slide.notes_slide.notes_text_frame.text = "Say thanks."
    made.slides.add_slide(made.slide_layouts[6])
    slide = made.slides.add_slide(made.slide_layouts[5])
    slide.shapes.title.text = "Numbers"
    table = slide.shapes.add_table(2, 2, 0, 0, 100_000, 100_000).table
    table.cell(0, 0).text, table.cell(0, 1).text, table.cell(1, 0).text = "Year", "Sum", "2025"
    parsed = await read(saved(made), "talk.pptx")
    assert pages(parsed) == [
        "# Results\n\n- up\n   - a detail\n\nNotes: Say thanks.",
        "",
        "# Numbers\n\n| Year | Sum |\n| --- | --- |\n| 2025 |  |",
    ]
    assert parsed.title == "Results"


# XLSX


async def test_a_sheet_is_a_page_with_values_as_people_see_them(read: Reader) -> None:
    made = openpyxl.Workbook()
    sheet = made.active
    assert sheet is not None
    sheet.title = "Sales"
    sheet.append(["Region", "Day", "At", "Share", "Sum", "Ok"])
    sheet.append(["North|East", date(2024, 5, 6), datetime(2024, 5, 6, 7, 30), 0.125, 0.1 + 0.2, True])
    sheet["D2"].number_format = "0.0%"
    sheet["A3"] = "South"
    sheet["E3"] = 1_000_000
    sheet["A6"] = "All values in kEUR"
    made.create_sheet("Empty")
    hidden = made.create_sheet("More")
    hidden.sheet_state = "hidden"
    hidden["C5"] = "lonely"
    parsed = await read(saved(made), "sales.xlsx")
    assert pages(parsed) == [
        "# Sales\n\n| Region | Day | At | Share | Sum | Ok |\n| --- | --- | --- | --- | --- | --- |\n"
        "| North\\|East | 2024-05-06 | 2024-05-06 07:30 | 12.5% | 0.3 | TRUE |\n| South |  |  |  | 1000000 |  |\n\n"
        "All values in kEUR",
        "",
        "# More\n\nlonely",
    ]
    assert parsed.notes == ("Sheet 3 is hidden", "Pages without text: 2")


async def test_a_formula_gives_its_value_and_never_itself(read: Reader) -> None:
    rows = '<row><c><f>SUM(1,2)</f><v>3</v></c><c t="str"><f>A1&amp;"x"</f><v>3x</v></c><c><f>NOW()</f></c></row>'
    assert pages(await read(hostile.xlsx(hostile.worksheet(rows)), "a.xlsx")) == ["# S\n\n| 3 | 3x |\n| --- | --- |"]


async def test_a_long_sheet_repeats_its_header(read: Reader) -> None:
    made = openpyxl.Workbook(write_only=True)
    sheet = made.create_sheet("Long")
    sheet.append(["n", "square"])
    for number in range(4500):
        sheet.append([number, number * number])
    text = (await read(saved(made), "long.xlsx")).text
    assert text.count("| n | square |\n| --- | --- |") == 3
    assert text.count("\n| 4499 | 20241001 |") == 1
    assert sum(line.startswith("| ") and line[2].isdigit() for line in text.splitlines()) == 4500


# HTML


HTML = """<!doctype html><html><head><title>My &amp; page</title><script>var x = "<p>no</p>"</script>
<style>p {color: red}</style></head><body><nav>Menu</nav><header>Site</header><!-- remark -->
<main><h1>Head\nline</h1><p>Para <b>bo</b>ld<br>
line <a href="http://127.0.0.1:9/x">link</a><img src="http://127.0.0.1:9/y" alt="Logo"></p>
<ul><li>one<ul><li>below</li></ul></li><li>two</li></ul><ol start="3"><li>x<li>y</ol>
<table><tr><th>A<th>B<tr><td>1<td>2|3<tr><td colspan=2>both</table><pre>def f():
    pass</pre><p hidden>hidden</p><p style="display: none">hidden</p>
<form><input value="no"><button>Send</button></form>
<h2>Next</h2><blockquote>said</blockquote><dl><dt>Word</dt><dd>meaning</dd></dl></main><footer>Imprint</footer></body></html>"""


async def test_the_main_text_of_a_page_becomes_markdown(read: Reader) -> None:
    parsed = await read(HTML.encode(), "page.html")
    assert parsed.text == (
        "# Head line\n\nPara bold\nline linkLogo\n\n- one\n   - below\n- two\n\n3. x\n4. y\n\n"
        "| A | B |\n| --- | --- |\n| 1 | 2\\|3 |\n| both |  |\n\n```\ndef f():\n    pass\n```\n\n"
        "## Next\n\nsaid\n\nWord\n\nmeaning"
    )
    assert parsed.title == "My & page"


async def test_html_named_pdf_works_as_html(read: Reader) -> None:
    parsed = await read(b"<html><body><h1>Please log in</h1></body></html>", "invoice.pdf")
    assert (parsed.mime_type, parsed.text) == ("text/html", "# Please log in")


async def test_the_charset_that_html_declares_is_used(read: Reader) -> None:
    page = '<html><head><meta charset="windows-1251"></head><body>Москва</body></html>'
    assert (await read(page.encode("cp1251"), "a.html")).text == "Москва"


async def test_html_without_text_has_one_blank_page(read: Reader) -> None:
    parsed = await read(b"<html><script>x</script></html>", "a.html")
    assert (pages(parsed), parsed.notes) == ([""], ("Pages without text: 1",))
