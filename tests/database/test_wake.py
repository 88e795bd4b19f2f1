"""Wake-ups from the database: told once a transaction, broadcast while wanted, and never in an upload's way."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from datetime import timedelta
from uuid import UUID

import asyncpg
import pytest

from tests.callers import as_anonymous, as_user
from tests.database.project import Project

PROOF = "0123456789abcdef"


async def want(project: Project, seconds: float = 60) -> bool:
    able: bool = await project.worker.fetchval(
        "select ingest.want_broadcasts($1, $2)", timedelta(seconds=seconds), PROOF
    )
    return able


async def broadcasts(project: Project) -> list[str]:
    rows = await project.admin.fetch(
        "select event, topic, private, extension from realtime.messages"
        " where event not in ('progress', 'jobs') order by inserted_at"
    )
    assert all(tuple(row)[1:] == ("worker:ingest", True, "broadcast") for row in rows)
    return [row["event"] for row in rows if row["event"] != f"proof {PROOF}"]


async def test_nothing_is_broadcast_while_nobody_asks(project: Project) -> None:
    await project.upload(await project.user())
    assert await broadcasts(project) == []

    await want(project)
    await project.admin.execute("update ingest.broadcast_wanted set until = now()")
    await project.upload(await project.user())
    assert await broadcasts(project) == []


async def test_a_proof_is_broadcast_for_whoever_asks(project: Project) -> None:
    assert await want(project)
    row = await project.admin.fetchrow("select event, topic, private from realtime.messages")
    assert tuple(row) == (f"proof {PROOF}", "worker:ingest", True)


async def test_asking_again_never_shortens_what_was_asked_for(project: Project) -> None:
    await want(project, 600)
    await want(project, 10)
    assert await project.owner.fetchval("select until > now() + interval '9 minutes' from ingest.broadcast_wanted")


@pytest.mark.parametrize(("seconds", "proof"), [(0.5, PROOF), (3600, PROOF), (60, "' or 1"), (60, None)])
async def test_what_is_asked_for_is_bounded(project: Project, seconds: float, proof: str | None) -> None:
    with pytest.raises(asyncpg.InvalidParameterValueError):
        await project.worker.fetchval("select ingest.want_broadcasts($1, $2)", timedelta(seconds=seconds), proof)


async def test_many_jobs_of_one_transaction_wake_once_and_those_of_the_next_again(project: Project) -> None:
    await want(project)
    user = await project.user()
    await project.enqueue(user, 50)
    assert await broadcasts(project) == ["wake"]
    await project.enqueue(user, 50)
    assert await broadcasts(project) == ["wake", "wake"]


async def test_a_wake_up_that_was_rolled_back_does_not_stand_for_a_later_one(project: Project) -> None:
    await want(project)
    user = await project.user()
    heard = []
    await project.admin.add_listener("ingest_wake", lambda *about: heard.append(about))
    async with project.owner.transaction():
        undone = project.owner.transaction()
        await undone.start()
        await project.enqueue(user)
        await undone.rollback()
        await project.enqueue(user)
    assert await broadcasts(project) == ["wake"]
    await project.admin.fetchval("select 1")
    assert len(heard) == 1


async def released(project: Project) -> None:
    claim = await project.claim_one()
    await want(project)
    await project.worker.fetch(
        "select ingest.release_jobs($1, $2, 'worker_stopped')", [claim["job_id"]], [claim["claim"]]
    )


async def rescued(project: Project) -> None:
    await project.claim_one()
    await want(project)
    await project.owner.execute("update ingest.leases set expires_at = now() - interval '1 second'")
    await project.worker.fetch("select * from ingest.rescue_jobs()")


async def parsed(project: Project) -> None:
    claim = await project.claim_one()
    await project.begin(claim)
    parse = await project.begin_parse(claim, "the same bytes")
    await project.upload(claim["tenant_id"], "b.txt")
    other = await project.claim_one()
    await project.begin(other)
    assert (await project.begin_parse(other, "the same bytes"))["outcome"] == "taken"
    await project.worker.fetchval(
        "select ingest.snooze_job($1, $2, '1 hour', 'parse_in_progress', 'Later.', null, false)",
        other["job_id"], other["claim"],
    )  # fmt: skip
    await want(project)
    await project.finish_parse(claim, parse["parse_id"], ["the same bytes"])


@pytest.mark.parametrize("freed", [released, rescued, parsed])
async def test_every_way_in_which_a_job_becomes_available_wakes(
    project: Project, freed: Callable[[Project], Awaitable[None]]
) -> None:
    await project.upload(await project.user())
    await freed(project)
    assert await broadcasts(project) == ["wake"]
    await project.claim_one()


async def no_schema(project: Project) -> None:
    await project.admin.execute("drop schema realtime cascade")


async def no_right(project: Project) -> None:
    await project.admin.execute(
        "revoke all on schema realtime from postgres, anon, authenticated, service_role, public"
    )


async def broken(project: Project) -> None:
    await project.admin.execute(
        "create or replace function realtime.send(payload jsonb, event text, topic text, private boolean default true)"
        " returns void language plpgsql as $$ begin raise exception 'broken on purpose'; end $$"
    )


async def no_partition(project: Project) -> None:
    await project.admin.execute("drop table realtime.messages_default")


@pytest.mark.parametrize("wrong", [no_schema, no_right, broken, no_partition])
async def test_whatever_is_wrong_with_realtime_uploads_pass(
    project: Project, wrong: Callable[[Project], Awaitable[None]]
) -> None:
    await want(project)
    await wrong(project)
    await project.upload(await project.user())
    assert len(await project.claim()) == 1
    assert await project.owner.fetchval("select count(*) from ingest.trigger_failures") == 0
    if wrong is not no_partition:  # there realtime.send swallows it, and the proof never arrives
        assert not await want(project)


async def test_an_upload_waits_a_fifth_of_a_second_at_most_for_a_partition_that_is_made(project: Project) -> None:
    await want(project)
    user = await project.user()
    maker = await project.database.connect("supabase_admin")
    transaction = maker.transaction()
    await transaction.start()
    await maker.execute("lock table realtime.messages in access exclusive mode")
    began = asyncio.get_running_loop().time()
    await project.upload(user)
    took = asyncio.get_running_loop().time() - began
    await transaction.rollback()
    assert 0.15 < took < 1
    assert len(await project.claim()) == 1
    assert await broadcasts(project) == []


@pytest.mark.parametrize("acting", ["user", "anonymous"])
async def test_nobody_but_the_service_may_hear_or_send_on_the_workers_topic(project: Project, acting: str) -> None:
    await want(project)
    user: UUID = await project.user()
    admin = project.admin
    # What Realtime does to judge a private channel: the caller's role, the topic as a setting, rolled back.
    async with as_user(admin, user) if acting == "user" else as_anonymous(admin):
        await admin.execute("set local realtime.topic = 'worker:ingest'")
        assert await admin.fetchval("select count(*) from realtime.messages") == 0
    async with as_user(admin, user) if acting == "user" else as_anonymous(admin):
        await admin.execute("set local realtime.topic = 'worker:ingest'")
        probe = "insert into realtime.messages (topic, extension) values ('worker:ingest', 'broadcast')"
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            await admin.execute(probe)
