"""Live progress with the real clients: their own at once, nobody else's, and nothing that a client made up."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any
from uuid import UUID, uuid4

import numpy as np
import pytest

from local.stack import Stack
from tests.integration.following import (
    Heard,
    Mover,
    PythonFollower,
    SupabaseJsFollowers,
    python_follower,
    supabase_js_followers,
    token,
)
from tests.people import Person, Project
from worker.db.pool import Database
from worker.queue.broadcast import Broadcast, BroadcastPace

MOVES = 40
OPERATOR = {"app_metadata": {"sluice_role": "operator"}}
TEXT = "a sentence that no operator may read"


@pytest.fixture
async def js(stack: Stack) -> AsyncIterator[SupabaseJsFollowers]:
    """Followers with supabase-js."""
    async with supabase_js_followers(stack) as followers:
        yield followers


async def document_of(person: Person, project: Project) -> UUID:
    path = await person.upload(f"{uuid4()}.txt", TEXT.encode(), mime_type="text/plain")
    found: UUID = (await project.document(path))["id"]
    return found


async def moved(project: Project, document: UUID, moves: int = MOVES) -> Mover:
    mover = await Mover.begin(project.connection, document)
    for number in range(moves):
        await mover.move((number % 20) / 20 + 0.01, "embed" if number // 20 % 2 == 0 else "publish")
    await mover.complete()
    return mover


def latencies(heard: Heard, mover: Mover) -> list[float]:
    arrived = [at for kind, at, said in heard.lines if kind == "broadcast" and said["payload"]["state"] == "running"]
    assert len(arrived) == len(mover.commits)
    return [(at - commit) * 1000 for at, commit in zip(arrived, mover.commits, strict=True)]


def ended(heard: Heard) -> bool:
    return any(told.get("state") == "completed" for told in heard.payloads())


def refused(topic: str) -> str:
    return f"Unauthorized: You do not have permissions to read from this Channel topic: {topic}"


async def test_both_clients_hear_their_own_progress_within_moments_and_nobody_elses(
    stack: Stack, project: Project, ada: Person, bob: Person, js: SupabaseJsFollowers
) -> None:
    documents = [await document_of(person, project) for person in (ada, bob)]
    topics = [f"document:{document}" for document in documents]
    heard: list[Heard] = []
    followers: list[PythonFollower] = []
    async with (
        python_follower(stack, topics[0], token(stack, ada.id)) as ada_in_python,
        python_follower(stack, topics[1], token(stack, bob.id)) as bob_in_python,
    ):
        followers = [ada_in_python, bob_in_python]
        for topic, person in zip(topics, (ada, bob), strict=True):
            heard.append((await js.follow(topic, token(stack, person.id)))[1])
        for ears in (*heard, *(follower.heard for follower in followers)):
            await ears.state("SUBSCRIBED")

        movers = [await moved(project, document) for document in documents]

        for name, two in (("supabase-js", heard), ("realtime-py", [follower.heard for follower in followers])):
            times: list[float] = []
            for ears, mover in zip(two, movers, strict=True):
                await ears.until(ended)
                payloads = ears.payloads()
                assert {told["document_id"] for told in payloads} == {str(mover.document)}
                assert {said["event"] for said in ears.all("broadcast")} == {"progress"}
                counters = [told["counter"] for told in payloads]
                assert counters == sorted(set(counters))
                times += latencies(ears, mover)
            p50, p95 = np.percentile(times, [50, 95])
            print(f"{name}: {len(times)} messages, {p50:.1f} ms p50, {p95:.1f} ms p95 after the commit")
            assert p50 < 250


async def test_a_strangers_document_and_the_operators_channel_are_refused(
    stack: Stack, project: Project, ada: Person, bob: Person, js: SupabaseJsFollowers
) -> None:
    topic = f"document:{await document_of(ada, project)}"
    for wanted in (topic, "ops:jobs", "worker:ingest", "document:*"):
        _, heard = await js.follow(wanted, token(stack, bob.id))
        assert await heard.state("CHANNEL_ERROR") == refused(wanted)
        async with python_follower(stack, wanted, token(stack, bob.id)) as follower:
            assert refused(wanted) in await follower.heard.state("CHANNEL_ERROR")


async def test_who_has_not_signed_in_follows_nothing_of_anybody(
    stack: Stack, project: Project, ada: Person, js: SupabaseJsFollowers
) -> None:
    document = await document_of(ada, project)
    topic = f"document:{document}"
    _, private = await js.follow(topic, None)
    assert await private.state("CHANNEL_ERROR") == refused(topic)
    # A public channel may be joined by anybody, and nothing of ours is ever said there.
    _, public = await js.follow(topic, None, private=False)
    await public.state("SUBSCRIBED")
    _, witness = await js.follow(topic, token(stack, ada.id))
    await witness.state("SUBSCRIBED")
    await moved(project, document, 5)
    await witness.until(ended)
    assert public.all("broadcast") == []


@pytest.mark.parametrize(
    ("forge", "reason"),
    [
        (lambda good: good[:-6] + "AAAAAA", "JwtSignatureError: Failed to validate JWT signature"),
        (lambda good: "e30." + good.split(".", 1)[1], "MalformedJWT: The token provided is not a valid JWT"),
        (lambda good: "not a token", "MalformedJWT: The token provided is not a valid JWT"),
    ],
)
async def test_a_token_that_is_not_ours_joins_nothing(
    stack: Stack, project: Project, ada: Person, forge: Any, reason: str
) -> None:
    topic = f"document:{await document_of(ada, project)}"
    async with python_follower(stack, topic, forge(token(stack, ada.id))) as follower:
        assert reason in await follower.heard.state("CHANNEL_ERROR")


async def test_an_expired_token_joins_nothing_and_one_that_expires_ends_its_channel(
    stack: Stack, project: Project, ada: Person, js: SupabaseJsFollowers
) -> None:
    topic = f"document:{await document_of(ada, project)}"
    async with python_follower(stack, topic, token(stack, ada.id, seconds=-20)) as follower:
        assert "InvalidJWTToken: Token has expired" in await follower.heard.state("CHANNEL_ERROR")
    _, heard = await js.follow(topic, token(stack, ada.id, seconds=3))
    await heard.state("SUBSCRIBED")
    await heard.state("CLOSED")
    assert any(said["message"].startswith("Token has expired") for said in heard.all("system"))


async def test_progress_cannot_be_forged(stack: Stack, project: Project, ada: Person, js: SupabaseJsFollowers) -> None:
    document = await document_of(ada, project)
    topic = f"document:{document}"
    owner, heard = await js.follow(topic, token(stack, ada.id))
    _, witness = await js.follow(topic, token(stack, ada.id))
    for ears in (heard, witness):
        await ears.state("SUBSCRIBED")
    forged = {"document_id": str(document), "state": "completed", "counter": 2**60}
    await js.do("send", owner, event="progress", payload=forged)
    async with python_follower(stack, topic, token(stack, ada.id)) as follower:
        await follower.heard.state("SUBSCRIBED")
        await follower.channel.send_broadcast("progress", forged)
        await heard.until(lambda ears: bool(ears.all("sent")))
        assert heard.all("sent") == ["timed out"]  # dropped without a word, as the real server does
        await moved(project, document, 3)
        for ears in (heard, witness, follower.heard):
            await ears.until(ended)
            assert all(told["counter"] < 2**60 for told in ears.payloads())


async def test_the_secret_key_may_follow_and_send(stack: Stack, js: SupabaseJsFollowers) -> None:
    topic = f"worker:{uuid4()}"
    sender, heard = await js.follow(topic, None, key=stack.secret_key)
    _, witness = await js.follow(topic, None, key=stack.secret_key)
    for ears in (heard, witness):
        await ears.state("SUBSCRIBED")
    await js.do("send", sender, event="wake", payload={"ü": "€"})
    await witness.until(lambda ears: bool(ears.all("broadcast")))
    assert witness.payloads() == [{"ü": "€"}]
    await heard.until(lambda ears: ears.all("sent") == ["ok"])
    assert heard.all("broadcast") == []  # not its own


async def test_a_removed_member_hears_nothing_more_from_the_next_check_on(
    stack: Stack, project: Project, ada: Person, bob: Person, js: SupabaseJsFollowers
) -> None:
    tenant = await project.connection.fetchval("insert into public.tenants (name) values ('Acme') returning id")
    for person, role in ((ada, "editor"), (bob, "reader")):
        await project.connection.execute(
            "insert into public.tenant_members (tenant_id, user_id, role) values ($1, $2, $3)",
            tenant, UUID(person.id), role,
        )  # fmt: skip
    path = f"{tenant}/shared.txt"
    await ada.client.storage.from_("documents").upload(path, TEXT.encode(), {"content-type": "text/plain"})
    document = (await project.document(path))["id"]
    topic = f"document:{document}"
    name, heard = await js.follow(topic, token(stack, bob.id))
    _, witness = await js.follow(topic, token(stack, ada.id))
    for ears in (heard, witness):
        await ears.state("SUBSCRIBED")

    await project.connection.execute("delete from public.tenant_members where user_id = $1", UUID(bob.id))
    await js.do("refresh", name, token=token(stack, bob.id, seconds=3700))

    await heard.state("CLOSED")
    assert any(said["message"] == refused(topic).removeprefix("Unauthorized: ") for said in heard.all("system"))
    before = len(heard.all("broadcast"))
    await moved(project, document, 3)
    await witness.until(ended)
    assert len(heard.all("broadcast")) == before
    _, again = await js.follow(topic, token(stack, bob.id))
    assert await again.state("CHANNEL_ERROR") == refused(topic)


async def test_an_operator_hears_which_jobs_move_and_no_text_of_anybody(
    stack: Stack, project: Project, ada: Person, bob: Person, js: SupabaseJsFollowers
) -> None:
    _, heard = await js.follow("ops:jobs", token(stack, bob.id, **OPERATOR))
    await heard.state("SUBSCRIBED")
    async with python_follower(stack, "ops:jobs", token(stack, bob.id, **OPERATOR)) as follower:
        await follower.heard.state("SUBSCRIBED")
        document = await document_of(ada, project)
        job = await project.connection.fetchval("select id from public.jobs where document_id = $1", document)
        await moved(project, document, 3)
        for ears in (heard, follower.heard):
            # Uploaded, three moves, completed.
            await ears.until(lambda told: sum(job in said["job_ids"] for said in told.payloads()) == 5)
            told = json.dumps(ears.payloads())
            assert all(set(said) <= {"job_ids", "counter", "id"} for said in ears.payloads())
            assert TEXT not in told
            assert ada.id not in told


async def test_postgres_changes_of_jobs_reach_their_owner_and_nobody_else(
    stack: Stack, project: Project, ada: Person, bob: Person, js: SupabaseJsFollowers
) -> None:
    document = await document_of(ada, project)
    changes = {"event": "*", "schema": "public", "table": "jobs", "filter": f"document_id=eq.{document}"}
    follow = [(ada.id, token(stack, ada.id)), (bob.id, token(stack, bob.id))]
    heard = [(await js.follow(f"jobs-{user}", access, private=False, changes=changes))[1] for user, access in follow]
    for ears in heard:
        await ears.state("SUBSCRIBED")
        await ears.until(lambda told: any(said["message"] == "Subscribed to PostgreSQL" for said in told.all("system")))
    topic = f"document:{document}"
    async with python_follower(stack, topic, token(stack, ada.id), changes=f"document_id=eq.{document}") as follower:
        await follower.heard.state("SUBSCRIBED")
        await heard[0].until(lambda told: True)
        await moved(project, document, 3)
        await heard[0].until(lambda told: any(said["new"].get("state") == "completed" for said in told.all("change")))
        rows = [said["new"] for said in heard[0].all("change")]
        assert [row["state"] for row in rows] == ["running"] * 4 + ["completed"]
        assert {row["document_id"] for row in rows} == {str(document)}
        assert heard[0].all("change")[-1]["old"] == {"id": rows[0]["id"]}
        await follower.heard.until(lambda told: len(told.all("change")) == 5)
    assert heard[1].all("change") == []


async def test_when_messages_may_have_been_lost_clients_join_anew_and_hear_on(
    stack: Stack, project: Project, ada: Person, js: SupabaseJsFollowers
) -> None:
    document = await document_of(ada, project)
    _, heard = await js.follow(f"document:{document}", token(stack, ada.id))
    await heard.state("SUBSCRIBED")
    decoding = "from pg_stat_activity where application_name = 'realtime feed'"
    assert await project.connection.fetchval(f"select count(pg_terminate_backend(pid)) {decoding}") == 1
    await heard.until(lambda told: [said["state"] for said in told.all("state")].count("SUBSCRIBED") == 2)
    await moved(project, document, 3)
    await heard.until(ended)


async def test_a_table_that_is_not_published_says_so(stack: Stack, ada: Person, js: SupabaseJsFollowers) -> None:
    changes = {"event": "*", "schema": "public", "table": "chunks"}
    _, heard = await js.follow("chunks", token(stack, ada.id), private=False, changes=changes)
    await heard.until(lambda told: any("Unable to subscribe" in said["message"] for said in told.all("system")))


async def test_a_wrong_key_is_refused_before_there_is_a_connection(stack: Stack, ada: Person) -> None:
    url = f"{stack.api_url}/realtime/v1/websocket"
    for key, status in (("sb_publishable_of_another_project", 401), ("", 401), (stack.publishable_key, 426)):
        assert (await ada.http.get(url, params={"apikey": key})).status_code == status


async def test_a_worker_that_cannot_listen_is_woken_through_it(stack: Stack, ada: Person) -> None:
    db = await Database.open(stack.worker_database_url, size=2)
    pace = BroadcastPace(prove=0.5, proof=2)
    proven, woken = asyncio.Event(), asyncio.Event()
    hearing = asyncio.create_task(Broadcast(db, stack.api_url, stack.secret_key, pace=pace).hear(proven.set, woken.set))
    try:
        async with asyncio.timeout(20):
            await proven.wait()
            woken.clear()
            await ada.upload(f"{uuid4()}.txt", b"wake up", mime_type="text/plain")
            await woken.wait()
            await asyncio.sleep(1)  # it proves itself again meanwhile
        assert not hearing.done()
    finally:
        hearing.cancel()
        await asyncio.gather(hearing, return_exceptions=True)
        await db.close()
