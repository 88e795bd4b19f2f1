"""Text is cleaned once, so that Postgres takes it and its offsets stay true; encodings are found out."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.reading import Reader
from worker.errors import Rejected
from worker.pipeline.text import clean, decode, is_safe

ANY_TEXT = st.text(alphabet=st.characters(exclude_categories=[]))


@pytest.fixture
def read(tmp_path: Path) -> Reader:
    """Read bytes as the worker does."""
    return Reader(tmp_path)


@given(ANY_TEXT)
def test_clean_text_survives_utf8_and_json_and_is_clean_already(text: str) -> None:
    cleaned = clean(text)
    assert is_safe(cleaned)
    assert cleaned.encode().decode() == cleaned
    assert "\\u0000" not in json.dumps(cleaned)
    assert not set(cleaned) & set("\r\0\x0b\x0c\x85\u2028\u2029\ufeff\u202e")
    assert clean(cleaned) == cleaned


@pytest.mark.parametrize(
    ("dirty", "expected"),
    [
        ("a\r\nb\rc\u2028d\x85e", "a\nb\nc\nd\ne"),
        ("a\x00b\x07c\ufffed", "abcd"),
        ("\ud83d\ude00 and \ud800", "😀 and \ufffd"),
        ("e\u0301", "é"),
        ("soft\u00adly 5\u00a0km", "softly 5 km"),
        ("\u202egnp.exe\u202c", "gnp.exe"),
        ("\u200fשלום\u200f 👩\u200d💻", "\u200fשלום\u200f 👩\u200d💻"),
        ("tab\tand\nline", "tab\tand\nline"),
    ],
)
def test_what_is_dropped_replaced_and_kept(dirty: str, expected: str) -> None:
    assert clean(dirty) == expected


@pytest.mark.parametrize(
    ("data", "declared", "expected"),
    [
        ("Größe €".encode(), None, "Größe €"),
        ("Größe €".encode("utf-8-sig"), None, "Größe €"),
        ("Größe €".encode("utf-16"), None, "Größe €"),
        ("Größe und Gewicht".encode("utf-16-le"), None, "Größe und Gewicht"),
        ("Größe und Gewicht".encode("utf-16-be"), None, "Größe und Gewicht"),
        ("Größe".encode("utf-32"), None, "Größe"),
        ("Größe €".encode("cp1252"), None, "Größe €"),
        ("Größe “x”".encode("cp1252"), "iso-8859-1", "Größe “x”"),
        ("Москва".encode("cp1251"), "windows-1251", "Москва"),
        ("東京".encode("shift_jis"), "Shift_JIS", "東京"),
        ("東京".encode(), "Shift_JIS", "東京"),
        ("Größe".encode("cp1252"), "no-such-charset", "Größe"),
        ("Größe".encode("cp1252"), "idna", "Größe"),
        ("Größe, größer".encode() + b"\xff", None, "Größe, größer\ufffd"),
        (b"lone \xed\xa0\x80 half", None, "lone \ud800 half"),
        (b"", None, ""),
    ],
)
def test_encodings_are_found_out(data: bytes, declared: str | None, expected: str) -> None:
    assert decode(data, declared) == expected


@given(st.binary(max_size=300), st.none() | st.sampled_from(["utf-8", "latin-1", "gbk", "utf-7", "hex", "x\0y"]))
def test_no_bytes_fail_to_decode(data: bytes, declared: str | None) -> None:
    assert isinstance(decode(data, declared), str)


async def test_markdown_stays_as_it_is_once_cleaned(read: Reader) -> None:
    source = "# The title #\r\n\r\n* a\r\n* b\u00a0c\r\n\r\n```\r\n# no title\r\n```\r\n"
    parsed = await read(source.encode(), "notes.md")
    assert parsed.text == "# The title #\n\n* a\n* b c\n\n```\n# no title\n```"
    assert (parsed.title, parsed.mime_type) == ("The title", "text/markdown")


async def test_nul_and_lone_surrogates_in_a_file_do_no_harm(read: Reader) -> None:
    parsed = await read(b"one\x00two \xed\xa0\x80 three", "odd.txt")
    assert parsed.text == "onetwo \ufffd three"


async def test_form_feeds_part_the_pages_of_plain_text(read: Reader) -> None:
    parsed = await read(b"first\n\fsecond\n\f\fthe fourth\n\f", "report.txt")
    assert [page.markdown for page in parsed.pages] == ["first", "second", "", "the fourth"]
    assert parsed.notes == ("Pages without text: 3",)


async def test_a_file_of_form_feeds_has_too_many_pages(read: Reader) -> None:
    with pytest.raises(Rejected) as refused:
        await read(b"x\f" * 3000, "report.txt")
    assert refused.value.code == "too_many_pages"


async def test_csv_becomes_a_table_whatever_parts_it(read: Reader) -> None:
    for delimiter in ",;\t|":
        rows = [["Name", "Note"], ["A", f'"has {delimiter} and ""quotes"""'], ["B"]]
        data = "\r\n".join(delimiter.join(row) for row in rows).encode("utf-16")
        parsed = await read(data, "table.csv")
        noted = f'has {delimiter} and "quotes"'.replace("\t", " ").replace("|", "\\|").replace("  ", " ")
        assert parsed.text == f"| Name | Note |\n| --- | --- |\n| A | {noted.replace('  ', ' ')} |\n| B |"


async def test_a_csv_of_one_column_is_text(read: Reader) -> None:
    assert (await read(b"only\none\ncolumn\n", "list.csv")).text == "only\none\ncolumn"


async def test_tsv_is_parted_by_tabs_even_where_commas_are_more(read: Reader) -> None:
    parsed = await read(b"a,b,c\td\ne,f,g\th\n", "table.tsv")
    assert parsed.text == "| a,b,c | d |\n| --- | --- |\n| e,f,g | h |"
