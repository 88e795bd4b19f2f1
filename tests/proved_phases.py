"""The table of docs/verify.md, made of the newest run of `scripts/prove verify`."""

from __future__ import annotations

from typing import Any

from local import deno
from tests.chaos.record import table, write

PAGE = deno.REPOSITORY / "docs" / "verify.md"


def write_page() -> None:
    """Put the newest run into the page."""
    write(PAGE, {"phases": ("verify", _phases)})


def _phases(lines: list[dict[str, Any]]) -> str:
    line = [line for line in lines if "report" in line][-1]
    report = line["report"]
    differences = {parity["b"]: f"{parity['differences']} in {parity['rows']} rows" for parity in report["parities"]}
    rows = []
    for phase in report["phases"]:
        counts = [document["counts"] for document in phase["documents"].values()]
        embed = max((document["seconds"].get("embed", 0) for document in phase["documents"].values()), default=0)
        rows.append(
            [f"{phase['phase']}: {phase['name']}", f"{phase['checks'] - len(phase['failed'])} of {phase['checks']}",
             *(sum(count[name] for count in counts) for name in ("pages", "chunks", "vectors")),
             differences.get(phase["phase"], ""), phase["seconds"], embed, phase["woken_by"], phase["exit"]]
        )  # fmt: skip
    head = ["phase", "checks passed", "pages", "chunks", "vectors", "differences from phase 1", "seconds",
            "of them embedding", "worker woken by", "exit"]  # fmt: skip
    pooler = "with PgBouncer" if report["pgbouncer"] else "without PgBouncer, which is not installed there"
    return f"{table(head, rows)}\n\n{line['date']}, {line['commit']}, `{line['command']}`, {pooler}."
