"""What is decided about a file without asking anybody: which parser, whether its text came back, and set-ups."""

from __future__ import annotations

import contextlib
import random
import time
import unicodedata
from pathlib import Path
from typing import Any, cast

import pytest

from tests.remote_parser import ScriptedParser, pages
from worker.__main__ import choose_parsers
from worker.db.pool import Database
from worker.errors import IngestError, Misconfigured, Rejected, Transient
from worker.model import Parsed, Source
from worker.pipeline.filetype import PDF
from worker.pipeline.ledger import Ledger
from worker.pipeline.limits import Limits
from worker.pipeline.parse.answers import Bounds, assemble
from worker.pipeline.parse.choose import Choice, Parsers
from worker.pipeline.parse.fidelity import LOW, fidelity
from worker.pipeline.parse.parser import Parser
from worker.settings import Settings

GOOD = "The pilot boards two miles off the north pier and leaves the ship at berth twelve at the latest. "
BOUNDS = Bounds(100, 1_000_000, 0.5)


class Reading(ScriptedParser):
    """A local parser that reads one thing."""

    name = "local"
    remote = False

    def __init__(self, read: Parsed | Exception) -> None:
        super().__init__()
        self.answers = [read]


async def choose(read: Parsed | Exception, tmp_path: Path) -> Choice:
    path = tmp_path / "a"
    path.write_bytes(b"bytes")
    return await Parsers(ScriptedParser(), Reading(read), cheap_first=True).choose(Source(path, "a", 5, b"", PDF))


@pytest.mark.parametrize(
    ("read", "parser", "reason"),
    [
        (pages(GOOD, GOOD), "local", "text_layer"),
        (pages(*[GOOD] * 9, ""), "local", "text_layer"),
        (pages(*[GOOD] * 8, "", "Figure 3"), "scripted", "text_layer_sparse"),
        (pages(GOOD.replace("e", "\ue001"), GOOD), "scripted", "text_layer_garbled"),
        (pages(GOOD.replace("i", "\ufffd")), "scripted", "text_layer_garbled"),
        (Rejected("needs_ocr", "A scan."), "scripted", "needs_ocr"),
        (Transient("parser_crashed", "It crashed."), "scripted", "parser_crashed"),
    ],
    ids=["good", "one blank in ten", "two blank in ten", "private glyphs", "unmapped glyphs", "scan", "crash"],
)
async def test_a_pdf_is_read_here_when_its_own_text_is_good(
    read: Parsed | Exception, parser: str, reason: str, tmp_path: Path
) -> None:
    choice = await choose(read, tmp_path)
    assert (choice.parser.name, choice.detail["parser"], choice.detail["reason"]) == (parser, parser, reason)
    assert (choice.layer is None) == isinstance(read, Exception)


@pytest.mark.parametrize("code", ["pdf_encrypted", "too_many_pages"])
async def test_what_no_parser_can_or_may_read_is_sent_nowhere(code: str, tmp_path: Path) -> None:
    with pytest.raises(Rejected) as caught:
        await choose(Rejected(code, "No."), tmp_path)
    assert caught.value.code == code


def test_order_layout_and_thousands_marks_do_not_count() -> None:
    text = "\n".join(f"Row {n}: the crane of berth {n} lifts {n},{n:03} tonnes of steel" for n in range(1, 40))
    other = "\n".join(
        f"| {n} | Row, the crane of berth {n} lifts steel of tonnes {n}{n:03} |" for n in range(39, 0, -1)
    )
    share = fidelity(pages(text), pages(other))
    assert share is not None
    assert share > 0.95


def test_a_summary_and_changed_numbers_are_low() -> None:
    text = " ".join(f"The crane of berth {n} lifts {n + 20} tonnes on weekdays." for n in range(40))
    for answer in ("Forty cranes are described.", text.translate(str.maketrans("0123456789", "7" * 10))):
        share = fidelity(pages(text), pages(answer))
        assert share is not None
        assert share < LOW


def test_a_layer_with_a_handful_of_words_says_nothing() -> None:
    assert fidelity(pages("Page 1 of 3"), pages("Something else entirely")) is None


def test_what_a_service_returns_is_cleaned_as_local_text_is() -> None:
    parsed = assemble([(1, "a\0b\r\ncafe\u0301\u202e")], BOUNDS)
    assert parsed.pages[0].markdown == "ab\ncafé"


def test_endless_combining_marks_are_cut_and_cost_no_time() -> None:
    began = time.perf_counter()
    parsed = assemble([(1, "a" + "\u0301\u0323" * 200_000 + " and on")], BOUNDS)
    assert time.perf_counter() - began < 5
    assert parsed.pages[0].markdown.endswith(" and on")
    assert sum(unicodedata.combining(c) > 0 for c in parsed.pages[0].markdown) <= 64


def test_more_text_than_may_be_is_a_refusal() -> None:
    with pytest.raises(Rejected) as caught:
        assemble([(1, "ä" * 300), (2, "ä" * 300)], Bounds(10, 1000, 0.5))
    assert caught.value.code == "text_too_large"


def settings(**given: Any) -> Settings:
    required = {
        "DATABASE_URL": "postgresql://nobody@127.0.0.1/x",
        "SUPABASE_URL": "http://127.0.0.1",
        "SUPABASE_SECRET_KEY": "k",
    }
    return Settings.model_validate({**required, **given})


def chosen(**given: Any) -> Parsers:
    nowhere = cast(Database, None)
    return choose_parsers(
        settings(**given), cast(Parser, Reading(pages(GOOD))), nowhere, Limits(nowhere, random.Random(1)),
        Ledger(nowhere), contextlib.AsyncExitStack(),
    )  # fmt: skip


def test_without_a_setting_files_are_read_here() -> None:
    assert chosen().main.name == "local"


@pytest.mark.parametrize("parser", ["llama-parse", "llama-cloud"])
def test_a_remote_parser_without_its_key_or_its_package_says_what_to_do(parser: str) -> None:
    with pytest.raises(IngestError) as caught:
        chosen(parser=parser)
    assert (type(caught.value), caught.value.code) == (Misconfigured, "parser_key_missing")
    with pytest.raises(IngestError) as caught:
        chosen(parser=parser, LLAMA_CLOUD_API_KEY="llx-secret")
    assert (type(caught.value), caught.value.code) == (Misconfigured, "parser_not_installed")
    assert f"requirements/{parser}.txt" in caught.value.public_message
    assert "llx-secret" not in f"{caught.value} {caught.value.__cause__}"
