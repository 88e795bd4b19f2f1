"""Tenants and members: who sees what, from when, and until when."""

from __future__ import annotations

import asyncio
import json
from typing import Any
from uuid import UUID, uuid4

import asyncpg
import pytest

from tests.callers import as_user
from tests.conftest import Database
from tests.database.project import Project, vector_of

TABLES = ("documents", "jobs", "job_events", "chunks", "pages")


async def seen(project: Project, user: UUID) -> dict[str, int]:
    """Count what a user can read of each kind, search hits and vectors included."""
    async with as_user(project.admin, user):
        counts = {name: await project.admin.fetchval(f"select count(*) from public.{name}") for name in TABLES}
        counts["vectors"] = await project.admin.fetchval("select count(*) from ingest.embeddings")
        counts["hits"] = len(await project.admin.fetch("select * from public.search('text', $1)", vector_of("text")))
        counts["objects"] = await project.admin.fetchval("select count(*) from storage.objects")
    return counts


NOTHING = dict.fromkeys((*TABLES, "vectors", "hits", "objects"), 0)


async def test_a_user_gets_a_tenant_of_their_own_at_sign_up(project: Project) -> None:
    user = await project.user()
    row = await project.owner.fetchrow("select * from public.tenants")
    assert row is not None
    assert (row["id"], row["kind"], row["language"]) == (user, "personal", "english")


async def test_users_from_before_the_migration_get_theirs_by_backfill(project: Project) -> None:
    await project.admin.execute("alter table auth.users disable trigger sluice_user_created")
    user = await project.user()
    assert await project.owner.fetchval("select count(*) from public.tenants") == 0
    migration = (project.migrations / "20261123000200_tenants.sql").read_text()
    start = migration.index("insert into public.tenants (id, kind, name)\nselect")
    backfill = migration[start : migration.index(";", start)]
    for _ in range(2):
        await project.owner.execute(backfill)
        assert await project.owner.fetchval("select array_agg(id) from public.tenants") == [user]


async def test_a_sign_up_passes_although_its_tenant_cannot_be_made(project: Project) -> None:
    await project.owner.execute("alter table public.tenants add constraint never check (kind <> 'personal')")
    user = await project.user()
    assert await project.admin.fetchval("select count(*) from auth.users where id = $1", user) == 1


async def test_a_stranger_sees_nothing_of_a_published_document(project: Project) -> None:
    user, stranger = await project.user(), await project.user()
    await project.ready(user, "a.txt", "text")
    assert all(count > 0 for count in (await seen(project, user)).values())
    assert await seen(project, stranger) == NOTHING


@pytest.mark.parametrize("role", ["reader", "editor", "admin"])
async def test_every_member_reads_what_the_organisation_owns(project: Project, role: str) -> None:
    member = await project.user()
    tenant = await project.organisation(**{role: member})
    await project.ready(tenant, "a.txt", "text")
    assert all(count > 0 for count in (await seen(project, member)).values())


async def test_a_removed_member_loses_access_at_once(project: Project, database: Database) -> None:
    admin, member = await project.user(), await project.user()
    tenant = await project.organisation(admin=admin, editor=member)
    await project.ready(tenant, "a.txt", "text")
    # Also inside a transaction that had access when it began.
    session = await database.connect("supabase_admin")
    async with as_user(session, member):
        assert await session.fetchval("select count(*) from public.chunks") == 1
        await project.owner.execute("delete from public.tenant_members where user_id = $1", member)
        assert await session.fetchval("select count(*) from public.chunks") == 0
    assert await seen(project, member) == NOTHING


async def test_members_see_each_other_and_nobody_elses_members(project: Project) -> None:
    one, two, stranger = await project.user(), await project.user(), await project.user()
    await project.organisation(admin=one, reader=two)
    await project.organisation(admin=stranger)
    async with as_user(project.admin, two):
        members = await project.admin.fetch("select user_id from public.tenant_members")
        tenants = await project.admin.fetch("select kind from public.tenants order by kind")
    assert {row["user_id"] for row in members} == {one, two}
    assert [row["kind"] for row in tenants] == ["personal", "organisation"]


async def test_a_personal_tenant_accepts_no_members(project: Project) -> None:
    owner, guest = await project.user(), await project.user()
    with pytest.raises(asyncpg.ForeignKeyViolationError):
        await project.join(owner, guest, "reader")
    with pytest.raises(asyncpg.CheckViolationError):
        await project.owner.execute(
            "insert into public.tenant_members (tenant_id, user_id, kind) values ($1, $2, 'personal')", owner, guest
        )


async def test_an_organisation_with_members_cannot_become_personal(project: Project) -> None:
    tenant = await project.organisation(admin=await project.user())
    with pytest.raises(asyncpg.ForeignKeyViolationError):
        await project.owner.execute("update public.tenants set kind = 'personal' where id = $1", tenant)


LAST_ADMIN = "IG010"


@pytest.mark.parametrize(
    "statement",
    [
        "delete from public.tenant_members where role = 'admin'",
        "update public.tenant_members set role = 'editor' where role = 'admin'",
        "delete from public.tenant_members",
    ],
)
async def test_the_last_admin_cannot_leave(project: Project, statement: str) -> None:
    await project.organisation(admin=await project.user(), editor=await project.user())
    with pytest.raises(asyncpg.PostgresError, match="last admin") as refused:
        await project.owner.execute(statement)
    assert refused.value.sqlstate == LAST_ADMIN
    assert await project.owner.fetchval("select count(*) from public.tenant_members") == 2


async def test_an_admin_may_leave_while_another_stays(project: Project) -> None:
    first, second = await project.user(), await project.user()
    tenant = await project.organisation(admin=first)
    await project.join(tenant, second, "admin")
    await project.owner.execute("delete from public.tenant_members where user_id = $1", first)
    assert await project.owner.fetchval("select user_id from public.tenant_members") == second


async def test_of_two_admins_who_leave_at_once_one_stays(project: Project, database: Database) -> None:
    first, second = await project.user(), await project.user()
    tenant = await project.organisation(admin=first)
    await project.join(tenant, second, "admin")
    other = await database.connect()
    leave = "delete from public.tenant_members where user_id = $1"
    transaction = project.owner.transaction()
    await transaction.start()
    await project.owner.execute(leave, first)
    leaving = asyncio.create_task(other.execute(leave, second))
    assert await project.waits(leaving, other)
    await transaction.commit()
    with pytest.raises(asyncpg.PostgresError, match="last admin"):
        await leaving
    assert await project.owner.fetchval("select user_id from public.tenant_members") == second


async def test_deleting_an_organisation_deletes_its_memberships(project: Project) -> None:
    tenant = await project.organisation(admin=await project.user(), reader=await project.user())
    await project.owner.execute("delete from public.tenants where id = $1", tenant)
    assert await project.owner.fetchval("select count(*) from public.tenant_members") == 0


async def test_an_organisation_that_still_has_files_cannot_be_deleted(project: Project) -> None:
    # Its objects would stay in the bucket without anybody who may see them: empty the folder first.
    admin = await project.user()
    tenant = await project.organisation(admin=admin)
    stored = await project.ready(tenant, "a.txt", "text")
    with pytest.raises(asyncpg.ForeignKeyViolationError):
        await project.owner.execute("delete from public.tenants where id = $1", tenant)
    assert await project.remove(admin, stored) == 1
    await project.owner.execute("delete from public.tenants where id = $1", tenant)


async def put(project: Project, user: UUID, folder: UUID | str, bucket: str = "documents") -> UUID:
    """Try an upload as Storage's trial does: with the user's own rights."""
    async with as_user(project.admin, user):
        stored: UUID = await project.admin.fetchval(
            "insert into storage.objects (bucket_id, name, version) values ($1, $2, '1') returning id",
            bucket, f"{folder}/{uuid4()}.txt",
        )  # fmt: skip
    return stored


@pytest.mark.parametrize(("role", "allowed"), [("reader", False), ("editor", True), ("admin", True)])
async def test_writing_to_storage_wants_an_editor(project: Project, role: str, allowed: bool) -> None:
    member = await project.user()
    tenant = await project.organisation(**{role: member})
    stored = await project.upload(tenant)
    if allowed:
        await put(project, member, tenant)
    else:
        with pytest.raises(asyncpg.InsufficientPrivilegeError, match="row-level security"):
            await put(project, member, tenant)
    async with as_user(project.admin, member):
        assert await project.admin.fetchval("select count(*) from storage.objects where id = $1", stored) == 1
        done = await project.admin.execute("update storage.objects set version = '2' where id = $1", stored)
        assert done == f"UPDATE {int(allowed)}"
    assert await project.remove(member, stored) == int(allowed)


async def test_a_user_writes_to_their_own_folder_and_no_other(project: Project) -> None:
    user, stranger = await project.user(), await project.user()
    await project.owner.execute("insert into storage.buckets (id, name) values ('other', 'other')")
    stored = await put(project, user, user)
    for folder, bucket in (
        (stranger, "documents"),
        ("public", "documents"),
        (f"x/{user}", "documents"),
        (user, "other"),
    ):
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            await put(project, user, folder, bucket)
    with pytest.raises(asyncpg.InsufficientPrivilegeError):
        async with as_user(project.admin, user):
            await project.admin.execute(
                "update storage.objects set name = $2 where id = $1", stored, f"{stranger}/a.txt"
            )
    assert await project.remove(stranger, stored) == 0


async def test_pages_of_a_deleted_document_are_gone_for_people_at_once(project: Project) -> None:
    user = await project.user()
    gone = await project.ready(user, "a.txt", "gone")
    await project.ready(user, "b.txt", "kept")
    await project.remove(user, gone)
    async with as_user(project.admin, user):
        pages = await project.admin.fetch("select markdown from public.pages")
    assert [row["markdown"] for row in pages] == ["kept"]
    assert await project.owner.fetchval("select count(*) from public.pages") == 2  # until the sweep


async def test_pages_that_are_not_published_yet_are_not_shown(project: Project) -> None:
    user = await project.user()
    stored = await project.ready(user, "a.txt", "old")
    await project.overwrite(stored)
    await project.prepare(await project.claim_one(), ["new"])
    async with as_user(project.admin, user):
        pages = await project.admin.fetch("select markdown from public.pages")
    assert [row["markdown"] for row in pages] == ["old"]


def nodes(plan: dict[str, Any]) -> list[dict[str, Any]]:
    return [plan, *(node for child in plan.get("Plans", []) for node in nodes(child))]


@pytest.mark.parametrize(
    "table", ["public.documents", "public.chunks", "public.jobs", "public.job_events", "ingest.embeddings"]
)
async def test_a_policy_is_an_index_condition_that_is_evaluated_once(project: Project, table: str) -> None:
    user = await project.user()
    async with as_user(project.admin, user):
        await project.admin.execute("set local enable_seqscan = off")
        explained = await project.admin.fetchval(f"explain (format json) select count(*) from {table}")
    plan = nodes(json.loads(explained)[0]["Plan"])
    assert [node for node in plan if node.get("Parent Relationship") == "SubPlan"] == []
    scans = [node for node in plan if "Relation Name" in node or "Index Name" in node]
    conditions = [node["Index Cond"] for node in scans if "Index Cond" in node]
    assert conditions
    # Operators have a second arm, from the first tenant id to the last; for everybody else its bounds are null.
    arms = {"ANY" if "ANY" in condition else "bounds" for condition in conditions if "tenant_id" in condition}
    assert arms == ({"ANY", "bounds"} if table in ("public.jobs", "public.job_events") else {"ANY"})
    assert all(node["Node Type"] != "Seq Scan" for node in scans)
