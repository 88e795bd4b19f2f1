"""matrix.yaml, read: what every caller may do with everything, a cell at a time."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

WRITTEN: dict[str, Any] = yaml.safe_load((Path(__file__).parent / "matrix.yaml").read_text())
CALLERS: list[str] = WRITTEN["callers"].split()
VERBS = ("select", "insert", "update", "delete", "upsert", "move")


@dataclass(frozen=True)
class Row:
    """What one statement does for every caller, in the order of CALLERS."""

    name: str
    statement: str
    before: str
    outcomes: tuple[str, ...]


def table_rows() -> list[Row]:
    """Every table that somebody but the worker can reach, with every verb."""
    rows = []
    for table, about in WRITTEN["tables"].items():
        statements = _statements(table, about)
        before = about.get("before", "")
        rows += [_row(f"{table} {verb}", statements[verb], before, about["may"][verb]) for verb in VERBS]
    return rows


def function_rows() -> list[Row]:
    """Every function that a role of the API may execute."""
    return [
        _row(name, about["call"], about.get("before", ""), about["may"]) for name, about in WRITTEN["functions"].items()
    ]


def topic_rows() -> list[Row]:
    """Every Realtime topic, to hear and to speak."""
    return [
        _row(f"{topic} {verb}", *statements, may[verb])
        for topic, may in WRITTEN["topics"].items()
        for verb, statements in topic_statements(topic).items()
    ]


def topic_statements(topic: str) -> dict[str, tuple[str, str]]:
    """What hears and what speaks on a topic, each with what comes before it."""
    joined = f"select set_config('realtime.topic', '{topic}', true)"
    # Another topic's messages are of no avail to who has joined this one.
    heard = f"select 1 from realtime.messages where extension = 'broadcast' and topic = '{topic}'"
    spoken = (
        "insert into realtime.messages (topic, extension, event, payload, private)"
        f" values ('{topic}', 'broadcast', 'forged', '{{}}', true)"
    )
    return {"hear": (heard, joined), "speak": (spoken, joined)}


def _row(name: str, statement: str, before: str, outcomes: str) -> Row:
    found = tuple(outcomes.split())
    assert len(found) == len(CALLERS), f"{name}: {len(found)} cells for {len(CALLERS)} callers"
    return Row(name, statement, before, found)


def _statements(table: str, about: dict[str, Any]) -> dict[str, str]:
    """The six statements of a table: the usual ones, unless the file writes them out."""
    column = about.get("owner", "tenant_id")
    where = about.get("where", f"{column} = '{{tenant}}'")
    row = about.get("row", f"({column}) values ('{{tenant}}')")
    key = about.get("key", "id")
    usual = {
        "select": f"select 1 from {table} where {where}",
        "insert": f"insert into {table} {row}",
        "update": f"update {table} set {column} = {column} where {where}",
        "delete": f"delete from {table} where {where}",
        "upsert": f"insert into {table} {row} on conflict ({key}) do update set {column} = excluded.{column}",
        "move": f"update {table} set {column} = '{{other}}' where {where}",
    }
    return usual | about.get("statements", {})


def internal_statements(table: str, column: str) -> dict[str, str]:
    """The same for a table of the worker's alone: privileges are asked for before rows are looked at."""
    return {
        "select": f"select 1 from {table} limit 1",
        "insert": f"insert into {table} default values",
        "update": f"update {table} set {column} = {column}",
        "delete": f"delete from {table}",
    }
