"""Quotas: what is refused before its bytes are taken, what only at the claim, and how it comes back."""

from __future__ import annotations

import asyncio
import json
from typing import Any
from uuid import UUID, uuid4

import asyncpg
import pytest

from tests.callers import as_user
from tests.conftest import Database
from tests.database.people import FORBIDDEN, as_operator, call, refused
from tests.database.project import Project

OVER = "IG011"


class RolledBack(Exception):
    """Ends a trial as Storage ends it."""


async def set_quota(project: Project, tenant: UUID | None, **limits: int) -> int:
    """Set a tenant's quotas, or everybody's; what is not named has no limit."""
    values = (limits.get(name) for name in ("bytes", "files", "pages", "running"))
    back: int = await project.worker.fetchval("select ingest.set_quota($1, $2, $3, $4, $5)", tenant, *values)
    return back


async def trial(
    project: Project, user: UUID, name: str, size: int, connection: asyncpg.Connection | None = None
) -> str:
    """Try a write as Storage does before it takes the bytes, and roll it back; return why it is refused."""
    connection = connection or project.admin
    metadata = json.dumps({"mimetype": "text/plain", "contentLength": size})
    try:
        async with as_user(connection, user):
            there = await connection.fetchval("select id from storage.objects where name = $1", name)
            if there is None:
                await connection.execute(
                    "insert into storage.objects (bucket_id, name, version, metadata)"
                    " values ('documents', $1, '1', $2)", name, metadata,
                )  # fmt: skip
            else:
                await connection.execute(
                    "update storage.objects set version = '1', metadata = $2 where id = $1", there, metadata
                )
            raise RolledBack
    except RolledBack:
        return "allowed"
    except asyncpg.InsufficientPrivilegeError as exc:
        return str(exc)


async def begun(project: Project) -> dict[UUID, str]:
    """Begin every job that waits as a worker does; return what became of each document."""
    outcome = {}
    while claims := await project.claim(limit=1):
        (claim,) = claims
        try:
            await project.begin(claim)
        except asyncpg.PostgresError as exc:
            if exc.sqlstate != OVER:
                raise
            verdict = await project.worker.fetchval(
                "select ingest.refuse_over_quota($1, $2, $3)", claim["job_id"], claim["claim"], exc.args[0]
            )
            assert verdict == "discard"
        outcome[claim["document_id"]] = (await project.told(claim["document_id"]))["state"]
    return outcome


async def test_without_a_quota_everything_passes(project: Project) -> None:
    user = await project.user()
    assert await trial(project, user, f"{user}/a.txt", 10**12) == "allowed"


async def test_a_file_that_does_not_fit_is_refused_before_its_bytes_are_taken(project: Project) -> None:
    user = await project.user()
    await set_quota(project, user, bytes=100)
    await project.upload(user, "a.txt", size=60)
    assert await trial(project, user, f"{user}/b.txt", 40) == "allowed"
    said = await trial(project, user, f"{user}/b.txt", 41)
    assert said.startswith("quota_exceeded: with this file there would be 101 of 100 bytes. Delete files")


async def test_one_file_too_many_is_refused_whatever_its_size(project: Project) -> None:
    user = await project.user()
    await set_quota(project, user, files=1)
    assert await trial(project, user, f"{user}/a.txt", 0) == "allowed"
    await project.upload(user, "a.txt")
    said = await trial(project, user, f"{user}/b.txt", 0)
    assert said.startswith("quota_exceeded: with this file there would be 2 of 1 files. Delete files")


async def test_an_overwrite_counts_the_difference(project: Project) -> None:
    user = await project.user()
    await set_quota(project, user, bytes=100, files=2)
    await project.upload(user, "a.txt", size=60)
    await project.upload(user, "b.txt", size=30)
    assert await trial(project, user, f"{user}/a.txt", 70) == "allowed"
    assert "101 of 100 bytes" in await trial(project, user, f"{user}/a.txt", 71)
    await set_quota(project, user, bytes=10, files=1)
    assert await trial(project, user, f"{user}/a.txt", 60) == "allowed"
    assert await trial(project, user, f"{user}/a.txt", 5) == "allowed"


async def test_an_upsert_that_is_asked_as_an_insert_counts_the_difference_too(project: Project) -> None:
    user = await project.user()
    await project.upload(user, "a.txt", size=60)
    await set_quota(project, user, bytes=60, files=1)
    upsert = (
        "insert into storage.objects (bucket_id, name, version, metadata) values ('documents', $1, '1', $2)"
        " on conflict (bucket_id, name) do update set version = '1', metadata = excluded.metadata"
    )
    for size, said in ((60, "allowed"), (61, FORBIDDEN)):
        assert await refused(project, user, upsert, f"{user}/a.txt", json.dumps({"contentLength": size})) == said


async def test_move_and_delete_always_pass(project: Project) -> None:
    user = await project.user()
    stored = await project.upload(user, "a.txt", size=60)
    await set_quota(project, user, bytes=0, files=0)
    move = "update storage.objects set name = $2, version = $3 where id = $1"
    assert await refused(project, user, move, stored, f"{user}/b/c.txt", str(uuid4())) == "allowed"
    assert await project.remove(user, stored) == 1


async def test_deleting_makes_room_at_once(project: Project) -> None:
    user = await project.user()
    await set_quota(project, user, files=1)
    stored = await project.upload(user, "a.txt")
    assert await trial(project, user, f"{user}/b.txt", 1) != "allowed"
    await project.remove(user, stored)
    assert await trial(project, user, f"{user}/b.txt", 1) == "allowed"


async def test_everybodys_quota_holds_unless_a_tenant_has_its_own(project: Project) -> None:
    one, two, three = [await project.user() for _ in range(3)]
    await set_quota(project, None, files=0)
    await set_quota(project, two, files=1)
    await set_quota(project, three)  # a row without limits is a row
    for user, allowed in ((one, False), (two, True), (three, True)):
        assert (await trial(project, user, f"{user}/a.txt", 1) == "allowed") is allowed


async def test_an_organisations_quota_is_its_own_and_not_its_members(project: Project) -> None:
    user = await project.user()
    tenant = await project.organisation(editor=user)
    await set_quota(project, tenant, files=0)
    assert "1 of 0 files" in await trial(project, user, f"{tenant}/a.txt", 1)
    assert await trial(project, user, f"{user}/a.txt", 1) == "allowed"


async def test_a_strangers_upload_is_refused_without_a_word_about_the_quota(project: Project) -> None:
    tenant, stranger = await project.organisation(admin=await project.user()), await project.user()
    await set_quota(project, tenant, files=0)
    assert "row-level security" in await trial(project, stranger, f"{tenant}/a.txt", 1)
    ask = "select ingest.admit_upload(null, 'documents', $1, '{}')"
    assert await call(project, stranger, ask, f"{tenant}/a.txt") is False


async def test_other_buckets_and_folders_of_studio_are_never_asked(project: Project) -> None:
    user = await project.user()
    await set_quota(project, None, files=0)
    assert await trial(project, user, f"{user}/x/.emptyFolderPlaceholder", 0) == "allowed"
    await project.owner.execute("insert into storage.buckets (id, name) values ('other', 'other')")
    await project.admin.execute(
        "create policy other on storage.objects for insert to authenticated with check (bucket_id = 'other')"
    )
    other = "insert into storage.objects (bucket_id, name, version) values ('other', $1, '1')"
    assert await refused(project, user, other, f"{user}/a.txt") == "allowed"


async def test_every_part_of_a_resumable_upload_is_asked_with_its_whole_length(project: Project) -> None:
    # Storage tries the insert at the creation and at each part; a quota that fills up meanwhile ends it early.
    user = await project.user()
    await set_quota(project, user, bytes=100)
    assert await trial(project, user, f"{user}/big.bin", 90) == "allowed"
    await project.upload(user, "small.txt", size=20)
    assert "110 of 100 bytes" in await trial(project, user, f"{user}/big.bin", 90)


async def test_of_twenty_uploads_at_once_those_that_fit_are_read_and_the_rest_refused(
    project: Project, database: Database
) -> None:
    user = await project.user()
    await set_quota(project, user, files=5, bytes=1000)
    connections = [await database.connect("supabase_admin") for _ in range(20)]
    gate = asyncio.Barrier(20)

    async def upload(number: int) -> str:
        """Trial, then the final write as Storage's own role: no trial sees another's."""
        connection, name = connections[number], f"{user}/{number}.txt"
        said = await trial(project, user, name, 10, connection)
        await gate.wait()
        if said == "allowed":
            await connection.execute(
                "insert into storage.objects (bucket_id, name, version, metadata) values ('documents', $1, $2, $3)",
                name, str(uuid4()), json.dumps({"size": 10}),
            )  # fmt: skip
        return said

    assert await asyncio.gather(*(upload(number) for number in range(20))) == ["allowed"] * 20
    outcome = await begun(project)
    first = await project.owner.fetch("select id from public.documents order by created_at, id limit 5")
    assert {document for document, state in outcome.items() if state == "processing"} == {row["id"] for row in first}
    assert sorted(outcome.values()) == ["failed"] * 15 + ["processing"] * 5
    rows = await project.owner.fetch(
        "select j.state, j.attempt, j.error_code, d.error_message from public.jobs j"
        "  join public.documents d on d.id = j.document_id where d.state = 'failed'"
    )
    assert {(row["state"], row["attempt"], row["error_code"]) for row in rows} == {("discarded", 0, "quota_exceeded")}
    assert all(" of 5 files. Delete files" in row["error_message"] for row in rows)
    assert await project.owner.fetchval("select count(*) from storage.objects") == 20  # objects are kept


async def test_what_comes_by_a_signed_url_is_refused_at_the_claim(project: Project) -> None:
    # Its creation is tried with a length of two bytes, the upload itself comes with Storage's own role.
    user = await project.user()
    await set_quota(project, user, bytes=100)
    assert await trial(project, user, f"{user}/a.txt", 2) == "allowed"
    stored = await project.upload(user, "a.txt", size=101)
    assert await begun(project) == {stored: "failed"}
    document = await project.told(stored)
    assert document["error_code"] == "quota_exceeded"
    assert "101 of 100 bytes" in document["error_message"]


async def test_what_was_refused_comes_back_when_there_is_room(project: Project) -> None:
    user, other = await project.user(), await project.user()
    await set_quota(project, None, files=1)
    first, second, third = [await project.upload(user, f"{name}.txt") for name in "abc"]
    theirs = [await project.upload(other, f"{name}.txt") for name in "ab"]
    assert await begun(project) == {
        first: "processing", second: "failed", third: "failed", theirs[0]: "processing", theirs[1]: "failed",
    }  # fmt: skip
    retry = "select ingest.retry_over_quota()"
    assert await project.worker.fetchval(retry) == 0
    await project.remove(user, first)
    assert await project.worker.fetchval(retry) == 1
    assert await begun(project) == {second: "processing"}
    assert await set_quota(project, user, files=2) == 1
    assert await begun(project) == {third: "processing"}
    events = await project.owner.fetch("select detail from public.job_events where event = 'retry'")
    assert [json.loads(row["detail"]) for row in events] == [{"by": "quota"}] * 2
    assert (await project.told(theirs[1]))["state"] == "failed"


async def test_pages_of_a_month_are_counted_when_they_are_read_and_deleting_gives_none_back(project: Project) -> None:
    user = await project.user()
    await set_quota(project, user, pages=3)
    gone = await project.ready(user, "a.txt", "one", "two", "three")
    await project.remove(user, gone)
    stored = await project.upload(user, "b.txt")
    assert await begun(project) == {stored: "failed"}
    assert "3 of 3 pages were read this month" in (await project.told(stored))["error_message"]
    assert await project.worker.fetchval("select ingest.retry_over_quota()") == 0
    await project.owner.execute("update ingest.page_months set month = month - interval '1 month'")
    assert await project.worker.fetchval("select ingest.retry_over_quota()") == 1
    assert await begun(project) == {stored: "processing"}


async def test_pages_that_were_read_already_are_not_asked_for_again(project: Project) -> None:
    user = await project.user()
    await set_quota(project, user, pages=1)
    await project.upload(user, "a.txt")
    claim = await project.claim_one()
    await project.prepare(claim, ["one", "two"])
    assert await project.owner.fetchval("select pages from ingest.page_months") == 2
    await project.worker.execute(
        "select ingest.release_jobs(array[$1::bigint], array[$2::bigint], 'worker_stopped')",
        claim["job_id"], claim["claim"],
    )  # fmt: skip
    assert list((await begun(project)).values()) == ["processing"]


async def test_a_tenant_runs_no_more_jobs_at_once_than_its_quota_says(project: Project) -> None:
    one, two, three = [await project.user() for _ in range(3)]
    await set_quota(project, None, running=2)
    await set_quota(project, two, running=1)
    await set_quota(project, three)
    for tenant in (one, two, three):
        await project.enqueue(tenant, 5)
    claims = await project.claim(limit=15)
    running = {tenant: [row["tenant_id"] for row in claims].count(tenant) for tenant in (one, two, three)}
    assert running == {one: 2, two: 1, three: 5}
    assert await project.claim(limit=15) == []
    await set_quota(project, two, running=3)
    assert [row["tenant_id"] for row in await project.claim(limit=15)] == [two, two]


async def test_the_workers_own_cap_holds_beside_the_quota(project: Project) -> None:
    tenant = await project.user()
    await set_quota(project, tenant, running=4)
    await project.enqueue(tenant, 5)
    assert len(await project.claim(limit=10, cap=3)) == 3
    assert len(await project.claim(limit=10)) == 1


async def test_people_read_the_limits_of_their_tenants_and_what_is_used(project: Project) -> None:
    user, stranger = await project.user(), await project.user()
    tenant = await project.organisation(reader=user)
    await set_quota(project, None, files=10)
    await set_quota(project, tenant, bytes=100, pages=5, running=2)
    await project.ready(tenant, "a.txt", "one", "two")
    async with as_user(project.admin, user):
        rows = {row["tenant_id"]: tuple(row)[1:] for row in await project.admin.fetch("select * from my_quotas()")}
        limits = await project.admin.fetch("select tenant_id from ingest.quotas")
    used = await project.owner.fetchval("select size from public.documents")
    assert rows == {tenant: (100, used, None, 1, 5, 2, 2), user: (None, 0, 10, 0, None, 0, None)}
    assert {row["tenant_id"] for row in limits} == {None, tenant}
    async with as_user(project.admin, stranger):
        assert [row["tenant_id"] for row in await project.admin.fetch("select * from my_quotas()")] == [stranger]


@pytest.mark.parametrize("acting", ["user", "operator"])
async def test_only_operators_set_quotas(project: Project, acting: str) -> None:
    user = await project.user()
    who: Any = user if acting == "user" else as_operator(project.admin)
    said = await refused(project, who, "select public.set_quota($1, 1, 1, 1, 1)", user)
    assert said == ("allowed" if acting == "operator" else FORBIDDEN)
    for sql in ("insert into ingest.quotas (tenant_id) values ($1)", "delete from ingest.quotas where tenant_id = $1"):
        assert await refused(project, user, sql, user) == FORBIDDEN
    count = await project.owner.fetchval("select count(*) from ingest.audit where action = 'set_quota'")
    assert count == int(acting == "operator")
