"""The chunker by example: one kind of seam a test, and the bounds that hostile documents push against."""

from __future__ import annotations

import re
import time
from collections.abc import Sequence

import pytest

from worker.model import PAGE_SEPARATOR, Chunk, Page
from worker.pipeline.chunk import chunk

WORD = re.compile(r"\w+|[^\w\s]")


def count_words(texts: Sequence[str]) -> list[int]:
    """A tokenizer one can follow by eye: a token a word or sign, and two special ones."""
    return [2 + len(WORD.findall(text)) for text in texts]


def cut(*pages: str, max_tokens: int = 40) -> list[Chunk]:
    return chunk([Page(n, text) for n, text in enumerate(pages, 1)], count_tokens=count_words, max_tokens=max_tokens)


def sentences(count: int, words: int = 7) -> str:
    return " ".join(f"S{n}{' word' * (words - 2)}." for n in range(count))


def test_a_document_without_words_has_no_chunks() -> None:
    assert cut() == []
    assert cut("", " \n\t\n", "\u2003") == []


def test_a_short_document_is_one_chunk_without_the_blanks_around_it() -> None:
    (only,) = cut("\n\n  Hello there.  \n\n")

    assert (only.content, only.char_start, only.char_end) == ("  Hello there.", 2, 16)
    assert (only.page_start, only.page_end, only.ordinal) == (1, 1, 0)
    assert only.token_count == 5
    assert (only.context, only.heading_path) == ("", ())


def test_headings_above_a_chunk_are_its_path_and_those_outside_it_its_context() -> None:
    text = f"# Guide\n\n## Install\n\n{sentences(4)}\n\n### On Linux\n\n{sentences(3)}\n\n## Use\n\n{sentences(4)}"
    chunks = cut(text)

    assert [each.heading_path for each in chunks] == [
        ("Guide", "Install"),
        ("Guide", "Install", "On Linux"),
        ("Guide", "Use"),
    ]
    assert [each.context for each in chunks] == ["", "Guide > Install", "Guide"]
    assert chunks[1].content.startswith("### On Linux\n\nS0")


def test_underlined_titles_are_headings_and_closing_marks_are_not_part_of_them() -> None:
    text = f"Manual\n=\n\nFirst part\n--\n{sentences(4)}\n\n## **Second  part** ##\n\n{sentences(3)}"
    assert [each.heading_path for each in cut(text)] == [("Manual", "First part"), ("Manual", "Second part")]


@pytest.mark.parametrize(
    "line",
    ["#hashtag", "####### seven", "#", "# " + "x" * 400, "- item\n---", "two lines\nof text\n-----", "    # code"],
)
def test_what_only_looks_like_a_heading_is_text(line: str) -> None:
    assert all(each.heading_path == () for each in cut(f"{line}\n\nWords.", max_tokens=60))


def test_a_heading_never_ends_a_chunk() -> None:
    for words in range(20, 40):
        first, *_ = cut(f"{'word ' * words}\n\n## Next\n\n{sentences(3)}")
        assert "Next" not in first.content or "S0" in first.content


def test_a_heading_stays_with_the_first_part_of_a_block_that_is_cut() -> None:
    first, *rest = cut(f"# Title\n\n{sentences(30)}")

    assert first.content.startswith("# Title\n\nS0")
    assert len(rest) >= 4
    assert {each.context for each in rest} == {"Title"}


def test_a_heading_in_a_fence_is_code() -> None:
    (only,) = cut("# Real\n\n```sh\n# not a heading\nls\n```\n\nText.")
    assert only.heading_path == ("Real",)


def test_code_that_fits_is_never_cut() -> None:
    code = "```python\n" + "\n".join(f"x{n} = {n}" for n in range(9)) + "\n\ny = 1\n```"
    for words in range(0, 36, 3):
        chunks = cut(f"{'word ' * words}\n\n{code}\n\n{sentences(3)}")
        assert any(code in each.content for each in chunks), words


def test_a_fence_that_is_never_closed_ends_with_its_page() -> None:
    _, second = cut(f"```\n{sentences(4)}", f"# Next page\n\n{sentences(4)}")
    assert second.heading_path == ("Next page",)


def test_a_table_is_cut_between_rows_and_its_header_repeated_above_each_part() -> None:
    rows = [f"| City {n} | {n * 7} |" for n in range(20)]
    text = "# Cities\n\n| Name | People |\n|:---|---:|\n" + "\n".join(rows)
    first, *rest = cut(text, max_tokens=60)

    assert first.content.startswith("# Cities\n\n| Name | People |\n|:---|---:|\n| City 0 | 0 |")
    assert len(rest) >= 2
    assert {each.context for each in rest} == {"Cities\n| Name | People |"}
    assert [row for each in (first, *rest) for row in each.content.split("\n") if "City" in row] == rows


def test_a_row_that_fits_is_never_cut_though_the_header_has_no_room_beside_it() -> None:
    rows = [f"| {'word ' * 14}{n} | {'word ' * 6}|" for n in range(5)]
    chunks = cut("| Name | Notes |\n|---|---|\n" + "\n".join(rows))

    assert all(any(row in each.content for each in chunks) for row in rows)


def test_a_header_too_wide_to_repeat_keeps_its_first_columns() -> None:
    columns = [f"column{n}" for n in range(20)]
    text = f"| {' | '.join(columns)} |\n|{'---|' * 20}\n" + "\n".join(f"|{' 1 |' * 20}" for _ in range(8))
    _, *rest = cut(text, max_tokens=100)

    assert rest
    assert {each.context for each in rest} == {f"| {' | '.join(columns[:12])} |"}


def test_deep_headings_are_kept_before_high_ones_when_the_context_is_too_long() -> None:
    text = f"# {'high ' * 12}\n\n## {'middle ' * 4}\n\n### deep\n\n{sentences(30)}"
    assert cut(text)[-1].context == "middle middle middle middle > deep"


def test_paragraphs_stay_whole_where_they_fit() -> None:
    paragraphs = [sentences(3), sentences(2), sentences(4), sentences(1), sentences(3)]
    contents = [each.content for each in cut("\n\n".join(paragraphs))]
    assert "\n\n".join(contents) == "\n\n".join(paragraphs)
    assert len(contents) == 3


def test_a_long_paragraph_is_cut_between_sentences_into_equal_parts() -> None:
    chunks = cut(sentences(11))

    assert all(each.content.endswith(".") and each.content.startswith("S") for each in chunks)
    counts = [each.token_count for each in chunks]
    assert max(counts) - min(counts) <= 7


def test_a_list_is_cut_between_items_before_sentences() -> None:
    items = [f"- Item {n}. It has two sentences." for n in range(12)]
    assert all(each.content.startswith("- Item") for each in cut("\n".join(items)))


def test_small_sections_share_a_chunk_named_by_what_they_have_in_common() -> None:
    (only,) = cut("# Terms\n\n## A\n\nOne.\n\n## B\n\nTwo.\n\n## C\n\nThree.")
    assert only.heading_path == ("Terms",)


def test_a_chunk_with_substance_ends_with_its_page_and_a_scrap_runs_on() -> None:
    chunks = cut(sentences(3), "", sentences(1), sentences(3))
    assert [(each.page_start, each.page_end) for each in chunks] == [(1, 1), (3, 4)]


def test_a_scrap_before_a_block_that_fills_a_chunk_goes_back_to_the_chunk_before_it() -> None:
    first, second = cut(f"{sentences(4)}\n\n## B\n\nOne word after another.\n\n## C\n\n{sentences(5)}")
    assert first.content.endswith("another.")
    assert second.content.startswith("## C")


def test_pages_keep_their_own_numbers() -> None:
    pages = [Page(7, sentences(4)), Page(9, sentences(4))]
    found = chunk(pages, count_tokens=count_words, max_tokens=40)
    assert [(each.page_start, each.page_end) for each in found] == [(7, 7), (9, 9)]


def test_offsets_count_code_points_also_beyond_the_basic_plane() -> None:
    text = "🙂 𝔘𝔫𝔦𝔠𝔬𝔡𝔢 \U0010ffff. " * 30
    for each in cut(text, text):
        assert PAGE_SEPARATOR.join((text, text))[each.char_start : each.char_end] == each.content


def test_a_word_that_is_one_token_is_still_bounded_in_length() -> None:
    chunks = cut("x" * 10_000)

    assert max(len(each.content) for each in chunks) <= 40 * 16
    assert "".join(each.content for each in chunks) == "x" * 10_000


def test_a_chunk_whose_parts_count_less_than_the_whole_is_halved() -> None:
    def deceptive(texts: Sequence[str]) -> list[int]:
        # A sentence more costs more than a sentence: no sum of parts foretells it.
        return [2 + len(WORD.findall(text)) + text.count(".") ** 2 for text in texts]

    text = f"# Title\n\n{sentences(40)}"
    chunks = chunk([Page(1, text)], count_tokens=deceptive, max_tokens=40)

    assert max(each.token_count for each in chunks) <= 40
    assert [each.token_count for each in chunks] == deceptive([each.embedding_text for each in chunks])
    assert "".join("".join(each.content.split()) for each in chunks) == "".join(text.split())


def test_a_limit_without_room_for_text_is_refused() -> None:
    with pytest.raises(ValueError, match="leaves 7 for text"):
        cut("Words.", max_tokens=9)


def test_a_character_over_the_limit_is_refused_not_looped_on() -> None:
    def dear(texts: Sequence[str]) -> list[int]:
        return [100 * len(text) for text in texts]

    with pytest.raises(ValueError, match="single character"):
        chunk([Page(1, "words")], count_tokens=dear, max_tokens=40)


@pytest.mark.parametrize(
    "text",
    ["x" * 300_000, "word " * 60_000, "a. B " * 60_000, "a\n\n" * 60_000, " " * 300_000 + "x", "- [" * 60_000],
    ids=["one run", "one line", "tiny sentences", "tiny paragraphs", "blanks", "marks"],
)
def test_hostile_text_takes_time_in_proportion_to_its_length(text: str) -> None:
    def seconds(text: str) -> float:
        started = time.process_time()
        cut(text, max_tokens=256)
        return time.process_time() - started

    # Ten times the text: ten times the time if linear, a hundred times if quadratic.
    assert seconds(text) < 40 * max(seconds(text[-len(text) // 10 :]), 0.01)
