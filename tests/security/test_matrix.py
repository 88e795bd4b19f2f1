"""The matrix of row-level security: every cell of matrix.yaml is tried, and nothing is missing in it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable

import asyncpg
import pytest

from local import shape
from local.postgres import Cluster
from local.secrets import Secrets
from tests.callers import as_role
from tests.conftest import TEMPLATE, Database
from tests.database import catalogue
from tests.security import matrix
from tests.security.matrix import CALLERS, VERBS, WRITTEN, Row
from tests.security.world import REFUSED, World

ROWS = [*matrix.table_rows(), *matrix.function_rows(), *matrix.topic_rows()]
API_ROLES = {"PUBLIC", "anon", "authenticated", "service_role"}
PLATFORM = {"storage.objects", "storage.buckets", "realtime.messages"}
Record = Callable[[str, object], None]


@pytest.fixture(scope="module")
async def world(template: asyncpg.Connection, cluster: Cluster, secrets: Secrets) -> AsyncIterator[World]:
    """One world for all cells: each is tried in a transaction that is rolled back."""
    await template.execute(f"create database matrix template {TEMPLATE} strategy file_copy")
    await shape.open_database(template, "matrix")
    database = Database("matrix", cluster, secrets)
    yield await World.open(database)
    await database.close()
    await template.execute("drop database matrix with (force)")


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
async def test_the_cells_are_as_written(world: World, row: Row, record_property: Record) -> None:
    seen = [await world.outcome(caller, row.statement, row.before) for caller in CALLERS]
    assert dict(zip(CALLERS, seen, strict=True)) == dict(zip(CALLERS, row.outcomes, strict=True))
    record_property("cells", len(CALLERS))


@pytest.mark.parametrize("table", WRITTEN["internal"])
async def test_internal_tables_are_closed_to_every_caller_but_the_worker(
    world: World, table: str, record_property: Record
) -> None:
    column = await world.project.owner.fetchval(
        "select quote_ident(attname) from pg_attribute where attrelid = $1::text::regclass and attnum > 0"
        "  and not attisdropped and attidentity = '' order by attnum limit 1",
        table,
    )
    allowed = WRITTEN["internal"][table].split()
    for verb, statement in matrix.internal_statements(table, column).items():
        for caller in CALLERS:
            refused = await world.outcome(caller, statement) == REFUSED
            assert refused == (caller != "worker" or verb not in allowed), f"{caller} {verb}"
        record_property("cells", len(CALLERS))


async def test_functions_that_are_not_for_the_api_refuse_every_caller_of_it(
    world: World, record_property: Record
) -> None:
    written = {row.name.partition(",")[0] for row in matrix.function_rows()}
    calls = await world.project.owner.fetch(
        "select n.nspname || '.' || p.proname as name, format('select %I.%I(%s)', n.nspname, p.proname,"
        "   (select string_agg('null::' || format_type(t, null), ', ' order by o)"
        "      from unnest(p.proargtypes::oid[]) with ordinality u(t, o))) as call"
        "  from pg_proc p join pg_namespace n on n.oid = p.pronamespace"
        " where n.nspname in ('public', 'ingest') and p.prorettype <> 'trigger'::regtype"
        "   and not exists (select from pg_depend e where e.objid = p.oid and e.deptype = 'e')"
    )
    tried = 0
    for call in calls:
        if call["name"] in written:
            continue
        for caller in ("anon", "A", "operator", "service"):
            assert await world.outcome(caller, call["call"]) == REFUSED, f"{caller}: {call['call']}"
            tried += 1
    assert tried > 300
    record_property("cells", tried)


async def test_every_table_and_view_has_its_rows(world: World) -> None:
    found = {
        name
        for name, about in (await catalogue.relations(world.project.owner)).items()
        if about["kind"] in "rpvm" and not about["partition"]
    }
    assert found | PLATFORM == WRITTEN["tables"].keys() | WRITTEN["internal"].keys()
    assert not WRITTEN["tables"].keys() & WRITTEN["internal"].keys()
    for table, about in WRITTEN["tables"].items():
        assert set(about["may"]) == set(VERBS), table


async def test_every_function_of_the_api_has_its_rows(world: World) -> None:
    found = {
        signature.partition("(")[0]
        for signature, about in (await catalogue.functions(world.project.owner)).items()
        if API_ROLES & set(about["execute"])
    }
    assert found == {row.name.partition(",")[0] for row in matrix.function_rows()}


async def test_a_new_table_or_function_without_rows_is_noticed(world: World) -> None:
    connection = world.project.owner
    transaction = connection.transaction()
    await transaction.start()
    await connection.execute(
        "create table public.forgotten (id int);"
        "create function public.forgotten() returns int language sql as 'select 1'"
    )
    for check in (test_every_table_and_view_has_its_rows, test_every_function_of_the_api_has_its_rows):
        with pytest.raises(AssertionError, match="forgotten"):
            await check(world)
    await transaction.rollback()


async def test_a_cell_that_is_wrong_is_noticed(world: World) -> None:
    # The policies away, the same tries see everything: the cells depend on them.
    admin = world.project.admin
    (row,) = [row for row in ROWS if row.name == "public.documents select"]
    await admin.execute("alter table public.documents disable row level security")
    try:
        assert await world.outcome("B", row.statement, row.before) == "all"
    finally:
        await admin.execute("alter table public.documents enable row level security")
    assert await world.outcome("B", row.statement, row.before) == "B"


async def test_the_callers_are_who_they_say(world: World) -> None:
    admin = world.project.admin
    async with as_role(admin, *world.claims("A")):
        assert await admin.fetchval("select auth.uid()") == world.people["A"]
        assert await admin.fetchval("select current_user") == "authenticated"
    assert await world.project.worker.fetchval("select current_user") == "ingest_worker"
