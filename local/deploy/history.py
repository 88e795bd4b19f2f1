"""Migrations here and in the database's history, and where the two disagree.

The history holds each migration's statements, so a file that was edited after it was applied shows. White space and
semicolons do not count: the CLI splits a file into statements before it writes them down.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import asyncpg

from local.deploy.connection import connected
from local.deploy.step import Plan, Refused
from local.deploy.target import Target
from local.errors import StackError

_FILE = re.compile(r"(\d{14})_(\w+)\.sql")


@dataclass(frozen=True, slots=True)
class Migration:
    """One of them; `text` is None where the history does not know it."""

    version: str
    name: str
    text: str | None

    def __str__(self) -> str:
        return f"{self.version}_{self.name}"

    def differs(self, other: Migration) -> bool:
        """Whether both texts are known, and say something else."""
        return self.text is not None and other.text is not None and _bare(self.text) != _bare(other.text)


def here(project: Path) -> list[Migration]:
    """Return the migrations of the checkout in order; raises StackError for a file that the CLI would pass over."""
    found: dict[str, Migration] = {}
    for file in sorted((project / "supabase" / "migrations").glob("*.sql")):
        named = _FILE.fullmatch(file.name)
        if named is None:
            raise StackError(f"{file.name} is not named like a migration: 14 digits, an underscore, a name, .sql.")
        if named[1] in found:
            raise StackError(f"{found[named[1]]}.sql and {file.name} have the same stamp. Give one of them another.")
        found[named[1]] = Migration(named[1], named[2], file.read_text())
    if not found:
        raise StackError(f"There are no migrations in {project / 'supabase' / 'migrations'}.")
    return list(found.values())


async def there(connection: asyncpg.Connection) -> list[Migration]:
    """Return the migrations that the database has, in order."""
    if not await connection.fetchval("select to_regclass('supabase_migrations.schema_migrations') is not null"):
        return []
    return [
        Migration(row["version"], row["name"] or "", "".join(row["statements"]) if row["statements"] else None)
        for row in await connection.fetch(
            "select version, name, statements from supabase_migrations.schema_migrations order by version"
        )
    ]


def disagreements(ours: Sequence[Migration], applied: Sequence[Migration]) -> list[str]:
    """Return a sentence, with what to do, for each migration because of which nothing may be pushed."""
    local, remote = ({each.version: each for each in side} for side in (ours, applied))
    newest = max(remote, default="")
    said = []
    for each in applied:
        known = local.get(each.version)
        if known is None:
            said.append(
                f"The database has the migration {each}, which this checkout lacks. Something else was deployed "
                "there: bring this checkout up to date (git pull), or deploy from the one that it came from."
            )
        elif known.name != each.name:
            said.append(
                f"The database has {each} where this checkout has {known}. Give the file its old name back, and "
                "ship what is new under a new stamp."
            )
        elif known.differs(each):
            said.append(
                f"The migration {each} was applied with another text than this checkout has. Give the file its old "
                f"text back (git log -- supabase/migrations/{each}.sql), and ship the change as a new file."
            )
    said += [
        f"The migration {each} is not in the database, but the later {remote[newest]} is. If it was never applied "
        f"anywhere, give it a stamp after {newest}; else look at how it was left out."
        for each in ours
        if each.version not in remote and each.version < newest
    ]
    return said


def waiting(ours: Sequence[Migration], applied: Sequence[Migration]) -> list[Migration]:
    """Return what is here and not there yet, in order."""
    versions = {each.version for each in applied}
    return [each for each in ours if each.version not in versions]


async def plan(target: Target) -> Plan:
    """Compare both sides; raises Refused with every disagreement."""
    ours = here(target.project)
    async with connected(target) as connection:
        applied = await there(connection)
    if wrong := disagreements(ours, applied):
        raise Refused("\n".join(wrong))
    last = f", the last one {applied[-1]}" if applied else ""
    return Plan(f"The database has {len(applied)} of {len(ours)} migrations{last}; both agree.")


def _bare(text: str) -> str:
    return re.sub(r"[\s;]+", "", text)
