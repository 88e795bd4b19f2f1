"""How findings are told: a table for eyes, lines for pipes, one object for programs."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from typing import Any

from worker.operate.doctor.check import Check, Finding

_WORDS = {"ok": "ok", "warning": "warning", "failed": "FAILED", "skipped": "skipped"}
_COLOURS = {"ok": "green", "warning": "yellow", "failed": "bold red", "skipped": "dim"}


def counts(findings: Sequence[Finding]) -> dict[str, int]:
    """Return how many findings have each status, zeros too."""
    counted = Counter(finding.status for finding in findings)
    return {status: counted[status] for status in ("ok", "warning", "failed", "skipped")}


def as_object(findings: Sequence[Finding]) -> dict[str, Any]:
    """Return everything as one object for JSON."""
    return {"checks": [finding.told() for finding in findings], "counts": counts(findings)}


def print_findings(findings: Sequence[Finding]) -> None:
    """Print a table on a terminal, one line a check and one a remedy in a pipe."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console()
    if console.is_terminal:
        table = Table(box=None, pad_edge=False)
        for name in ("layer", "check", "", "what was found"):
            table.add_column(name, no_wrap=name != "what was found")
        for finding in findings:
            said = Text(finding.message)
            if finding.remedy:
                said.append(f"\n→ {finding.remedy}", style="bold")
            status = Text(_WORDS[finding.status], style=_COLOURS[finding.status])
            table.add_row(finding.layer, finding.name, status, said)
        console.print(table)
    else:
        for finding in findings:
            print(f"{_WORDS[finding.status]:<8} {finding.layer:<9} {finding.name:<18} {finding.message}")
            if finding.remedy:
                print(f"{'':<37}-> {finding.remedy}")
    print(", ".join(f"{number} {status}" for status, number in counts(findings).items()) + ".")


def print_checks(checks: Sequence[Check]) -> None:
    """Print what can be looked at."""
    for check in checks:
        print(f"{check.layer:<9} {check.name:<18} {check.about}")


def table_of_problems(checks: Sequence[Check], general: Sequence[Any]) -> list[str]:
    """Return the rows of the table in docs/operations.md: a code, its check, its sentence and its remedy."""
    rows: dict[str, str] = {}
    for check in checks:
        for problem in check.problems:
            rows.setdefault(problem.code, _row(problem, check.name))
    for problem in general:
        rows.setdefault(problem.code, _row(problem, "any"))
    return list(rows.values())


def _row(problem: Any, check: str) -> str:
    severity = "warning" if problem.warning else "failed"
    cells = [f"`{problem.code}`", check, severity, _cell(problem.message), _cell(problem.remedy)]
    return f"| {' | '.join(cells)} |"


def _cell(text: str) -> str:
    return re.sub(r"\{(\w+)[^}]*\}", r"`{\1}`", text.replace("|", "\\|").replace("<", "&lt;"))
