"""The commands whose runs docs/performance.md quotes, and its tables, made of the newest run of each."""

from __future__ import annotations

from typing import Any

from local import deno
from tests.chaos.record import table, write

PAGE = deno.REPOSITORY / "docs" / "performance.md"
_L0 = "scripts/bench w1 --json"
_C16 = "scripts/bench w1 --concurrency 16 --json"
_L80 = "scripts/bench w1 --latency 80 --json"
_L80_10 = "scripts/bench w1 --latency 80+10 --concurrency 16 --json"
_HNSW = "scripts/bench w1 --hnsw --rounds 3 --json"
_LIMITED = "scripts/bench w1 --latency 80 --tokens-per-minute 600000 --untold --rounds 1 --json"
_TOLD = "scripts/bench w1 --latency 80 --tokens-per-minute 600000 --rounds 1 --json"
_IDLE = "scripts/bench idle --json"
_LOAD = "scripts/bench load --rounds 3 --json"
_POISON = "scripts/bench poison --json"
_FOOTPRINT = "scripts/bench footprint --json"
COMMANDS = (_L0, _C16, _L80, _L80_10, _HNSW, _LIMITED, _TOLD, _IDLE, _LOAD, _POISON, _FOOTPRINT)

Line = dict[str, Any]


def write_page() -> None:
    """Put the newest runs into the page."""
    write(PAGE, {"w1": ("bench", _w1), "others": ("bench", _others)})


def _newest(lines: list[Line], command: str) -> Line | None:
    found = [line for line in lines if line["command"] == command and "report" in line]
    return found[-1] if found else None


def _w1(lines: list[Line]) -> str:
    rows = []
    for command in (_L0, _C16, _L80, _L80_10, _HNSW):
        line = _newest(lines, command)
        if line is None:
            continue
        r = line["report"]
        rows.append(
            [line["date"], line["commit"], r["latency"] + (", HNSW" if r["hnsw"] else ""),
             f"{r['concurrency']} / {r['slots']}",
             f"{r['chunks_per_second']:,}", f"{r['reference_chunks_per_second']:,}",
             r["ratio"], r.get("share_of_copy", ""), r.get("share_of_formula", ""),
             r.get("reference_share_of_formula", ""), r["cpu_ms_per_chunk"], r["reference_cpu_ms_per_chunk"],
             r["postgres_cpu_ms_per_chunk"], r["peak_rss_mb"], f"{r['requests']} ({r['most_at_once']})",
             r["start_seconds"]]
        )  # fmt: skip
    return table(
        ["date", "commit", "latency ms", "requests / documents at once", "chunks/s", "bare loop", "ratio",
         "of COPY's rate", "of the formula", "bare loop of the formula", "worker CPU ms a chunk", "bare loop CPU",
         "Postgres CPU", "peak RSS MB", "requests (at once)", "start s"],
        rows,
    )  # fmt: skip


def _others(lines: list[Line]) -> str:
    rows: list[list[Any]] = []
    for command, how in ((_LIMITED, "and the worker is refused above them"), (_TOLD, "and the worker is told")):
        if line := _newest(lines, command):
            r = line["report"]
            rows.append(
                [f"{r['tokens_per_minute']:,} tokens a minute, {how}: seconds, ideal of a bucket that is full at the "
                 "start, times that; refused; not ready",
                 f"{r['steady_seconds']}, {r['ideal_seconds']}, {r['times_the_ideal']}; "
                 f"{r['throttled']}; {r['not_ready']}", line]
            )  # fmt: skip
    if line := _newest(lines, _IDLE):
        rows += [
            [f"idle, insert to visible less {r['latency']} ms of the provider: p50, p99 ms; one commit",
             f"{r['p50_ms']}, {r['p99_ms']}; {line['report']['commit_ms']}", line]
            for r in (line["report"]["latency_0"], line["report"]["latency_80"])
        ]  # fmt: skip
    if line := _newest(lines, _LOAD):
        r = line["report"]
        rows.append(
            ["initial load with an HNSW index: seconds with it there, with it built afterwards; times faster",
             f"{r['inline_seconds']}, {r['deferred_seconds']}; {r['times_faster']}", line]
        )  # fmt: skip
        rows.append(
            ["rows a second that the index takes: inline, built afterwards",
             f"{r['index_rows_per_second_inline']:,}, {r['index_rows_per_second_deferred']:,}", line]
        )  # fmt: skip
    if line := _newest(lines, _POISON):
        r = line["report"]
        rows.append(
            ["one document refused: others ready, times the clean seconds, requests (refused) against the clean run's",
             f"{r['others_ready']} of {r['documents'] - 1}, {r['times_the_clean']}, "
             f"{r['requests']} ({r['refused']}) : {r['clean_requests']}", line]
        )  # fmt: skip
    if line := _newest(lines, _FOOTPRINT):
        r = line["report"]
        rows += [
            ["`import worker`, `sluice --help`, Python alone: seconds",
             f"{r['import_worker_seconds']}, {r['sluice_help_seconds']}, {r['python_seconds']}", line],
            [f"peak RSS at concurrency {r['concurrency']}, MB; base install, MB",
             f"{r['peak_rss_mb']}; {r.get('install_mb', 'not measured')}", line],
        ]  # fmt: skip
    return table(
        ["what", "measured", "date, commit", "command"],
        [[what, said, f"{line['date']}, {line['commit']}", f"`{line['command']}`"] for what, said, line in rows],
    )
