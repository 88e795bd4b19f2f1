"""The parity report: what two runs have in common, row by row, each with its bound and verdict.

Where parser and model are the same in both, counts and content hashes must be equal. Where they differ, texts must be
alike and chunk counts near. Vectors of one model are equal within a tolerance, by their fingerprints.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from worker.operate.verify import fingerprint, record

Verdict = Literal["same", "differs", "noted"]
Report = dict[str, Any]

SIMILARITY = 0.7
"""Pages of two parsers: the share of different words in common, averaged over all pages, at least."""
CHUNK_RATIO = 2.0
"""Chunk counts of two parsers or models: the larger to the smaller, at most."""
TIME_RATIO = 3.0
"""A stage's seconds: the longer to the shorter, at most; less than a second of difference never counts."""
_COUNTED = ("public.documents", "public.jobs", "public.pages", "public.chunks", "ingest.embeddings")
_BEST = 3


class NotComparable(Exception):
    """The two reports are not about the same documents, or one of them is none; the message says which."""


@dataclass(frozen=True, slots=True)
class Row:
    """One comparison: `noted` informs and decides nothing."""

    what: str
    subject: str
    a: str
    b: str
    bound: str
    verdict: Verdict


@dataclass(frozen=True, slots=True)
class Parity:
    """All rows, and the checks that the runs themselves failed."""

    rows: list[Row]
    failed: dict[str, list[str]]

    @property
    def differences(self) -> list[Row]:
        """The rows that decide against parity."""
        return [row for row in self.rows if row.verdict == "differs"]

    @property
    def good(self) -> bool:
        """Nothing differs, and both runs passed their own checks."""
        return not self.differences and not any(self.failed.values())

    def told(self) -> dict[str, Any]:
        """Return it as JSON has it."""
        return {
            "parity": self.good, "differences": len(self.differences), "failed_checks": self.failed,
            "rows": [asdict(row) for row in self.rows],
        }  # fmt: skip


def read_report(path: Path) -> Report:
    """Read a report of `verify run`; raises NotComparable for anything else."""
    try:
        report = json.loads(path.read_text(encoding="utf-8"))
        if report["format"] != record.FORMAT:
            raise NotComparable(f"{path.name} has format {report['format']}, this program compares {record.FORMAT}.")
        report["documents"], report["checks"], report["rows"], report["versions"]
    except (ValueError, KeyError, TypeError) as exc:
        raise NotComparable(f"{path.name} is no report of `sluice verify run`.") from exc
    made: Report = report
    return made


def compare(a: Report, b: Report, *, strict_times: bool = False) -> Parity:
    """Compare two reports; raises NotComparable when they are not about the same documents."""
    mine, theirs = ({document["sha256"]: document for document in report["documents"]} for report in (a, b))
    if not mine or mine.keys() != theirs.keys():
        names = [
            ", ".join(sorted(str(document["name"]) for document in report["documents"])) or "none" for report in (a, b)
        ]
        raise NotComparable(f"The runs are about different documents: {names[0]}; {names[1]}.")
    for report in (a, b):
        if any("counts" not in document for document in report["documents"]):
            raise NotComparable(f"Run {report['run_id']} ended before its documents were read back.")
    rows = list(
        _run_rows(a, b, same=all(_same_parser(mine[k], theirs[k]) and _same_model(mine[k], theirs[k]) for k in mine))
    )
    for key, document in mine.items():
        rows += _document_rows(document, theirs[key])
        rows += _search_rows(document["name"], a, b)
        rows += _time_rows(document, theirs[key], strict_times)
    failed = {
        side: [f"{check['name']} of {check['subject']}" for check in report["checks"] if check["verdict"] == "failed"]
        for side, report in (("a", a), ("b", b))
    }
    return Parity(rows, failed)


def _run_rows(a: Report, b: Report, *, same: bool) -> Iterator[Row]:
    yield _equal("migration", "run", a["versions"].get("migration"), b["versions"].get("migration"))
    for name in ("git_sha", "postgres", "pgvector"):
        yield _noted(name, "run", a["versions"].get(name), b["versions"].get(name))
    for table in _COUNTED:
        counts = a["rows"].get(table), b["rows"].get(table)
        # The second set of pages, chunks and vectors is another one where the parser or the model is.
        if same or table in ("public.documents", "public.jobs"):
            yield _equal(f"rows of {table}", "run", *counts)
        else:
            yield _noted(f"rows of {table}", "run", *counts)


def _document_rows(a: Report, b: Report) -> Iterator[Row]:
    name = a["name"]
    yield _equal("object", name, _short(a["stored"]["sha256"]), _short(b["stored"]["sha256"]),
                 same=a["stored"] == b["stored"])  # fmt: skip
    yield _equal("pages", name, a["counts"]["pages"], b["counts"]["pages"])
    same_parser, same_model = _same_parser(a, b), _same_model(a, b)
    if same_parser:
        yield _each(
            "page hashes", name, "page", (p["sha256"] for p in a["pages"]), (p["sha256"] for p in b["pages"]), 1
        )
    else:
        likeness = _likeness(a, b)
        yield Row(
            "page texts", name, a["parser"]["name"], f"{b['parser']['name']}: {likeness:.2f}",
            f"similarity at least {SIMILARITY}", "same" if likeness >= SIMILARITY else "differs",
        )  # fmt: skip
    if same_parser and same_model:
        yield _equal("chunks", name, a["counts"]["chunks"], b["counts"]["chunks"])
        yield _each(
            "chunk hashes", name, "chunk", (c["sha256"] for c in a["chunks"]), (c["sha256"] for c in b["chunks"])
        )
        places = [[(c["pages"], c["characters"], c["tokens"]) for c in side["chunks"]] for side in (a, b)]
        yield _each("chunk places", name, "chunk", places[0], places[1])
    else:
        yield _near("chunks", name, a["counts"]["chunks"], b["counts"]["chunks"], CHUNK_RATIO)
    yield from _vector_rows(a, b, same_model)
    yield _noted("events", name, len(a["events"]), len(b["events"]), same=a["events"] == b["events"])


def _vector_rows(a: Report, b: Report, same_model: bool) -> Iterator[Row]:
    name = a["name"]
    complete = all(side["counts"]["vectors"] == side["counts"]["chunks"] for side in (a, b))
    counts = [f"{side['counts']['vectors']} of {side['counts']['chunks']} chunks" for side in (a, b)]
    yield Row("vector of each chunk", name, counts[0], counts[1], "all", "same" if complete else "differs")
    models = ["/".join(map(str, (side["model"] or {"none": "none"}).values())) for side in (a, b)]
    if not same_model:
        yield _noted("vectors", name, *models)
        return
    theirs = {chunk["ordinal"]: chunk for chunk in b["chunks"]}
    far, compared, furthest = [], 0, 0.0
    for chunk in a["chunks"]:
        other = theirs.get(chunk["ordinal"])
        # Another text has another vector: that is the chunk's difference, said above.
        if other is None or other["sha256"] != chunk["sha256"] or not (chunk["vector"] and other["vector"]):
            continue
        apart = fingerprint.distance(chunk["vector"], other["vector"])
        compared, furthest = compared + 1, max(furthest, apart)
        if apart > fingerprint.TOLERANCE:
            far.append(chunk["ordinal"])
    yield Row(
        "vectors", name, models[0],
        _told(far, "vector") if far else f"{compared} compared, {furthest:.4f} apart at most",
        f"at most {fingerprint.TOLERANCE} apart", "differs" if far else "same",
    )  # fmt: skip


def _search_rows(name: str, a: Report, b: Report) -> Iterator[Row]:
    for way in ("text", "hybrid"):
        ranks = [(report["search"].get(name) or {}).get(way) for report in (a, b)]
        good = all(rank is not None and rank <= _BEST for rank in ranks)
        yield Row(
            f"{way} search", name, f"rank {ranks[0]}", f"rank {ranks[1]}", f"rank {_BEST} or better in both",
            "same" if good else "differs",
        )  # fmt: skip


def _time_rows(a: Report, b: Report, strict: bool) -> Iterator[Row]:
    for stage in a["seconds"]:
        if stage not in b["seconds"]:
            continue
        mine, theirs = float(a["seconds"][stage]), float(b["seconds"][stage])
        good = abs(mine - theirs) < 1 or max(mine, theirs) <= TIME_RATIO * min(mine, theirs)
        verdict: Verdict = "same" if good else "differs" if strict else "noted"
        ratio = f" ({theirs / mine:.2f} times)" if mine else ""
        yield Row(
            f"seconds: {stage}",
            a["name"],
            f"{mine:.2f}",
            f"{theirs:.2f}{ratio}",
            f"{TIME_RATIO:.0f} times or 1 s",
            verdict,
        )


def _same_parser(a: Report, b: Report) -> bool:
    # The local parser's options are its limits, which cost a document its pages or change nothing of them.
    mine, theirs = a["parser"], b["parser"]
    return bool(
        (mine["name"], mine["version"]) == (theirs["name"], theirs["version"])
        and (mine["name"] == "local" or mine["options"] == theirs["options"])
    )


def _same_model(a: Report, b: Report) -> bool:
    return a["model"] is not None and a["model"] == b["model"]


def _likeness(a: Report, b: Report) -> float:
    pairs = list(zip(a["pages"], b["pages"], strict=False))
    if not pairs:
        return 0.0
    return sum(fingerprint.similarity(mine["words"], theirs["words"]) for mine, theirs in pairs) / len(pairs)


def _each(what: str, subject: str, one: str, a: Iterable[Any], b: Iterable[Any], first: int = 0) -> Row:
    mine, theirs = list(a), list(b)
    longest = max(len(mine), len(theirs))
    other = [n + first for n in range(longest) if mine[n : n + 1] != theirs[n : n + 1]]
    return Row(what, subject, f"{len(mine)}", _told(other, one) if other else f"{len(theirs)}, all equal", "equal",
               "differs" if other else "same")  # fmt: skip


def _told(which: list[int], one: str) -> str:
    shown = ", ".join(str(number) for number in which[:10]) + (" …" if len(which) > 10 else "")
    return f"{len(which)} other: {one} {shown}"


def _equal(what: str, subject: str, a: Any, b: Any, *, same: bool | None = None) -> Row:
    same = a == b if same is None else same
    return Row(what, subject, str(a), str(b), "equal", "same" if same else "differs")


def _noted(what: str, subject: str, a: Any, b: Any, *, same: bool | None = None) -> Row:
    same = a == b if same is None else same
    return Row(what, subject, str(a), str(b), "for information", "same" if same else "noted")


def _near(what: str, subject: str, a: int, b: int, ratio: float) -> Row:
    good = min(a, b) > 0 and max(a, b) <= ratio * min(a, b)
    return Row(what, subject, str(a), str(b), f"at most {ratio:.0f} times", "same" if good else "differs")


def _short(sha256: str | None) -> str:
    return f"{sha256[:16]}…" if sha256 else "none"
