"""What of `sluice verify` needs no target: files, the reader's rules, fingerprints, and the bounds of a comparison."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from worker.operate.verify import fingerprint, reader, record
from worker.operate.verify.compare import NotComparable, compare, read_report
from worker.operate.verify.documents import ACCEPTANCE, StandIn, identify

PAGES = [" ".join(f"word{page}x{n}" for n in range(40)).replace("0", "o") for page in range(1, 5)]


def _report(
    *, parser: str = "local", model: str = "minilm", pages: list[str] = PAGES, chunks: int = 6
) -> dict[str, Any]:
    vectors = np.random.default_rng(1).standard_normal((chunks, 64)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    document = {
        "name": "a.pdf", "sha256": "aa", "stored": {"sha256": "aa", "bytes": 9},
        "parser": {"name": parser, "version": "1", "options": {}},
        "model": {"provider": "local", "name": model, "dimensions": 64},
        "counts": {"pages": len(pages), "chunks": chunks, "vectors": chunks},
        "pages": [
            {"page": n, "sha256": page, "words": fingerprint.signature(page)} for n, page in enumerate(pages, 1)
        ],
        "chunks": [
            {"ordinal": n, "sha256": f"{n}", "pages": [1, 1], "characters": [n, n + 1], "tokens": 9, "vector": vector}
            for n, vector in enumerate(fingerprint.projected(vectors))
        ],
        "events": ["enqueue", "claim", "complete"], "seconds": {"embed": 2.0},
    }  # fmt: skip
    return {
        "format": record.FORMAT, "run_id": "r", "documents": [document], "checks": [], "rows": {},
        "versions": {"migration": "1"}, "search": {"a.pdf": {"text": 1, "hybrid": 2}},
    }  # fmt: skip


def _changed(report: dict[str, Any], **of_document: Any) -> dict[str, Any]:
    changed = copy.deepcopy(report)
    changed["documents"][0] |= of_document
    return changed


def test_two_equal_reports_are_parity() -> None:
    parity = compare(_report(), _report())

    assert parity.good
    assert {row.verdict for row in parity.rows} == {"same"}


def test_a_failed_check_of_a_run_is_no_parity_though_nothing_differs() -> None:
    failed = _report()
    failed["checks"] = [{"name": "isolation.tables", "subject": "stranger", "verdict": "failed", "seen": ""}]

    parity = compare(_report(), failed)

    assert parity.differences == []
    assert not parity.good
    assert parity.failed["b"] == ["isolation.tables of stranger"]


def test_a_chunk_too_many_is_told_by_count_hash_and_place() -> None:
    parity = compare(_report(), _report(chunks=7))

    assert {row.what for row in parity.differences} == {"chunks", "chunk hashes", "chunk places"}


def test_a_missing_vector_is_a_difference() -> None:
    lacking = _report()
    lacking["documents"][0]["counts"]["vectors"] -= 1
    lacking["documents"][0]["chunks"][2]["vector"] = None

    assert [row.what for row in compare(_report(), lacking).differences] == ["vector of each chunk"]


def test_another_migration_is_a_difference() -> None:
    newer = _report()
    newer["versions"]["migration"] = "2"

    assert [row.what for row in compare(_report(), newer).differences] == ["migration"]


def test_pages_of_another_parser_must_be_alike_and_their_chunks_near_in_number() -> None:
    reordered = [" ".join(reversed(page.split())) + " besides" for page in PAGES]

    alike = compare(_report(), _report(parser="llama-cloud", pages=reordered, chunks=9))
    other = compare(_report(), _report(parser="llama-cloud", pages=["a summary of it all"] * 4, chunks=13))

    assert alike.good
    assert [row.what for row in other.differences] == ["page texts", "chunks"]


def test_vectors_of_another_model_are_not_compared() -> None:
    parity = compare(_report(), _report(model="large"))

    (row,) = [row for row in parity.rows if row.what == "vectors"]
    assert row.verdict == "noted"
    assert parity.good


def test_times_decide_only_when_they_are_asked_to() -> None:
    slow = _changed(_report(), seconds={"embed": 6.5})

    assert compare(_report(), slow).good
    assert [r.what for r in compare(_report(), slow, strict_times=True).differences] == ["seconds: embed"]
    near = _changed(_report(), seconds={"embed": 5.9})
    assert compare(_report(), near, strict_times=True).good


def test_runs_about_other_documents_are_not_comparable(tmp_path: Path) -> None:
    with pytest.raises(NotComparable, match="different documents"):
        compare(_report(), _changed(_report(), sha256="bb"))
    unfinished = _report() | {"documents": [{"name": "a.pdf", "sha256": "aa"}]}
    with pytest.raises(NotComparable, match="before its documents"):
        compare(_report(), unfinished)
    for text in ("", "[]", "{}", '{"format": 99}'):
        (tmp_path / "x.json").write_text(text)
        with pytest.raises(NotComparable, match=r"x\.json"):
            read_report(tmp_path / "x.json")


@pytest.mark.parametrize(
    ("change", "status"), [({}, 0), ({"stored": {"sha256": "ab", "bytes": 9}}, 1), ({"sha256": "bb"}, 2)]
)
def test_compare_exits_with_what_it_found(tmp_path: Path, change: dict[str, Any], status: int) -> None:
    (tmp_path / "a.json").write_text(json.dumps(_report()))
    (tmp_path / "b.json").write_text(json.dumps(_changed(_report(), **change)))

    done = subprocess.run(
        [sys.executable, "-m", "worker", "verify", "compare", tmp_path / "a.json", tmp_path / "b.json", "--json"],
        capture_output=True, text=True, check=False, timeout=30,
    )  # fmt: skip

    assert done.returncode == status, done.stderr
    if status < 2:
        told = json.loads(done.stdout)
        assert (told["parity"], told["differences"]) == (status == 0, status)
        assert "object" in done.stderr
    else:
        assert done.stdout == ""
        assert "different documents" in done.stderr


def test_one_number_of_a_vector_with_its_sign_turned_is_beyond_the_tolerance_and_rounding_is_not() -> None:
    vector = np.random.default_rng(2).standard_normal((1, 384)).astype(np.float32)
    vector /= np.linalg.norm(vector)
    turned = vector.copy()
    turned[0, int(np.argmax(np.abs(vector) > 0.04))] *= -1
    rounded = vector.astype(np.float16).astype(np.float32)
    mine, theirs, again = (fingerprint.projected(one)[0] for one in (vector, turned, rounded))

    assert fingerprint.distance(mine, theirs) > fingerprint.TOLERANCE
    assert fingerprint.distance(mine, again) < fingerprint.TOLERANCE / 10


def test_the_similarity_of_two_pages_is_their_share_of_common_words() -> None:
    words = ["".join(chr(97 + ord(d) - 48) for d in f"{n:04d}") for n in range(300)]

    one, other = fingerprint.signature(" ".join(words[:200])), fingerprint.signature(" ".join(words[100:]))

    assert fingerprint.similarity(one, one) == 1
    assert fingerprint.similarity(one, other) == pytest.approx(1 / 3, abs=0.15)
    assert fingerprint.similarity(one, fingerprint.signature("")) == 0


def test_running_heads_are_dropped_and_the_same_words_inside_a_page_are_not() -> None:
    pages = [f"Harbour rules {n}\na{n}\nb{n}\nc{n}\nHarbour rules {n}\nd{n}\ne{n}\nf{n}" for n in range(1, 6)]

    (first, *_) = reader.without_running_heads([page.replace("a1", "alone") for page in pages])

    assert first.splitlines()[0] == "alone"
    assert "Harbour rules 1" in first


def test_the_passage_is_the_rarest_sentence_of_the_middle_page() -> None:
    usual = "The master of the harbour keeps the book of every ship."
    rare = "Herring gulls nest below lantern seven during stormy equinox nights."
    pages = [
        f"{usual} {usual}",
        f"{usual} {rare} Too short.",
        f"{usual} Another usual one for the harbour master here.",
    ]

    found = reader.passage(pages)

    assert found == reader.Passage(2, rare)
    assert reader.passage(["short"]) is None


def test_recall_names_the_page_whose_words_are_missing() -> None:
    page = " ".join(["harbour", "vessel", "mooring", "pilot"] * 10)

    found = reader.recall([page, page], [page, "harbour"])

    assert found.low_pages == [2]
    assert found.document == pytest.approx(41 / 80)


def test_secrets_in_log_lines_are_replaced() -> None:
    token = "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiJ4In0.c2lnbmF0dXJl"
    line = f"postgresql://w:p4ss@host/db sb_secret_abc {token} hunter2 https://x/o?token=abc.def sk-abcdefghij"

    said = record.scrubbed(line, ["hunter2"])

    for secret in ("p4ss", "sb_secret_abc", token, "hunter2", "abc.def", "sk-abcdefghij"):
        assert secret not in said
    assert said.startswith("postgresql://[secret]@host/db")


def test_a_file_is_known_by_its_bytes_and_never_by_its_name(tmp_path: Path) -> None:
    for known in ACCEPTANCE:
        (tmp_path / known.name).write_bytes(b"%PDF-1.4 a stand-in of 46 bytes, as it was done then")
        with pytest.raises(StandIn, match="is a stand-in"):
            identify([tmp_path / known.name])
