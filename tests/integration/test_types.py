"""The types that client developers are given are those of the database as it is."""

from __future__ import annotations

from local import deno, migrations
from tests.conftest import Database

TYPES = deno.REPOSITORY / "docs" / "database.types.ts"


async def test_the_types_for_clients_are_current(database: Database) -> None:
    generated = await migrations.generate_types(database.url())
    assert "admit_search" in generated
    assert TYPES.read_text() == generated, (
        "docs/database.types.ts is not what the CLI makes of the migrations. With scripts/dev running: "
        ".venv/bin/python -m local types > docs/database.types.ts"
    )
