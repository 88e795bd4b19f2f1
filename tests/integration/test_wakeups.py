"""Wake-ups: LISTEN where it is heard, else Realtime whatever happens to it, else asking often."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from typing import Any
from uuid import uuid4

import pytest
from loguru import logger

from tests.conftest import Database as MigratedDatabase
from tests.database.project import LEASE, Project
from tests.realtime_server import RealtimeServer
from worker.db.pool import Database
from worker.queue.broadcast import Broadcast, BroadcastPace
from worker.queue.listener import Listener, ListenPace
from worker.queue.wakeups import Patience, Wakeups, Way

KEY = "sb_secret_never_to_be_logged"
PACE = BroadcastPace(join=2, watch=0.1, prove=0.3, proof=0.2, recycle=60, close=0.2)
WORKER = uuid4()
PATIENCE = Patience(first=0.05, listen_most=0.2, realtime_most=0.2, for_long=30, settled=0)


class World:
    """A worker's wake-ups, a claimer that waits for them, and all that they hear."""

    def __init__(self, sql: Project, db: Database, database: MigratedDatabase, server: RealtimeServer) -> None:
        self.sql = sql
        self.db = db
        self.server = server
        self.listen_url = database.url("ingest_worker")
        # LISTEN is accepted there and nothing is ever heard: notifications stay in their database.
        self.deaf_url = self.listen_url.replace(f"/{database.name}", "/postgres")
        self.claimed: asyncio.Queue[int] = asyncio.Queue()
        self.said: list[dict[str, Any]] = []

    @contextlib.asynccontextmanager
    async def running(
        self,
        url: str | None = None,
        pace: BroadcastPace = PACE,
        patience: Patience = PATIENCE,
        poll_seconds: float = 300,
    ) -> AsyncIterator[Wakeups]:
        """Run wake-ups and the claimer."""
        listener = Listener(self.db, url or self.deaf_url, name="DATABASE_URL", pace=ListenPace(proof=0.1, alive=0.2))
        wakeups = Wakeups(
            listener, Broadcast(self.db, self.server.url, KEY, pace=pace),
            poll_seconds=poll_seconds, randomness=random.Random(1), patience=patience,
        )  # fmt: skip
        tasks = [asyncio.create_task(wakeups.run()), asyncio.create_task(self._claim(wakeups))]
        try:
            yield wakeups
        finally:
            for task in tasks:
                task.cancel()
            for ended in await asyncio.gather(*tasks, return_exceptions=True):
                assert isinstance(ended, asyncio.CancelledError)

    async def _claim(self, wakeups: Wakeups) -> None:
        while True:
            await wakeups.wait()
            for row in await self.db.fetch("claim_jobs", WORKER, 10, LEASE, 100):
                self.claimed.put_nowait(row["job_id"])

    async def upload(self) -> None:
        """Upload a file."""
        await self.sql.upload(await self.sql.user())

    async def starts(self, within: float) -> None:
        """See that exactly one job is claimed within so many seconds."""
        async with asyncio.timeout(within):
            await self.claimed.get()
        assert self.claimed.empty()

    def ways(self) -> list[str]:
        """What was said about the ways, in order."""
        return [line["way"] for line in self.said if "way" in line]


async def until(true: Callable[[], bool], seconds: float = 10) -> None:
    async with asyncio.timeout(seconds):
        while not true():  # noqa: ASYNC110 - what is watched here has no event
            await asyncio.sleep(0.005)


async def becomes(wakeups: Wakeups, way: Way) -> None:
    await until(lambda: wakeups.way == way)


@pytest.fixture
async def world(database: MigratedDatabase) -> AsyncIterator[World]:
    """A migrated database, its Realtime, and a worker's pool."""
    sql = await Project(database).open()
    server = RealtimeServer(KEY)
    await server.start()
    await server.follow(await database.connect("supabase_admin"))
    db = await Database.open(database.url("ingest_worker"), size=3)
    made = World(sql, db, database, server)
    sink = logger.add(lambda message: made.said.append(message.record["extra"] | {"event": message.record["message"]}))
    yield made
    logger.remove(sink)
    await db.close()
    await server.stop()


async def wanted(world: World) -> bool:
    found: bool = await world.sql.owner.fetchval(
        "select exists (select from ingest.broadcast_wanted where until > now())"
    )
    return found


async def test_listen_serves_where_it_is_heard_and_nothing_is_broadcast(world: World) -> None:
    async with world.running(world.listen_url) as wakeups:
        await becomes(wakeups, "listen")
        await world.upload()
        await world.starts(within=2)

    assert world.ways() == ["listen"]
    assert world.server.joins == 0
    assert await world.sql.admin.fetchval("select count(*) from realtime.messages where topic = 'worker:ingest'") == 0


async def test_where_listen_is_deaf_realtime_is_proven_and_serves(world: World) -> None:
    async with world.running() as wakeups:
        await becomes(wakeups, "realtime")
        await world.upload()
        await world.starts(within=2)

    (line,) = (line for line in world.said if "way" in line)
    assert line["event"] == "wake-ups come by Supabase Realtime"
    assert "DATABASE_URL leads through a transaction pooler" in line["why"]
    assert "Set LISTEN_DATABASE_URL" in line["why"]


Death = Callable[[RealtimeServer], Awaitable[None] | None]
DEATHS: dict[str, Death] = {
    "closed in order": lambda server: server.close(),
    "socket broken": lambda server: server.kill(),
    "half-open": lambda server: server.half_open(),
    "channel closed": lambda server: server.close_channels(),
    "token expired": lambda server: server.expire_tokens(),
    "reading task dead": lambda server: server.poison(),
}


@pytest.mark.parametrize("death", DEATHS.values(), ids=DEATHS.keys())
async def test_after_each_death_what_was_missed_is_found_and_wake_ups_are_heard_again(
    world: World, death: Death
) -> None:
    async with world.running() as wakeups:
        await becomes(wakeups, "realtime")
        dying = death(world.server)
        if dying is not None:
            await dying
        await world.upload()  # nobody tells of this one
        await world.starts(within=2)
        await until(lambda: world.server.joins == 2 and wakeups.way == "realtime")
        await world.upload()
        await world.starts(within=0.5)

    assert world.ways() == ["realtime", "polling", "realtime"]


async def test_a_server_that_stays_away_longer_than_the_client_retries_is_found_again(world: World) -> None:
    async with world.running() as wakeups:
        await becomes(wakeups, "realtime")
        await world.server.stop()
        await becomes(wakeups, "polling")
        await world.upload()
        await world.starts(within=2)
        # The client by itself gives up after five tries. Each try of ours asks the database first.
        tries = "select count(*) from realtime.messages where event like 'proof %'"
        before = await world.sql.admin.fetchval(tries)
        async with asyncio.timeout(10):
            while await world.sql.admin.fetchval(tries) < before + 6:  # noqa: ASYNC110 - rows have no event
                await asyncio.sleep(0.02)
        await world.server.start()
        await becomes(wakeups, "realtime")
        await world.upload()
        await world.starts(within=0.5)


async def test_while_a_join_is_refused_jobs_are_looked_for_and_a_later_one_is_accepted(world: World) -> None:
    world.server.refuse = "ConnectionRateLimitReached: Too many connected users"
    async with world.running() as wakeups:
        await until(lambda: world.server.refusals >= 3)
        assert wakeups.way == "polling"
        await world.upload()
        await world.starts(within=2)
        world.server.refuse = None
        await becomes(wakeups, "realtime")
        await world.upload()
        await world.starts(within=0.5)

    assert any("Too many connected users" in line["why"] for line in world.said if line.get("way") == "polling")


async def test_a_channel_on_which_the_database_is_not_heard_does_not_serve(world: World) -> None:
    world.server.mute = True
    async with world.running() as wakeups:
        await until(lambda: world.ways() == ["polling"])
        assert world.server.joins >= 1
        await world.upload()
        await world.starts(within=2)
        world.server.mute = False
        await becomes(wakeups, "realtime")
        world.server.mute = True  # later too: the session proves itself again and again
        await becomes(wakeups, "polling")

    assert "nothing arrives of what the database broadcasts" in next(
        line["why"] for line in world.said if "why" in line
    )


async def test_a_session_is_renewed_after_its_time_without_a_word_and_nothing_is_missed(world: World) -> None:
    async with world.running(pace=replace(PACE, recycle=0.2)) as wakeups:
        await becomes(wakeups, "realtime")
        for _ in range(5):
            joins = world.server.joins
            await world.upload()
            await world.starts(within=1)
            await until(lambda joins=joins: world.server.joins > joins)  # type: ignore[misc]

    assert world.ways() == ["realtime"]


async def test_listen_takes_over_again_and_broadcasts_end(world: World) -> None:
    pace = replace(PACE, prove=0.5)
    async with world.running(pace=pace, patience=replace(PATIENCE, for_long=0.6)) as wakeups:
        await becomes(wakeups, "realtime")
        assert await wanted(world)
        wakeups._listener._url = world.listen_url  # type: ignore[attr-defined]
        await becomes(wakeups, "listen")
        await until(lambda: not world.server._joined)
        await world.upload()
        await world.starts(within=0.5)

    assert world.ways() == ["realtime", "listen"]
    assert not await wanted(world) or await world.sql.owner.fetchval(
        "select until < now() + interval '15 seconds' from ingest.broadcast_wanted"
    )


async def test_a_database_without_realtime_is_polled_and_uploads_pass(world: World) -> None:
    await world.sql.admin.execute("drop schema realtime cascade")
    async with world.running() as wakeups:
        await until(lambda: world.ways() == ["polling"])
        await world.upload()
        await world.starts(within=2)
        assert wakeups.way == "polling"

    assert "this database has no realtime.send" in world.said[-1]["why"]
    assert not await wanted(world)


@pytest.mark.parametrize("wrong", ["key", "address"])
async def test_a_wrong_key_or_address_is_told_in_words_without_the_key(
    world: World, wrong: str, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    if wrong == "key":
        world.server.key = "sb_secret_another"
    else:
        await world.server.stop()
    async with world.running():
        await until(lambda: world.ways() == ["polling"])

    expected = "refuses SUPABASE_SECRET_KEY (HTTP 401)" if wrong == "key" else "no connection (ConnectionRefusedError)"
    assert expected in world.said[-1]["why"]
    printed = capfd.readouterr()
    assert KEY not in f"{world.said}{printed.out}{printed.err}{caplog.text}"


async def test_a_listener_whose_backend_was_changed_notices_and_listens_again(world: World) -> None:
    async with world.running(world.listen_url) as wakeups:
        await becomes(wakeups, "listen")
        # What a session pooler does that reconnects by itself: the connection lives, its LISTEN is gone.
        told = world.ways()
        await world.sql.admin.execute(
            "select pg_terminate_backend(pid) from pg_stat_activity where application_name = 'sluice listener'"
        )
        await until(lambda: len(world.ways()) == len(told) + 2)
        await world.upload()
        await world.starts(within=0.5)

    assert world.ways() == ["listen", "polling", "listen"]
