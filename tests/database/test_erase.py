"""Erasing a tenant in SQL: every row of it in every table, nobody else's, and not while an object is left."""

from __future__ import annotations

import json
from uuid import UUID, uuid4

import asyncpg
import pytest

from tests.callers import as_service
from tests.database.people import FORBIDDEN, as_operator, call, refused
from tests.database.project import Project

ERASE = "select ingest.erase_rows($1, $2)"
# What has a tenant's rows, by column; found in the catalogue, so that a new table is not forgotten.
TENANTS = (
    "select c.oid::regclass::text from pg_class c join pg_attribute a on a.attrelid = c.oid and a.attname = 'tenant_id'"
    " where c.relnamespace in ('public'::regnamespace, 'ingest'::regnamespace) and c.relkind in ('r', 'p')"
    "   and not c.relispartition order by 1"
)
# And what names its objects or parses without that column.
OTHERS = {
    "tenants": "id = $1",
    "ingest.ignored_objects": "name like $1::uuid::text || '/%'",
    "ingest.alerts": "subject = $1::uuid::text",
    "ingest.job_details": "job_id in (select id from public.jobs where tenant_id = $1)",
    "ingest.tombstones": "object_id in (select id from public.documents where tenant_id = $1)",
    "ingest.missing_objects": "document_id in (select id from public.documents where tenant_id = $1)",
    "ingest.trigger_failures": "object_id in (select id from public.documents where tenant_id = $1)",
    "ingest.webhook_deliveries": "parse_id in (select id from ingest.parses where tenant_id = $1)",
}


async def counts(project: Project, tenant: UUID) -> dict[str, int]:
    """Count the tenant's rows in every table."""
    tables = [row[0] for row in await project.admin.fetch(TENANTS)]
    where = dict.fromkeys(tables, "tenant_id = $1") | OTHERS
    return {
        table: await project.admin.fetchval(f"select count(*) from {table} where {condition}", tenant)
        for table, condition in where.items()
    }


async def furnished(project: Project) -> UUID:
    """Make an organisation with something in every table."""
    admin, guest = await project.user(), await project.user()
    tenant: UUID = await call(project, admin, "select public.create_organisation('Acme')")
    await call(project, admin, "select public.invite_member($1, 'reader', null, $2)", tenant, guest)
    await project.worker.execute("select ingest.set_quota($1, 1000, 10, 10, 2)", tenant)
    await project.worker.execute("select ingest.set_budget('tenant', $1, 5)", tenant)
    stored = await project.ready(tenant, "a.txt", "one", "two")
    await project.upload(tenant, "b.txt")
    claim = await project.claim_one()
    await project.upload(tenant, "c.txt")
    await project.owner.execute(
        "select ingest.record_usage('r' || $1::uuid::text, array[1::bigint], array[1::bigint], array[$2::uuid],"
        " array[$1::uuid], array['p'], array['m'], array['parse'], array[1::bigint], array[0::bigint], array[1])",
        tenant, stored,
    )  # fmt: skip
    await project.owner.execute("insert into ingest.ignored_objects values ($1, 'documents', $2, 'x')",
                                uuid4(), f"{tenant}/x")  # fmt: skip
    await project.owner.execute("select ingest.raise_alert('budget_exhausted', $1::uuid::text, 'x')", tenant)
    await project.owner.execute(
        "insert into ingest.job_details (job_id) values ($1) on conflict do nothing", claim["job_id"]
    )
    for sql in (
        "insert into ingest.missing_objects values ($1, 'documents')",
        "insert into ingest.trigger_failures (object_id, operation, sqlstate, message) values ($1, 'x', 'x', 'x')",
        "insert into ingest.tombstones (object_id, error) values ($1, 'x')",
    ):
        await project.owner.execute(sql, stored)
    await project.owner.execute(
        "insert into ingest.webhook_deliveries (digest, parse_id)"
        " select sha256(convert_to(id::text, 'UTF8')), id from ingest.parses where tenant_id = $1", tenant,
    )  # fmt: skip
    return tenant


async def without_objects(project: Project, tenant: UUID, *, quietly: bool = False) -> None:
    """Remove the tenant's objects as Storage does; quietly, so that the trigger sees nothing of it."""
    if quietly:
        await project.admin.execute("alter table storage.objects disable trigger sluice_object_changed")
    async with as_service(project.admin):
        await project.admin.execute("set local storage.allow_delete_query = 'true'")
        await project.admin.execute("delete from storage.objects where name like $1::uuid::text || '/%'", tenant)


async def erased(project: Project, tenant: UUID, limit: int = 1000) -> dict[str, int]:
    total: dict[str, int] = {}
    while gone := json.loads(await project.owner.fetchval(ERASE, tenant, limit)):
        for table, count in gone.items():
            total[table] = total.get(table, 0) + count
    return total


@pytest.mark.parametrize("limit", [1, 1000])
async def test_every_row_of_the_tenant_goes_and_nobody_elses(project: Project, limit: int) -> None:
    doomed, kept = await furnished(project), await furnished(project)
    await project.enqueue(doomed)  # the other's claims took the job that waited
    before, others = await counts(project, doomed), await counts(project, kept)
    assert [table for table, count in before.items() if count == 0] == []  # a new table wants its row here
    await without_objects(project, doomed, quietly=True)
    gone = await erased(project, doomed, limit)
    assert set((await counts(project, doomed)).values()) == {0}
    assert await counts(project, kept) == others
    assert gone["public.tenants"] == 1
    assert gone["public.documents"] == before["documents"]
    assert gone["public.chunks"] == before["chunks"]
    assert await project.owner.fetchval("select count(*) from storage.objects") == 3


async def test_nothing_is_erased_while_an_object_is_left(project: Project) -> None:
    tenant = await furnished(project)
    before = await counts(project, tenant)
    assert await project.owner.fetchval(ERASE, tenant, 1000) is None
    assert await counts(project, tenant) == before


async def test_what_was_interrupted_is_finished_by_the_next_run(project: Project) -> None:
    tenant = await furnished(project)
    await without_objects(project, tenant)
    for _ in range(2):
        await project.owner.fetchval(ERASE, tenant, 1)
    assert await project.owner.fetchval("select count(*) from public.tenants where id = $1", tenant) == 1
    await erased(project, tenant)
    assert set((await counts(project, tenant)).values()) == {0}
    assert await erased(project, tenant) == {}


async def test_a_login_that_does_not_see_the_objects_erases_nothing(project: Project) -> None:
    tenant = await furnished(project)
    before = await counts(project, tenant)

    async def blindly() -> None:
        async with project.admin.transaction():  # which takes the role away again: roles are the cluster's
            await project.admin.execute(
                "create role blind; grant usage on schema ingest, storage to blind;"
                "grant select on storage.objects, ingest.buckets, public.documents to blind;"
                "grant execute on all functions in schema ingest to blind; set local role blind"
            )
            await project.admin.fetchval(ERASE, tenant, 1000)

    with pytest.raises(asyncpg.PostgresError, match=r"storage\.objects"):
        await blindly()
    assert await counts(project, tenant) == before


async def test_a_users_own_tenant_outlives_the_user_and_is_found_for_erasing(project: Project) -> None:
    user, other = await project.user(), await project.user()
    await project.ready(user, "a.txt", "one")
    await project.admin.execute("delete from auth.users where id = $1", user)
    rows = await project.owner.fetch("select * from ingest.erasable(null)")
    assert [(row["tenant_id"], row["kind"], row["documents"]) for row in rows] == [(user, "personal", 1)]
    await without_objects(project, user)
    await erased(project, user)
    assert await project.owner.fetch("select * from ingest.erasable(null)") == []
    assert await project.owner.fetchval("select array_agg(id) from public.tenants") == [other]


async def test_erasing_is_written_down_and_for_the_owners_login_only(project: Project) -> None:
    user = await project.user()
    for who in (user, as_operator(project.admin)):
        assert await refused(project, who, ERASE, user, 1000) == FORBIDDEN
    with pytest.raises(asyncpg.InsufficientPrivilegeError):
        await project.worker.fetchval(ERASE, user, 1000)
    await erased(project, user)
    row = await project.owner.fetchrow("select * from ingest.audit")
    assert row is not None
    assert (row["action"], row["acted_as"], row["login"], row["actor"]) == ("erase", "login", "postgres", None)
    assert json.loads(row["subject"]) == {"tenant": str(user)}
