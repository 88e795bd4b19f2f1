"""Runs of the heavy commands, each a line with date, commit and command in docs/proofs, and pages made of them."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from local import deno

PROOFS = deno.REPOSITORY / "docs" / "proofs"


def run(part: str, command: str) -> int:
    """Run a command and write down what it said; returns its exit status."""
    began, day = time.monotonic(), datetime.now(UTC).strftime("%Y-%m-%d")
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=deno.REPOSITORY, capture_output=True, text=True, check=False
    ).stdout.strip()
    done = subprocess.run(
        command.split(), cwd=deno.REPOSITORY, stdout=subprocess.PIPE, text=True, check=False, timeout=3600
    )
    said = done.stdout.strip()
    line: dict[str, Any] = {
        "date": day,
        "commit": commit,
        "command": command,
        "exit": done.returncode,
        "took_seconds": round(time.monotonic() - began, 1),
    }
    try:
        line["report"] = json.loads(said.rpartition("\n")[2])
    except ValueError:
        line["said"] = said
    PROOFS.mkdir(parents=True, exist_ok=True)
    with (PROOFS / f"{part}.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")
    return done.returncode


def lines(part: str) -> list[dict[str, Any]]:
    """Return all runs of a part, oldest first."""
    path = PROOFS / f"{part}.jsonl"
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []


def write(page: Path, tables: Mapping[str, tuple[str, Callable[[list[dict[str, Any]]], str]]]) -> None:
    """Put tables between their marks, each by name from the runs of a part; the rest is written by hand."""
    text = page.read_text(encoding="utf-8")
    for name, (part, make) in tables.items():
        begin, end = f"<!-- {name}: begin -->", f"<!-- {name}: end -->"
        before, _, rest = text.partition(begin)
        _, _, after = rest.partition(end)
        found = lines(part)
        text = f"{before}{begin}\n\n{make(found) if found else 'Not run yet.'}\n\n{end}{after}"
    page.write_text(text, encoding="utf-8")


def table(head: list[str], rows: list[list[Any]]) -> str:
    """Write a table in Markdown."""
    written = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in row) + " |" for row in written)
