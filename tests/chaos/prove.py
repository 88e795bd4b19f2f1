"""`scripts/prove`: the heavy counts; each run is a line in docs/proofs, and three pages are made of them."""

from __future__ import annotations

import sys
from typing import Any

import click

from local import deno
from tests import proved_phases
from tests.benchmarks import performance
from tests.chaos.record import run, table, write

PAGE = deno.REPOSITORY / "docs" / "reliability.md"
OPERATIONS = deno.REPOSITORY / "docs" / "operations.md"
# As one types it in the repository, where the runs take place.
PYTHON = ".venv/bin/python"
# A fault each second or so: over the jobs of all seeds some hundreds of kills at every stage.
PARTS: dict[str, list[str]] = {
    "chaos": [f"scripts/chaos --n 1500 --seed {seed} --rate 10 --faults 1.2 --json" for seed in range(1, 8)],
    "recovery": [
        "scripts/chaos --n 300 --seed 1 --only-kills --json",
        "scripts/chaos --n 60 --seed 1 --only-kills --lease 60 --faults 0.2 --rate 1 --json",
    ],
    "fence": [f"scripts/chaos --n 300 --seed {seed} --rate 10 --unfenced --json" for seed in range(1, 4)],
    "neighbours": ["scripts/chaos neighbours --n 500"],
    "queue": ["scripts/bench queue --json"],
    "ingest": ["scripts/bench"],
    "search": ["scripts/bench search"],
    "bench": list(performance.COMMANDS),
    "uploads": [f"{PYTHON} -m tests.large_upload 200"],
    "health": [f"{PYTHON} -m tests.chaos.health --json"],
    "mutants": [f"{PYTHON} -m tests.mutants 10000 1"],
    "verify": [f"{PYTHON} -m tests.verify_phases"],
}
# A queue without its fence must be found out.
_EXPECTED_EXIT = {"fence": 1}
_ZERO = {
    "lost": "lost",
    "discarded_innocent": "innocent discarded",
    "committed_twice": "committed twice",
    "stale_documents": "on old bytes",
    "orphans": "orphans",
    "attempts_charged_by_429": "charged by a 429",
}


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("parts", nargs=-1, type=click.Choice([*PARTS, "page"]))
def main(parts: tuple[str, ...]) -> None:
    """Run PARTS (all), one command after another; `page` only writes the pages anew."""
    failed = 0
    for part in parts or tuple(PARTS):
        for command in PARTS.get(part, []):
            click.echo(command)
            failed += run(part, command) != _EXPECTED_EXIT.get(part, 0)
    _write_page()
    sys.exit(1 if failed else 0)


def _write_page() -> None:
    tables = {
        "chaos": _chaos, "fence": _fence, "recovery": _recovery, "neighbours": _neighbours, "queue": _queue,
        "uploads": _uploads, "mutants": _mutants,
    }  # fmt: skip
    write(PAGE, {part: (part, make) for part, make in tables.items()})
    write(OPERATIONS, {"health": ("health", _health)})
    performance.write_page()
    proved_phases.write_page()


def _chaos(lines: list[dict[str, Any]]) -> str:
    runs = [(line, line["report"]) for line in lines if "report" in line]
    runs_table = table(
        ["date", "commit", "seed", "jobs", "kills", *_ZERO.values(), "seconds", "exit"],
        [
            [line["date"], line["commit"], r["seed"], r["jobs"], r["kills"], *(r[name] for name in _ZERO), r["seconds"],
             line["exit"]]
            for line, r in runs
        ]
        + [["all", "", "", sum(r["jobs"] for _, r in runs), sum(r["kills"] for _, r in runs),
            *(sum(r[name] for _, r in runs) for name in _ZERO), round(sum(r["seconds"] for _, r in runs), 1), ""]],
    )  # fmt: skip
    injected: dict[str, int] = {}
    for _, report in runs:
        for source in ("injected", "provider", "traffic"):
            for what, count in report[source].items():
                name = f"provider: {what}" if source == "provider" else what
                injected[name] = injected.get(name, 0) + count
    counted = "; ".join(f"{what} {count}" for what, count in sorted(injected.items()))
    commands = "\n".join(f"    {command}" for command in dict.fromkeys(line["command"] for line, _ in runs))
    return f"{runs_table}\n\nInjected over all of them: {counted}.\n\nCommands:\n\n{commands}"


def _fence(lines: list[dict[str, Any]]) -> str:
    return table(
        ["date", "commit", "seed", "jobs", "publishes held back", "committed twice", "other findings", "exit"],
        [
            [line["date"], line["commit"], r["seed"], r["jobs"], r["injected"].get("publish held back", 0),
             r["committed_twice"], sum(r[name] for name in _ZERO) - r["committed_twice"], line["exit"]]
            for line in lines if (r := line.get("report"))
        ],
    )  # fmt: skip


def _recovery(lines: list[dict[str, Any]]) -> str:
    return table(
        ["date", "commit", "lease s", "jobs held by killed workers", "p50 s", "p99 s", "max s", "command"],
        [
            [line["date"], line["commit"], r["lease_seconds"],
             *(r["recovery_seconds"].get(name, "") for name in ("count", "p50", "p99", "max")), f"`{line['command']}`"]
            for line in lines if (r := line.get("report"))
        ],
    )  # fmt: skip


def _neighbours(lines: list[dict[str, Any]]) -> str:
    names = ("clean", "refused", "kills its parser", "kills its worker")
    return table(
        ["date", "commit", "beside one that", "others ready, at least", "seconds", "times the clean", "its leases",
         "command"],
        [
            [line["date"], line["commit"], name, r[name]["fewest_ready"], r[name]["seconds"],
             r[name]["times_the_clean"], r[name]["most_leases_of_the_poison"], f"`{line['command']}`"]
            for line in lines if (r := line.get("report")) for name in names
        ],
    )  # fmt: skip


def _uploads(lines: list[dict[str, Any]]) -> str:
    return table(
        ["date", "commit", "MB", "cuts", "documents", "generation", "worker MB before", "worker MB at most", "seconds",
         "exit", "command"],
        [
            [line["date"], line["commit"],
             *(r[name] for name in ("megabytes", "cuts", "documents", "generation", "worker_rss_before",
                                    "worker_rss_most", "seconds")), line["exit"], f"`{line['command']}`"]
            for line in lines if (r := line.get("report"))
        ],
    )  # fmt: skip


def _mutants(lines: list[dict[str, Any]]) -> str:
    return table(
        ["date", "commit", "seed", "files", "read", "refused", "of these by code", "without a verdict",
         "worker deaths", "worker MB at most", "seconds", "exit"],
        [
            [line["date"], line["commit"], r["seed"], r["files"], r["ready"], r["refused"],
             ", ".join(f"{code} {count}" for code, count in r["by_code"].items()), r["unfinished"],
             r["worker_deaths"], r["worker_rss_most"], r["seconds"], line["exit"]]
            for line in lines if (r := line.get("report"))
        ],
    )  # fmt: skip


def _health(lines: list[dict[str, Any]]) -> str:
    """Write the newest run."""
    line = [line for line in lines if "report" in line][-1]
    report = line["report"]
    rows: list[list[Any]] = [
        [f"{name}: seconds until `unhealthy`; until `ok` again once it is mended",
         f"{_each(fault['unhealthy_seconds'])}; {_each(fault['ok_again_seconds'])}"]
        for name, fault in report["faults"].items()
    ]  # fmt: skip
    answers, cost = report["answers"], report["cost"]
    rows += [
        [f"an answer of the edge function, of {answers['count']}: p50, p95, max ms",
         f"{answers['p50_ms']}, {answers['p95_ms']}, {answers['max_ms']}"],
        ["a heartbeat with all its probes: share of one processor", f"{cost['cpu_percent']} %"],
        ["by how much the event loop came late beside it, at most; and without it",
         f"{cost['loop_late_ms_at_most']} ms; {cost['loop_late_ms_without']} ms"],
    ]  # fmt: skip
    return f"{table(['what', 'measured'], rows)}\n\n{line['date']}, {line['commit']}, `{line['command']}`."


def _each(seconds: list[float]) -> str:
    return ", ".join(map(str, seconds))


def _queue(lines: list[dict[str, Any]]) -> str:
    """Write the newest run."""
    line = [line for line in lines if "report" in line][-1]
    report = line["report"]
    rate, start = report["throughput"], report["start"]
    rows: list[list[Any]] = [
        ["jobs that do nothing, a second: ours with leases and events, a bare loop",
         ", ".join(f"{name} {value:,}" for name, value in rate["jobs_a_second"].items())],
        ["ours in proportion to the bare loop, round by round", rate["ratio_to_bare"]],
        ["a job starts in an idle worker, from before its commit: p50, p99 ms",
         f"{start['p50_ms']}, {start['p99_ms']}"],
        *(
            [f"a claim beside {c['backlog']:,} jobs of one tenant and {c['other_tenants']:,} busy ones: p50, p95 ms",
             f"{c['p50_ms']}, {c['p95_ms']}"]
            for c in report["claims"]
        ),
        *(
            [f"a newcomer starts at the first claim, beside that backlog and {f['other_tenants']:,} busy tenants",
             f"{f['first']} of {f['trials']}"]
            for f in report["fairness"]
        ),
    ]  # fmt: skip
    return f"{table(['what', 'measured'], rows)}\n\n{line['date']}, {line['commit']}, `{line['command']}`."


if __name__ == "__main__":
    main()
