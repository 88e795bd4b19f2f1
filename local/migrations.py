"""Applies supabase/migrations with the real Supabase CLI, and asks it what it thinks of the result.

The hosted platform lets `postgres` write policies on two tables it does not own; stock Postgres does not.
`push` therefore lends it the owners' rights while the CLI runs. `apply_strictly` lends them to those
few statements only, so that any other that the platform would refuse fails here as well.
"""

from __future__ import annotations

import json
import re
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, nullcontext
from pathlib import Path
from typing import Any

import asyncpg

from local import deno, supabase_cli
from local.errors import StackError

_OWNERS = "supabase_storage_admin, supabase_realtime_admin"


async def push(admin_url: str, database_url: str, project: Path = deno.REPOSITORY) -> None:
    """Apply the migrations of `project` that the database does not have yet.

    Each file is one transaction, except one with CREATE INDEX CONCURRENTLY. An edited file that was applied
    before is not noticed. Raises StackError with what the CLI said.
    """
    async with owning(admin_url):
        await _supabase(project, database_url, "db", "push", "--yes")


async def advisors(database_url: str, project: Path = deno.REPOSITORY) -> list[dict[str, Any]]:
    """Return what the CLI's advisors find: lints with `name`, `level`, `cache_key`, `detail`, `metadata`.

    They lack the lints for callable SECURITY DEFINER functions.
    """
    said = await _supabase(project, database_url, "db", "advisors", "--level", "info", "--output-format", "json")
    results: list[dict[str, Any]] = json.loads(said)["results"]
    return results


async def generate_types(database_url: str, project: Path = deno.REPOSITORY) -> str:
    """Return TypeScript types for the schema public. Column grants are not reflected, halfvec is unknown."""
    return await _supabase(project, database_url, "gen", "types", "--lang=typescript", "--schema", "public")


async def apply_strictly(admin_url: str, database_url: str, project: Path = deno.REPOSITORY) -> int:
    """Apply every migration as plain `postgres`, statement by statement, and return how many statements ran.

    Only CREATE, ALTER and DROP POLICY and DROP TRIGGER on tables of storage and realtime get the owners'
    rights, as hosted projects do, also inside a DO block that holds nothing else and asks first whether the
    table is there. Each file is one transaction. Raises StackError naming file and statement.
    """
    count = 0
    admin = await asyncpg.connect(admin_url)
    connection = await asyncpg.connect(database_url)
    try:
        for file in sorted((project / "supabase" / "migrations").glob("*.sql")):
            async with connection.transaction():
                for statement in statements(file.read_text()):
                    # Lent from outside the transaction, where it is seen at once and taken back at once.
                    async with _lent(admin) if _is_lent(statement) else nullcontext():
                        await _execute(connection, file, statement)
                    count += 1
    finally:
        await connection.close()
        await admin.close()
    return count


_LENT = re.compile(
    r"""(?:\s|--[^\n]*\n)* (?: (?:create|alter|drop)\s+policy\b .*? | drop\s+trigger\b .*? )
        \bon\s+ (?:storage|realtime)\s*\.\s* (?:objects|buckets|messages)\b""",
    re.IGNORECASE | re.DOTALL | re.VERBOSE,
)
_GUARDED = re.compile(
    r"""(?:\s|--[^\n]*\n)* do \s+ \$\$ \s* begin \s+
        if \s+ to_regclass\('(?:storage|realtime)\.\w+'\) \s+ is \s+ not \s+ null \s+ then
        (?P<guarded>.*) end \s+ if; \s* end \s* \$\$ \s*""",
    re.IGNORECASE | re.DOTALL | re.VERBOSE,
)


def _is_lent(statement: str) -> bool:
    if block := _GUARDED.fullmatch(statement):
        return all(_LENT.match(inner) for inner in statements(block["guarded"]))
    return _LENT.match(statement) is not None


async def _execute(connection: asyncpg.Connection, file: Path, statement: str) -> None:
    try:
        await connection.execute(statement)
    except asyncpg.PostgresError as exc:
        raise StackError(
            f"{file.name}: a hosted project would refuse this: {exc} ({exc.sqlstate})\n{statement.strip()[:1000]}"
        ) from exc


# A token that may hold a semicolon, then the semicolon itself.
_TOKEN = re.compile(
    r"""--[^\n]* | /\* | (?P<tag>\$(?:[A-Za-z_]\w*)?\$).*?(?P=tag) | [eE]'(?:[^'\\]|''|\\.)*' | '(?:[^']|'')*'
      | "(?:[^"]|"")*" | \bbegin\s+atomic\b | \bcase\b | \bend\b | ;""",
    re.DOTALL | re.VERBOSE | re.IGNORECASE,
)


def statements(sql: str) -> Iterator[str]:
    """Split a migration into its statements, comments kept; semicolons in strings, bodies and comments do not split."""
    start = position = depth = 0
    while match := _TOKEN.search(sql, position):
        word = match.group().lower()
        position = match.end()
        if word == "/*":
            position = _end_of_comment(sql, position)
        elif word.startswith("begin") or (word == "case" and depth):
            depth += 1
        elif word == "end" and depth:
            depth -= 1
        elif word == ";" and not depth:
            if not _blank(sql[start : match.start()]):
                yield sql[start : match.start()]
            start = position
    if not _blank(sql[start:]):
        yield sql[start:]


def _end_of_comment(sql: str, position: int) -> int:
    """Return where a block comment ends; they nest."""
    depth = 1
    for match in re.compile(r"/\*|\*/").finditer(sql, position):
        depth += 1 if match.group() == "/*" else -1
        if depth == 0:
            return match.end()
    return len(sql)


def _blank(text: str) -> bool:
    return not re.sub(r"--[^\n]*|/\*.*?\*/", "", text, flags=re.DOTALL).strip()


@asynccontextmanager
async def owning(admin_url: str) -> AsyncIterator[None]:
    """Lend `postgres` what the hosted platform lets it do: write policies on the tables of storage and realtime."""
    admin = await asyncpg.connect(admin_url)
    try:
        async with _lent(admin):
            yield
    finally:
        await admin.close()


@asynccontextmanager
async def _lent(admin: asyncpg.Connection) -> AsyncIterator[None]:
    # INHERIT is what counts: with SET alone the owner check still fails.
    await admin.execute(f"grant {_OWNERS} to postgres with inherit true, set false, admin false")
    try:
        yield
    finally:
        await admin.execute(f"revoke {_OWNERS} from postgres")


async def _supabase(project: Path, database_url: str, *arguments: str) -> str:
    """Run the CLI against a database and return its standard output."""
    remote, secrets = supabase_cli.database(database_url)
    return await supabase_cli.run(*arguments, *remote, project=project, secrets=secrets)
