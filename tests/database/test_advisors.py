"""What the Supabase advisors say about the migrated database: nothing that is not explained."""

from __future__ import annotations

import tomllib
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from local import migrations
from tests.conftest import Database


def _object(finding: dict[str, Any]) -> str:
    metadata = finding["metadata"]
    return f"{metadata.get('schema', '')}.{metadata.get('name', '')}"


async def test_the_advisors_find_nothing_that_is_not_explained(database: Database) -> None:
    explained = tomllib.loads((Path(__file__).parent / "advisors.toml").read_text())["allowed"]
    assert all(entry["reason"].strip() for entry in explained)

    findings = await migrations.advisors(database.url())

    used: set[int] = set()
    unexplained = []
    for finding in findings:
        matching = [
            number
            for number, entry in enumerate(explained)
            if finding["level"] == "INFO"
            and entry["lint"] == finding["name"]
            and fnmatchcase(_object(finding), entry["object"])
        ]
        used.update(matching)
        if not matching:
            unexplained.append(f"{finding['level']} {finding['name']} {_object(finding)}: {finding['detail']}")
    assert not unexplained, "\n".join(unexplained)
    stale = [e for n, e in enumerate(explained) if n not in used and not e.get("comes_and_goes")]
    assert not stale, f"the advisors no longer say this; remove it from advisors.toml: {stale}"


async def test_the_advisors_see_a_table_without_row_level_security(database: Database) -> None:
    connection = await database.connect()
    await connection.execute("create table public.careless (id int primary key)")

    findings = await migrations.advisors(database.url())

    assert ("ERROR", "rls_disabled_in_public", "public.careless") in {
        (finding["level"], finding["name"], _object(finding)) for finding in findings
    }
