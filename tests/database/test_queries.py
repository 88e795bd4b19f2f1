"""Every call that the worker makes, prepared as the worker against the migrated schema."""

from __future__ import annotations

import re

import pytest

from tests.conftest import Database
from worker.db import queries

NAMES = sorted(queries.load())
# Called with an operator's login only.
OPERATORS = {"add_embedding_model", "activate_embedding_model", "documents_without_vectors",
             "erasable", "objects_of", "erase_rows", "remove_verify_users"}  # fmt: skip
UTILITY = [name for name in NAMES if queries.load()[name].startswith("create temp table")]


@pytest.mark.parametrize("name", [name for name in NAMES if name not in UTILITY])
async def test_the_worker_can_prepare_the_query(name: str, database: Database) -> None:
    worker = await database.connect("ingest_worker")
    statement = queries.load()[name]
    prepared = await worker.prepare(statement)
    numbers = {int(number) for number in re.findall(r"\$(\d+)", statement)}
    assert numbers == set(range(1, len(prepared.get_parameters()) + 1))


@pytest.mark.parametrize("name", UTILITY)
async def test_the_worker_can_make_a_temporary_table_twice(name: str, database: Database) -> None:
    worker = await database.connect("ingest_worker")
    statement = queries.load()[name]
    table = re.search(r"incoming_\w+", statement)
    assert table is not None
    for _ in range(2):
        async with worker.transaction():
            await worker.execute(statement)
            assert await worker.fetchval(f"select count(*) from pg_temp.{table.group()}") == 0


async def test_every_function_that_the_worker_calls_is_one_it_may_execute(database: Database) -> None:
    # Preparing does not check EXECUTE: that happens when a statement runs.
    admin = await database.connect("supabase_admin")
    called = {name for text in queries.load().values() for name in re.findall(r"\bingest\.(\w+)\(", text)}
    assert len(called) > 15
    refused = await admin.fetch(
        "select p.proname from pg_proc p where p.pronamespace = 'ingest'::regnamespace and p.proname = any ($1)"
        "  and not has_function_privilege('ingest_worker', p.oid, 'execute')",
        list(called),
    )
    known = await admin.fetch(
        "select distinct proname from pg_proc where pronamespace = 'ingest'::regnamespace and proname = any ($1)",
        list(called),
    )
    assert {row["proname"] for row in refused} == OPERATORS
    assert {row["proname"] for row in known} == called
