from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from local.demo.citation import one_line, page_at, passage

PAGES = ["First page. It ends here.", "", "Third page begins. It goes on.", "Fourth."]
TEXT = "\n\n".join(PAGES)


def test_a_passage_is_the_part_with_the_words_of_the_question() -> None:
    content = "Nothing of use. " * 40 + "Container cranes stop at twenty metres a second. " + "Nothing of use. " * 40

    start, end = passage(content, "When do the cranes stop?")

    assert "cranes stop at twenty" in content[start:end]
    assert end - start <= 240


def test_a_short_content_is_its_own_passage() -> None:
    assert passage("Short.", "anything") == (0, 6)


def test_a_passage_is_cited_on_the_page_it_stands_on_not_where_its_chunk_begins() -> None:
    content = TEXT[12:40]
    offset = content.index("Third")

    assert page_at(content, 0, 5, PAGES[:3]) == 5
    assert page_at(content, offset, 5, PAGES[:3]) == 7


def test_a_look_alike_within_the_first_page_is_not_taken_for_the_slice() -> None:
    pages = ["ab\n\nab\n\nab", "ab"]

    assert page_at("ab\n\nab", 4, 1, pages) == 2


@given(st.lists(st.text(alphabet="ab\n", max_size=12), min_size=1, max_size=4), st.data())
def test_every_offset_of_every_slice_that_touches_all_pages_finds_its_page(
    pages: list[str], data: st.DataObject
) -> None:
    text = "\n\n".join(pages)
    last_begins = len(text) - len(pages[-1])
    start = data.draw(st.integers(0, len(pages[0])))
    end = data.draw(st.integers(last_begins, len(text)))
    content = text[start:end]
    # Where the same slice occurs twice across the same pages nobody can tell which one is meant.
    if not content or text.count(content) != 1 or (len(pages) > 1 and (start >= len(pages[0]) or end <= last_begins)):
        return

    for offset in range(len(content)):
        position, number = start + offset, 1
        while position >= len("\n\n".join(pages[:number])) + 2 and number < len(pages):
            number += 1
        assert page_at(content, offset, 1, pages) == number


def test_a_snippet_is_one_line_of_words() -> None:
    assert (
        one_line("## Depths\n\n| Berth | Depth |\n|---|---|\n| 1 | 11.5 |") == "Depths | Berth | Depth | | 1 | 11.5 |"
    )
