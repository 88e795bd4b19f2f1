"""Operators and editors: who retries, cancels, pauses and reads what, and what is written down of it."""

from __future__ import annotations

import asyncio
import json
from datetime import timedelta
from typing import Any
from uuid import UUID, uuid4

import asyncpg
import pytest

from tests.callers import as_anonymous, as_role, as_service, as_user
from tests.conftest import Database
from tests.database.people import FORBIDDEN, NOTHING_TO_RETRY, WRONG, as_operator, call, refused
from tests.database.project import LEASE, STALE, Project

RETRY, CANCEL = "select public.retry_job($1)", "select public.cancel_job($1)"
OPERATORS_ONLY = (
    "select public.pause_queue()",
    "select public.resume_queue()",
    "select * from public.job_details(1)",
    "select * from public.retry_jobs('internal')",
    "select * from public.cancel_jobs('internal')",
)


async def discarded(project: Project, tenant: UUID, name: str = "a.txt", code: str = "unreadable") -> int:
    """Upload a file whose job is given up; return the job."""
    await project.upload(tenant, name)
    claim = await project.claim_one()
    await project.worker.execute(
        "select ingest.discard_job($1, $2, $3, 'No.', 'raw')", claim["job_id"], claim["claim"], code
    )
    job: int = claim["job_id"]
    return job


async def audit(project: Project) -> list[tuple[str, str, int]]:
    rows = await project.owner.fetch("select action, acted_as, affected from ingest.audit order by id")
    return [tuple(row) for row in rows]


def pretender(claims: dict[str, object]) -> Any:
    return lambda connection: as_role(
        connection, "authenticated", {"sub": str(uuid4()), "role": "authenticated"} | claims
    )


PRETENDERS = {
    "anonymous": as_anonymous,
    "service": as_service,
    "user": pretender({}),
    "user_metadata": pretender({"user_metadata": {"sluice_role": "operator"}}),
    "top level": pretender({"sluice_role": "operator"}),
    "other role": pretender({"app_metadata": {"sluice_role": "operators"}}),
    "role in a list": pretender({"app_metadata": {"sluice_role": ["operator"]}}),
    "text for an object": pretender({"app_metadata": '{"sluice_role": "operator"}'}),
    "no subject": lambda connection: as_role(
        connection, "authenticated", {"role": "authenticated", "app_metadata": {"sluice_role": "operator"}}
    ),
}


@pytest.mark.parametrize("name", PRETENDERS)
async def test_nobody_but_an_operator_does_what_operators_do(project: Project, name: str) -> None:
    job = await discarded(project, await project.user())
    for sql in OPERATORS_ONLY:
        assert await refused(project, PRETENDERS[name](project.admin), sql) == FORBIDDEN, sql
    for sql in (RETRY, CANCEL):
        assert await refused(project, PRETENDERS[name](project.admin), sql, job) == FORBIDDEN, sql
    assert await audit(project) == []


async def test_an_operator_does_it_all_and_each_act_is_written_down(project: Project) -> None:
    job = await discarded(project, await project.user())
    operator = uuid4()
    for sql in OPERATORS_ONLY:
        assert await refused(project, as_operator(project.admin, operator), sql) == "allowed", sql
    await call(project, as_operator(project.admin, operator), RETRY, job)
    assert await call(project, as_operator(project.admin, operator), CANCEL, job)
    assert await audit(project) == [
        ("pause_queue", "operator", 1), ("resume_queue", "operator", 1), ("retry_jobs", "operator", 0),
        ("cancel_jobs", "operator", 0), ("retry_job", "operator", 1), ("cancel_job", "operator", 1),
    ]  # fmt: skip
    assert await project.owner.fetchval("select array_agg(distinct actor) from ingest.audit") == [operator]


async def test_operators_read_all_jobs_and_events_and_nothing_that_says_what_is_in_a_file(project: Project) -> None:
    user = await project.user()
    await project.ready(user, "a.txt", "text")
    async with as_operator(project.admin):
        for table in ("jobs", "job_events"):
            assert await project.admin.fetchval(f"select count(*) from public.{table}") > 0, table
        for table in ("public.documents", "public.chunks", "public.pages", "public.tenants", "public.tenant_members",
                      "public.usage", "ingest.embeddings", "storage.objects"):  # fmt: skip
            shown = await project.admin.fetchval(f"select count(*) from {table} t where to_jsonb(t)::text ~ $1",
                                                 str(user))  # fmt: skip
            assert shown == 0, table
    async with as_user(project.admin, uuid4()):
        assert await project.admin.fetchval("select count(*) from public.jobs") == 0


@pytest.mark.parametrize("role", ["reader", "editor", "admin"])
async def test_an_editor_retries_and_cancels_the_jobs_of_their_own_files(project: Project, role: str) -> None:
    member = await project.user()
    tenant = await project.organisation(**{role: member})
    job = await discarded(project, tenant)
    allowed = role != "reader"
    assert await refused(project, member, RETRY, job) == ("allowed" if allowed else FORBIDDEN)
    if allowed:
        assert (await project.job(job))["state"] == "available"
        detail = await project.owner.fetchval("select detail from public.job_events where event = 'retry'")
        assert json.loads(detail) == {"by": "member"}
    else:
        await project.worker.execute("select ingest.retry_discarded($1)", job)
    assert await refused(project, member, CANCEL, job) == ("allowed" if allowed else FORBIDDEN)
    assert (await project.job(job))["state"] == ("cancelled" if allowed else "available")
    assert await audit(project) == ([("retry_job", "member", 1), ("cancel_job", "member", 1)] if allowed else [])


async def test_anothers_job_and_one_that_is_not_there_sound_the_same(project: Project) -> None:
    job, stranger = await discarded(project, await project.user()), await project.user()
    for sql in (RETRY, CANCEL):
        said = []
        for asked in (job, 999999):
            with pytest.raises(asyncpg.InsufficientPrivilegeError) as refusal:
                await call(project, stranger, sql, asked)
            said.append(str(refusal.value).replace(str(asked), "…"))
        assert said[0] == said[1]


async def test_a_job_that_cannot_be_retried_says_why_and_nothing_is_written_down(project: Project) -> None:
    user = await project.user()
    await project.ready(user, "a.txt", "text")
    job = await project.owner.fetchval("select id from public.jobs")
    assert await refused(project, user, RETRY, job) == NOTHING_TO_RETRY
    assert not await call(project, user, CANCEL, job)
    assert await audit(project) == []


async def test_a_waiting_job_that_was_cancelled_is_never_claimed(project: Project) -> None:
    user = await project.user()
    stored = await project.upload(user)
    job = await project.owner.fetchval("select id from public.jobs")
    assert await call(project, user, CANCEL, job)
    assert await project.claim() == []
    document = await project.told(stored)
    assert (document["state"], document["error_code"]) == ("cancelled", "cancelled")
    assert await project.events(job) == ["enqueue", "cancel"]


async def test_a_running_job_that_is_cancelled_stops_at_its_next_step(project: Project) -> None:
    user = await project.user()
    await project.upload(user)
    claim = await project.claim_one()
    await project.begin(claim)
    held = (claim["job_id"], claim["claim"])
    assert await call(project, as_operator(project.admin), CANCEL, claim["job_id"])
    renewed = await project.worker.fetch("select * from ingest.renew_leases(array[$1::bigint], array[$2::bigint], $3)",
                                         *held, LEASE)  # fmt: skip
    assert renewed == []  # lost: the worker ends the attempt
    with pytest.raises(asyncpg.PostgresError) as stale:
        await project.worker.execute("select ingest.hold_current($1, $2)", *held)
    assert stale.value.sqlstate == STALE
    assert await project.worker.fetchval("select ingest.retry_job($1, $2, '1 s', 'x', 'x', 'x')", *held) is None
    assert (await project.job(claim["job_id"]))["state"] == "cancelled"
    assert await project.owner.fetchval("select count(*) from ingest.leases") == 0


async def test_a_cancel_waits_for_the_publish_that_holds_the_lease_and_finds_it_done(
    project: Project, database: Database
) -> None:
    user = await project.user()
    await project.upload(user)
    claim = await project.claim_one()
    parse = await project.prepare(claim, ["text"])
    other = await database.connect("supabase_admin")

    async def cancel() -> Any:
        async with as_user(other, user):
            return await other.fetchval(CANCEL, claim["job_id"])

    transaction = project.worker.transaction()
    await transaction.start()
    await project.place_chunks(["text"])
    assert await project.publish_placed(claim, parse) == "published"
    cancelling = asyncio.create_task(cancel())
    assert await project.waits(cancelling, other)
    await transaction.commit()
    assert await cancelling is False
    assert (await project.job(claim["job_id"]))["state"] == "completed"


async def test_bulk_forms_work_by_code_tenant_state_and_age_up_to_a_limit(project: Project) -> None:
    one, two = await project.user(), await project.user()
    jobs = [
        await discarded(project, one, "a.txt", "unreadable"),
        await discarded(project, one, "b.txt", "encrypted"),
        await discarded(project, two, "c.txt", "unreadable"),
    ]
    await project.owner.execute("update public.jobs set finalized_at = now() - interval '1 day' where id = $1", jobs[2])

    async def retried(**filters: Any) -> list[int]:
        names = ", ".join(f"{name} => ${number}" for number, name in enumerate(filters, 1))
        async with as_operator(project.admin):
            row = await project.admin.fetchrow(f"select * from public.retry_jobs({names})", *filters.values())
        assert row is not None
        back = await project.owner.fetch("select id from public.jobs where state = 'available' order by id")
        assert row["done"] == len(back)
        async with as_operator(project.admin):
            await project.admin.execute("select * from public.cancel_jobs(state => 'available')")
        await project.owner.execute("update public.jobs set state = 'discarded' where state = 'cancelled'")
        await project.owner.execute("update public.jobs set error_code = case when id = $1 then 'encrypted'"
                                    " else 'unreadable' end, finalized_at = case when id = $2"
                                    " then now() - interval '1 day' else now() end", jobs[1], jobs[2])  # fmt: skip
        return [row["id"] for row in back]

    # `discarded` to `cancelled` and back is not an arrow of the picture: switch the guard off here.
    await project.owner.execute("alter table public.jobs disable trigger refuse_transition")
    assert await retried(code="unreadable") == [jobs[0], jobs[2]]
    assert await retried(tenant=one) == jobs[:2]
    assert await retried(state="discarded", at_most=1) == jobs[:1]
    assert await retried(older_than=timedelta(hours=1)) == [jobs[2]]
    assert await retried(code="unreadable", tenant=two) == [jobs[2]]
    assert await retried(state="cancelled") == []


@pytest.mark.parametrize(
    "sql",
    [
        "select * from public.retry_jobs()",
        "select * from public.cancel_jobs()",
        "select * from public.retry_jobs('x', at_most => 1001)",
        "select * from public.cancel_jobs('x', at_most => 0)",
        "select * from public.retry_jobs(state => 'completed')",
        "select * from public.cancel_jobs(state => 'discarded')",
        "select * from public.cancel_jobs(older_than => '-1 day')",
        "select public.pause_queue('nothing')",
    ],
)
async def test_a_bulk_form_that_says_nothing_or_too_much_is_refused(project: Project, sql: str) -> None:
    assert await refused(project, as_operator(project.admin), sql) == WRONG


async def test_a_bulk_form_steps_around_what_somebody_holds(project: Project, database: Database) -> None:
    user = await project.user()
    gone, held = await discarded(project, user, "a.txt"), await discarded(project, user, "b.txt")
    transaction = project.owner.transaction()
    await transaction.start()
    await project.owner.execute("select 1 from public.documents where id = (select document_id from public.jobs"
                                " where id = $1) for no key update", held)  # fmt: skip
    async with as_operator(project.admin):
        row = await project.admin.fetchrow("select * from public.retry_jobs('unreadable')")
    await transaction.rollback()
    assert row is not None
    assert (row["done"], row["skipped"]) == (1, 1)
    assert [(await project.job(job))["state"] for job in (gone, held)] == ["available", "discarded"]


async def test_a_bulk_cancel_takes_the_leases_too_and_leaves_others_alone(project: Project) -> None:
    one, two = await project.user(), await project.user()
    await project.upload(one, "a.txt")
    await project.upload(one, "b.txt")
    await project.upload(two, "c.txt")
    await project.claim(limit=2)
    async with as_operator(project.admin):
        row = await project.admin.fetchrow("select * from public.cancel_jobs(tenant => $1)", one)
    assert row is not None
    assert (row["done"], row["skipped"]) == (2, 0)
    states = await project.owner.fetch("select tenant_id, state from public.jobs order by id")
    assert [row["state"] for row in states if row["tenant_id"] == one] == ["cancelled"] * 2
    assert [row["state"] for row in states if row["tenant_id"] == two] != ["cancelled"]
    leased = await project.owner.fetch("select tenant_id from ingest.leases")
    assert one not in {row["tenant_id"] for row in leased}


async def test_a_paused_queue_gives_out_nothing_until_it_is_resumed(project: Project) -> None:
    await project.upload(await project.user())
    assert await call(project, as_operator(project.admin), "select public.pause_queue()") is not None
    assert await project.claim() == []
    assert await call(project, as_operator(project.admin), "select public.resume_queue()")
    assert len(await project.claim()) == 1


async def test_operators_read_raw_errors_and_worker_ids_of_a_job(project: Project) -> None:
    job = await discarded(project, await project.user())
    async with as_operator(project.admin):
        row = await project.admin.fetchrow("select * from public.job_details($1)", job)
        assert row is not None
        assert (row["raw_error"], row["lease_expires_at"]) == ("raw", None)
        assert row["worker_id"] is not None
        assert await project.admin.fetch("select * from public.job_details(999999)") == []


async def test_the_audit_is_append_only_and_for_operators(project: Project) -> None:
    await call(project, as_operator(project.admin), "select public.pause_queue()")
    for statement in ("update ingest.audit set affected = 0", "delete from ingest.audit", "truncate ingest.audit"):
        for connection in (project.owner, project.admin):
            with pytest.raises(asyncpg.InsufficientPrivilegeError, match="append-only"):
                await connection.execute(statement)
    assert await call(project, as_operator(project.admin), "select count(*) from public.audit") == 1
    assert await call(project, await project.user(), "select count(*) from public.audit") == 0
    write = "insert into ingest.audit (acted_as, action, affected) values ('operator', 'x', 1)"
    assert await refused(project, as_operator(project.admin), write) == FORBIDDEN


async def test_bulk_retries_and_overwrites_at_the_same_time_never_deadlock(
    project: Project, database: Database
) -> None:
    user, other = await project.user(), await database.connect("supabase_admin")
    stored = [await project.upload(user, f"{number}.txt") for number in range(8)]

    async def retry() -> None:
        for _ in range(6):
            async with as_operator(other):
                await other.execute("select * from public.retry_jobs(tenant => $1)", user)

    async def overwrite() -> None:
        for document in reversed(stored):
            await project.overwrite(document)

    for _ in range(5):
        claims = await project.claim(limit=100)
        await project.worker.execute(
            "select ingest.settle_jobs($1, $2, 'discard', p_code => 'x', p_message => 'x')",
            [row["job_id"] for row in claims], [row["claim"] for row in claims],
        )  # fmt: skip
        await asyncio.gather(retry(), overwrite())
    assert await project.owner.fetch("select * from ingest.trigger_failures") == []
    # A retry that came just before an overwrite leaves its job behind: superseded, cancelled when it is claimed.
    live = await project.owner.fetch("select generation from public.jobs where state = 'available'")
    assert [row["generation"] for row in live].count(6) == 8


async def test_claims_and_cancels_at_the_same_time_leave_no_lease_without_its_job(
    project: Project, database: Database
) -> None:
    tenant, other = await project.user(), await database.connect("supabase_admin")
    jobs = await project.enqueue(tenant, 60)

    async def cancel() -> None:
        for job in jobs:
            async with as_operator(other):
                await other.execute(CANCEL, job)

    async def claim() -> None:
        for _ in range(60):
            await project.claim(limit=1)

    await asyncio.gather(cancel(), claim())
    assert await project.owner.fetchval("select count(*) from public.jobs where state = 'cancelled'") == 60
    assert await project.owner.fetchval("select count(*) from ingest.leases") == 0
    assert await project.claim() == []
