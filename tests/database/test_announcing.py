"""Announcements of progress: who is told what, who may hear it, and that nothing fails or waits for them."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from typing import Any
from uuid import UUID, uuid4

import asyncpg
import pytest

from tests.callers import as_anonymous, as_role, as_user
from tests.database.project import Project

FORGED = "insert into realtime.messages (topic, extension, private) values ($1, 'broadcast', true)"
OPERATOR = {"role": "authenticated", "app_metadata": {"sluice_role": "operator"}}


class Told:
    """What was announced since it was made, in the order of insertion."""

    def __init__(self, project: Project) -> None:
        self._project = project

    async def on(self, topic: str) -> list[dict[str, Any]]:
        rows = await self._project.admin.fetch(
            "select payload, private, extension from realtime.messages where topic = $1 order by ctid", topic
        )
        assert all(row["private"] and row["extension"] == "broadcast" for row in rows)
        return [json.loads(row["payload"]) for row in rows]

    async def of(self, document: UUID) -> list[tuple[str, str | None]]:
        return [(told["state"], told["stage"]) for told in await self.on(f"document:{document}")]


@pytest.fixture
def told(project: Project) -> Told:
    return Told(project)


async def lost(project: Project) -> int:
    count: int = await project.worker.fetchval(
        "select case when is_called then last_value else 0 end from ingest.announcements_lost"
    )
    return count


async def enter(project: Project, claim: asyncpg.Record, stage: str, progress: float) -> None:
    left = json.dumps([{"stage": "fetch", "seconds": 0.1, "detail": {}}])
    await project.worker.execute(
        "select ingest.enter_stage($1, $2, $3, $4, $5)", claim["job_id"], claim["claim"], stage, progress, left
    )


async def test_a_document_hears_each_step_of_its_way_with_a_counter_that_only_grows(
    project: Project, told: Told
) -> None:
    document = await project.upload(await project.user())
    claim = await project.claim_one()
    parse = await project.prepare(claim, ["text"])
    await enter(project, claim, "embed", 0.4)
    assert await project.publish(claim, parse, ["text"]) == "published"

    messages = await told.on(f"document:{document}")

    assert [(m["state"], m["stage"]) for m in messages] == [
        ("available", None), ("running", "fetch"), ("running", "embed"), ("completed", None),
    ]  # fmt: skip
    assert [m["progress"] for m in messages] == [None, 0, pytest.approx(0.4), 1]
    counters = [m["counter"] for m in messages]
    assert counters == sorted(set(counters))
    assert all(m["document_id"] == str(document) and m["job_id"] == claim["job_id"] for m in messages)
    assert all(m["generation"] == 1 and m["error_code"] is None for m in messages)
    # Ids, states and codes; a further key would have to be thought about.
    keys = {"job_id", "document_id", "generation", "state", "stage", "progress", "error_code", "counter"}
    assert all(set(m) == keys for m in messages)


async def test_a_failure_is_told_by_its_code_and_never_by_its_message(project: Project, told: Told) -> None:
    document = await project.upload(await project.user())
    claim = await project.claim_one()
    await project.worker.fetchval(
        "select ingest.discard_job($1, $2, 'encrypted', 'The file wants a password.', 'raw')",
        claim["job_id"], claim["claim"],
    )  # fmt: skip
    last = (await told.on(f"document:{document}"))[-1]
    assert (last["state"], last["error_code"]) == ("discarded", "encrypted")
    assert "password" not in json.dumps(last)


async def test_progress_inside_a_stage_is_told_in_steps_of_five_percent(project: Project, told: Told) -> None:
    document = await project.upload(await project.user())
    claim = await project.claim_one()
    for percent in range(1, 100):
        await project.worker.execute(
            "select ingest.report_progress($1, $2, $3)", claim["job_id"], claim["claim"], percent / 100
        )
    moves = [m["progress"] for m in await told.on(f"document:{document}") if m["state"] == "running"]
    assert len(moves) == 19
    assert moves == sorted(moves)


async def test_operators_are_told_once_a_statement_which_jobs_moved(project: Project, told: Told) -> None:
    tenant = await project.user()
    jobs = await project.enqueue(tenant, 20)
    before = len(await told.on("ops:jobs"))
    claims = await project.claim(20)
    (claimed,) = (await told.on("ops:jobs"))[before:]
    assert sorted(claimed["job_ids"]) == jobs
    await project.worker.fetch(
        "select * from ingest.settle_jobs($1, $2, 'complete')",
        [c["job_id"] for c in claims], [c["claim"] for c in claims],
    )  # fmt: skip
    (settled,) = (await told.on("ops:jobs"))[before + 1 :]
    assert sorted(settled["job_ids"]) == jobs
    assert settled["counter"] > claimed["counter"]
    assert set(settled) == {"job_ids", "counter"}


async def test_a_statement_announces_fifty_documents_at_most(project: Project, told: Told) -> None:
    await project.enqueue(await project.user(), 120)
    claims = await project.claim(120)
    await project.admin.execute("delete from realtime.messages")
    await project.worker.fetch(
        "select * from ingest.settle_jobs($1, $2, 'complete')",
        [c["job_id"] for c in claims], [c["claim"] for c in claims],
    )  # fmt: skip
    assert await project.admin.fetchval("select count(*) from realtime.messages") == 51


async def test_what_is_rolled_back_is_not_announced(project: Project, told: Told) -> None:
    user = await project.user()
    transaction = project.owner.transaction()
    await transaction.start()
    await project.owner.execute("select ingest.enqueue_job(gen_random_uuid(), $1, 1)", user)
    await transaction.rollback()
    assert await told.on("ops:jobs") == []


async def no_schema(project: Project) -> None:
    await project.admin.execute("drop schema realtime cascade")


async def no_right(project: Project) -> None:
    roles = "postgres, anon, authenticated, service_role, public"
    await project.admin.execute(f"revoke usage on schema realtime from {roles}")


async def no_partition(project: Project) -> None:
    await project.admin.execute("drop table realtime.messages_default")


async def another_shape(project: Project) -> None:
    await project.admin.execute("alter table realtime.messages rename column private to secret")


@pytest.mark.parametrize(
    ("wrong", "counted"), [(no_schema, False), (no_right, True), (no_partition, True), (another_shape, True)]
)
async def test_whatever_is_wrong_with_realtime_the_queue_goes_on_and_what_is_lost_is_counted(
    project: Project, wrong: Callable[[Project], Awaitable[None]], counted: bool
) -> None:
    await wrong(project)
    document = await project.ready(await project.user(), "a.txt", "text")
    assert (await project.told(document))["state"] == "ready"
    # Told of the upload, the claim, the beginning and the publication.
    assert await lost(project) == (4 if counted else 0)


async def test_it_starts_to_work_when_realtime_appears(project: Project, told: Told) -> None:
    await project.admin.execute("alter schema realtime rename to not_yet")
    first = await project.upload(await project.user())
    await project.admin.execute("alter schema not_yet rename to realtime")
    second = await project.upload(await project.user())
    assert await told.of(first) == []
    assert await told.of(second) == [("available", None)]


async def test_a_claim_hardly_waits_while_a_partition_is_made(project: Project) -> None:
    await project.enqueue(await project.user(), 5)
    maker = await project.database.connect("supabase_admin")
    transaction = maker.transaction()
    await transaction.start()
    await maker.execute("lock table realtime.messages in access exclusive mode")
    began = asyncio.get_running_loop().time()
    assert len(await project.claim()) == 5
    took = asyncio.get_running_loop().time() - began
    await transaction.rollback()
    assert took < 0.5
    assert await lost(project) == 1


async def may_join(project: Project, topic: str, user: UUID | None, claims: dict[str, object] | None = None) -> bool:
    """What Realtime does to judge a private channel: its own row, the caller's role, the topic as a setting."""
    admin = project.admin
    await admin.execute("insert into realtime.messages (topic, extension) values ($1, 'broadcast')", topic)
    if claims is not None:
        acting = as_role(admin, "authenticated", claims | {"sub": str(user)})
    else:
        acting = as_anonymous(admin) if user is None else as_user(admin, user)
    async with acting:
        await admin.execute("select set_config('realtime.topic', $1, true)", topic)
        seen: int = await admin.fetchval("select count(*) from realtime.messages where topic = $1", topic)
        everything: int = await admin.fetchval("select count(*) from realtime.messages")
    assert everything == seen  # nobody sees another topic's rows by asking for more
    return seen > 0


async def test_a_document_is_followed_by_its_tenants_readers_and_by_nobody_else(project: Project) -> None:
    ada, bob, reader = [await project.user() for _ in range(3)]
    acme = await project.organisation(admin=ada, reader=reader)
    topic = f"document:{await project.upload(acme)}"

    assert await may_join(project, topic, ada)
    assert await may_join(project, topic, reader)
    assert not await may_join(project, topic, bob)
    assert not await may_join(project, topic, None)
    assert not await may_join(project, topic, bob, OPERATOR)

    await project.owner.execute("delete from public.tenant_members where user_id = $1", reader)
    assert not await may_join(project, topic, reader)
    assert await may_join(project, topic, ada)


async def test_a_deleted_document_is_followed_by_nobody(project: Project) -> None:
    ada = await project.user()
    document = await project.upload(ada)
    await project.admin.execute("insert into ingest.tombstones (object_id, error) values ($1, 'x')", document)
    assert not await may_join(project, f"document:{document}", ada)


async def test_only_operators_hear_of_all_jobs(project: Project) -> None:
    ada = await project.user()
    assert await may_join(project, "ops:jobs", ada, OPERATOR)
    assert not await may_join(project, "ops:jobs", ada)
    assert not await may_join(project, "ops:jobs", None)
    # What its owner can write makes nobody an operator.
    assert not await may_join(project, "ops:jobs", ada, {"user_metadata": {"sluice_role": "operator"}})
    assert not await may_join(project, "ops:jobs", ada, {"app_metadata": {"sluice_role": "admin"}})


@pytest.mark.parametrize(
    "topic",
    ["", "document:", "document:x", "document:%", "ops:", "ops:jobs ", "worker:ingest", "DOCUMENT:{id}",
     "document:{id}x", "document:{id}\n", "x:document:{id}", "document: {id}", "document:{id}' or true --"],
)  # fmt: skip
async def test_a_topic_that_is_not_exactly_one_of_ours_is_nobodys(project: Project, topic: str) -> None:
    ada = await project.user()
    document = await project.upload(ada)
    assert not await may_join(project, topic.replace("{id}", str(document)), ada, OPERATOR)


@pytest.mark.parametrize("who", ["owner", "operator", "anonymous"])
async def test_nobody_may_send(project: Project, who: str) -> None:
    ada = await project.user()
    topic = f"document:{await project.upload(ada)}"
    acting = {
        "owner": lambda: as_user(project.admin, ada),
        "operator": lambda: as_role(project.admin, "authenticated", OPERATOR | {"sub": str(ada)}),
        "anonymous": lambda: as_anonymous(project.admin),
    }[who]
    before = await project.owner.fetchval("select count(*) from realtime.messages")
    async with acting():
        await project.admin.execute("select set_config('realtime.topic', $1, true)", topic)
        # It never fails its caller, and nothing is written.
        await project.admin.execute("select realtime.send('{\"state\": \"completed\"}', 'progress', $1, true)", topic)
    assert await project.owner.fetchval("select count(*) from realtime.messages") == before
    async with acting():
        await project.admin.execute("select set_config('realtime.topic', $1, true)", topic)
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            await project.admin.execute(FORGED, topic)


async def test_realtime_asks_the_policies_also_for_a_document_that_does_not_exist(project: Project) -> None:
    assert not await may_join(project, f"document:{uuid4()}", await project.user())


async def test_postgres_changes_are_published_for_jobs_alone(project: Project) -> None:
    rows = await project.owner.fetch(
        "select schemaname, tablename from pg_publication_tables where pubname = 'supabase_realtime'"
    )
    assert [tuple(row) for row in rows] == [("public", "jobs")]
