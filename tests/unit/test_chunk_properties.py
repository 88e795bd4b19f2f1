"""What holds for every document, however its Markdown is broken."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.test_chunk import count_words
from worker.model import PAGE_SEPARATOR, Chunk, Page
from worker.pipeline.chunk import chunk

LINES = st.one_of(
    st.sampled_from(
        ["", "", "   ", "# One", "## Two", "### Three", "Title", "=====", "-----", "```", "~~~~", "```py", "> quote"]
    ),
    st.sampled_from(["| a | b |", "|---|---|", "| 1 | 2 |", "- item", "1. item", "* * *", "#", "|", "a | b"]),
    st.text(st.sampled_from("ab 🙂漢.!?|#`-=\t\u2003\u200b\U0001d518"), max_size=60),
    st.integers(1, 60).map(lambda n: "Some words here. " * n),
    st.integers(1, 900).map(lambda n: "y" * n),
)
PAGES = st.lists(st.lists(LINES, max_size=14).map("\n".join), max_size=6).map(
    lambda texts: [Page(number, text) for number, text in enumerate(texts, 1)]
)
LIMITS = st.integers(10, 80)


def cut(pages: list[Page], limit: int) -> list[Chunk]:
    return chunk(pages, count_tokens=count_words, max_tokens=limit)


def text_of(pages: list[Page]) -> str:
    return PAGE_SEPARATOR.join(page.markdown for page in pages)


@settings(max_examples=150, deadline=None)
@given(PAGES, LIMITS)
def test_chunks_are_slices_in_order_that_leave_out_nothing_but_blanks(pages: list[Page], limit: int) -> None:
    text, done = text_of(pages), 0
    for ordinal, each in enumerate(cut(pages, limit)):
        assert each.ordinal == ordinal
        assert text[each.char_start : each.char_end] == each.content
        assert each.content.strip()
        assert not text[done : each.char_start].strip()
        done = each.char_end
    assert not text[done:].strip()


@settings(max_examples=150, deadline=None)
@given(PAGES, LIMITS)
def test_no_chunk_is_over_the_limit_and_every_count_is_true(pages: list[Page], limit: int) -> None:
    chunks = cut(pages, limit)
    assert [each.token_count for each in chunks] == count_words([each.embedding_text for each in chunks])
    assert all(each.token_count <= limit for each in chunks)
    assert all(len(each.content) <= limit * 16 for each in chunks)


@settings(max_examples=150, deadline=None)
@given(PAGES, LIMITS)
def test_the_pages_named_are_the_pages_the_slice_touches(pages: list[Page], limit: int) -> None:
    spans, start = [], 0
    for page in pages:
        spans.append((page.number, start, start + len(page.markdown)))
        start += len(page.markdown) + len(PAGE_SEPARATOR)
    for each in cut(pages, limit):
        touched = [n for n, first, last in spans if max(first, each.char_start) < min(last, each.char_end)]
        assert (each.page_start, each.page_end) == (touched[0], touched[-1])


@settings(max_examples=50, deadline=None)
@given(PAGES, LIMITS)
def test_the_same_document_gives_the_same_chunks(pages: list[Page], limit: int) -> None:
    assert cut(pages, limit) == cut(pages, limit)


@settings(max_examples=100, deadline=None)
@given(PAGES, LIMITS)
def test_context_takes_half_the_limit_at_most(pages: list[Page], limit: int) -> None:
    for each in cut(pages, limit):
        assert count_words([each.context])[0] - 2 <= limit // 2
