"""The recorded row events of a real Storage server give exactly the expected documents and jobs."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from uuid import UUID, uuid4

import asyncpg
import pytest

from tests.database.project import Project
from tests.database.recording import RECORDING, Operation, Write


@asynccontextmanager
async def caller(project: Project, write: Write, user: UUID) -> AsyncIterator[None]:
    """Be the write's role, for a transaction that ends as the write says."""
    transaction = project.admin.transaction()
    await transaction.start()
    try:
        claims = {"role": write.role} | ({"sub": str(user)} if write.role == "authenticated" else {})
        await project.admin.execute(f"set local role {write.role}")
        await project.admin.execute("select set_config('request.jwt.claims', $1, true)", json.dumps(claims))
        await project.admin.execute("set local storage.allow_delete_query = 'true'")
        yield
    finally:
        await (transaction.commit() if write.committed else transaction.rollback())


async def perform(project: Project, write: Write, user: UUID) -> None:
    """Make one row event in its own transaction."""
    owner = user if write.owned else None
    metadata = None if write.metadata is None else json.dumps(write.metadata)
    version = write.version if write.version not in (None, "uuid") else str(uuid4())
    names = [f"{user}/{name}" for name in (write.name, *write.more)]
    async with caller(project, write, user):
        if write.kind == "insert":
            await project.admin.execute(
                "insert into storage.objects (bucket_id, name, version, metadata, owner, owner_id)"
                " values ('documents', $1, $2, $3, $4::uuid, $4::text)",
                names[0], version, metadata, owner,
            )  # fmt: skip
        elif write.kind == "update":
            done = await project.admin.execute(
                "update storage.objects set version = $2, metadata = coalesce($3, metadata), name = $4, bucket_id = $5"
                " where bucket_id = 'documents' and name = $1",
                names[0], version, metadata, f"{user}/{write.rename or write.name}", write.bucket or "documents",
            )  # fmt: skip
            assert done == "UPDATE 1"
        else:
            done = await project.admin.execute(
                "delete from storage.objects where bucket_id = 'documents' and name = any ($1)", names
            )
            assert done == f"DELETE {len(names)}"


async def replay(project: Project, operation: Operation, user: UUID) -> None:
    if operation.conflict:
        with pytest.raises(asyncpg.UniqueViolationError):
            await perform(project, operation.writes[0], user)
        return
    for write in operation.writes:
        await perform(project, write, user)


async def test_every_recorded_operation_gives_exactly_its_jobs_and_documents(project: Project) -> None:
    user = await project.user()
    await project.owner.execute("insert into storage.buckets (id, name) values ('other', 'other')")
    documents: dict[str, UUID] = {}
    last = 0
    for operation in RECORDING:
        await replay(project, operation, user)
        found = {
            row["name"][37:]: row["id"] for row in await project.owner.fetch("select id, name from public.documents")
        }
        jobs = await project.owner.fetch("select * from public.jobs where id > $1 order by id", last)
        live = {found[name]: generation for name, generation in operation.jobs}
        assert {job["document_id"]: job["generation"] for job in jobs} == live, operation.call
        assert len(jobs) == len(operation.jobs), operation.call
        last = max([last, *(job["id"] for job in jobs)])

        expected = {operation.renamed.get(name, name): id for name, id in documents.items()}
        expected |= {name: found[name] for name, generation in operation.jobs if generation == 1}
        for name in operation.gone:
            del expected[name]
        assert found == expected, operation.call
        documents = found

    assert documents == {}
    # Each generation that was overwritten or deleted before anybody claimed it is cancelled.
    states = await project.owner.fetch("select state, count(*) as n from public.jobs group by 1")
    assert [tuple(row) for row in states] == [("cancelled", sum(len(operation.jobs) for operation in RECORDING))]
    assert await project.owner.fetch("select * from ingest.trigger_failures") == []
    assert await project.owner.fetch("select * from ingest.ignored_objects") == []


async def test_a_trial_leaves_nothing_and_tells_nobody(project: Project) -> None:
    user = await project.user()
    heard: asyncio.Queue[None] = asyncio.Queue()

    def hear(*_: object) -> None:
        heard.put_nowait(None)

    await project.owner.add_listener("ingest_wake", hear)
    for operation in RECORDING:
        for write in operation.writes:
            if not write.committed and write.kind == "insert":
                await perform(project, write, user)
    for table in ("public.documents", "public.jobs", "public.job_events", "ingest.turns", "storage.objects"):
        assert await project.owner.fetchval(f"select count(*) from {table}") == 0
    await perform(project, RECORDING[0].writes[-1], user)
    await asyncio.wait_for(heard.get(), 5)
    assert heard.empty()  # notifications come in the order of their commits, so none was before this one
    await project.owner.remove_listener("ingest_wake", hear)


async def test_each_new_document_says_what_storage_said(project: Project) -> None:
    user = await project.user()
    stored = await project.upload(user, "a.txt", size=5)
    document = await project.told(stored)
    assert (document["tenant_id"], document["bucket_id"], document["name"]) == (user, "documents", f"{user}/a.txt")
    assert (document["size"], document["mime_type"], document["language"]) == (5, "text/plain", "english")
    await project.overwrite(stored, size=7)
    document = await project.told(stored)
    assert (document["size"], document["generation"], document["state"]) == (7, 2, "pending")


async def test_a_download_that_touches_the_row_is_nothing(project: Project) -> None:
    user = await project.user()
    stored = await project.upload(user)
    before = await project.owner.fetch("select * from public.documents")
    await project.admin.execute("update storage.objects set last_accessed_at = now(), user_metadata = '{}'")
    assert await project.owner.fetch("select * from public.documents") == before
    assert await project.owner.fetchval("select count(*) from public.jobs where document_id = $1", stored) == 1
