"""What a run writes down: versions, counts, hashes, times, costs and the last log lines, as JSON and Markdown."""

from __future__ import annotations

import json
import platform
import re
from collections.abc import Iterable, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

FORMAT = 1
LOG_LINES = 200
_PACKAGES = (
    "sluice", "supabase", "asyncpg", "pgvector", "httpx", "numpy", "openai", "onnxruntime", "tokenizers",
    "pypdfium2", "pypdf",
)  # fmt: skip
# Tokens, keys of Supabase and of providers, and passwords in URLs.
_SECRET = re.compile(
    r"eyJ[\w-]{8,}\.[\w-]+\.[\w-]*|\bsb_(?:secret|publishable)_[\w-]+|\b(?:sk|llx)-[\w-]{8,}|(?<=://)[^\s:/@]+:[^\s@]+(?=@)"
    r"|(?<=token=)[^\s&\"]+"
)


def packages() -> dict[str, str]:
    """Return the versions of Python and of the packages that this program runs on, where they are installed."""
    found = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def last_lines(path: Path | None, secrets: Iterable[str]) -> list[str]:
    """Return the last 200 lines of a log, without anything that is or looks like a secret; none without a log."""
    if path is None:
        return []
    with path.open(errors="replace") as file:
        lines = file.read().splitlines()[-LOG_LINES:]
    return [scrubbed(line, secrets) for line in lines]


def scrubbed(text: str, secrets: Iterable[str]) -> str:
    """Return `text` with each secret, and what looks like one, replaced."""
    for secret in secrets:
        if secret:
            text = text.replace(secret, "[secret]")
    return _SECRET.sub("[secret]", text)


def write(report: dict[str, Any], path: Path) -> Path:
    """Write the report as JSON, and as Markdown beside it; return the path of the latter."""
    path.write_text(json.dumps(report, ensure_ascii=False, separators=(",", ":"), default=str) + "\n", encoding="utf-8")
    beside = path.with_suffix(".md")
    beside.write_text(markdown(report), encoding="utf-8")
    return beside


def summary(report: dict[str, Any], path: Path) -> dict[str, Any]:
    """Return the report without its long lists: what --json prints; the rest is in the file."""
    short = {name: value for name, value in report.items() if name not in ("documents", "log")}
    documents = [
        {name: value for name, value in document.items() if name not in ("pages", "chunks", "events")}
        for document in report["documents"]
    ]
    return {**short, "documents": documents, "report": str(path)}


def markdown(report: dict[str, Any]) -> str:
    """Return the report for people: no texts, no lists of hashes."""
    verdict = "interrupted" if report["interrupted"] else "all checks passed" if report["ok"] else "checks failed"
    facts = [
        ["target", report["target"]], ["began", report["started_at"]], ["seconds", report["seconds"]],
        ["documents", f"{len(report['documents'])} ({report['acceptance']})"],
        ["git", report["versions"].get("git_sha") or "unknown"], ["migration", report["versions"].get("migration")],
        ["Postgres, pgvector", f"{report['versions'].get('postgres')}, {report['versions'].get('pgvector')}"],
        ["packages here", ", ".join(f"{name} {number}" for name, number in report["versions"]["packages"].items())],
        ["workers", ", ".join(_worker(worker) for worker in report["versions"].get("workers") or []) or "unknown"],
    ]  # fmt: skip
    parts = [f"# Verification {report['run_id']}: {verdict}", table(["what", "value"], facts)]
    for document in report["documents"]:
        parts += [
            f"## {document.get('title', document['name'])}",
            table(["what", "value"], [
                ["file", f"{document['sha256']}, {document.get('bytes', 0):,} bytes"],
                ["read by", (document.get("parser") or {}).get("name")],
                ["embedded by", "/".join(str((document.get("model") or {}).get(n)) for n in ("provider", "name"))],
                *([f"{name}", f"{count:,}"] for name, count in document.get("counts", {}).items()),
                *([f"digest of {name}", value] for name, value in document.get("digests", {}).items()),
                *([f"seconds: {name}", value] for name, value in document.get("seconds", {}).items()),
            ]),
        ]  # fmt: skip
    rows = [[c["name"], c["subject"], c["verdict"], c["seen"]] for c in report["checks"]]
    parts += ["## Checks", table(["check", "of", "verdict", "seen"], rows)]
    parts += ["## Rows", table(["table", "rows"], [[name, count] for name, count in report["rows"].items()])]
    parts += [
        "## Costs",
        table(
            ["document", "kind", "provider", "model", "pages", "tokens", "requests", "USD"],
            [[c[n] for n in ("document", "kind", "provider", "model", "pages", "tokens", "requests", "usd")]
             for c in report["costs"]],
        ),
    ]  # fmt: skip
    if report["log"]:
        parts += [f"## The worker's last {len(report['log'])} log lines", "```\n" + "\n".join(report["log"]) + "\n```"]
    return "\n\n".join(parts) + "\n"


def table(head: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """Return a Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(str(cell).replace("|", "\\|") for cell in line) + " |" for line in lines)


def _worker(worker: dict[str, Any]) -> str:
    return f"{worker.get('version')} ({str(worker.get('git_sha') or 'no git SHA')[:12]})"
