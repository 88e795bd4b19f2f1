"""Limits of providers: a bucket that all workers share, on the database's clock."""

from __future__ import annotations

import asyncio
from datetime import timedelta

import asyncpg
import pytest

from tests.conftest import Database
from tests.database.project import Project

NOTHING = timedelta(0)
CLIENTS, TRIES = 16, 120


async def configure(project: Project, requests: int | None, tokens: int | None = None, key: str = "default") -> None:
    await project.owner.execute("select ingest.configure_rate_limit('vendor', $1, $2, $3)", requests, tokens, key)


async def take(project: Project, requests: int = 1, tokens: int = 0, key: str = "default") -> timedelta:
    wait: timedelta = await project.worker.fetchval(
        "select ingest.take_tokens('vendor', $1, $2, $3)", requests, tokens, key
    )
    return wait


async def pass_time(project: Project, by: timedelta) -> None:
    await project.owner.execute(
        "update ingest.rate_limits set refilled_at = refilled_at - $1::interval,"
        " blocked_until = blocked_until - $1::interval",
        by,
    )


async def granted(project: Project, *, requests: int = 1, tokens: int = 0) -> int:
    """Take until nothing is granted, and return how often it was."""
    count = 0
    while await take(project, requests, tokens) == NOTHING:
        count += 1
    return count


async def test_racing_clients_get_what_the_bucket_held_and_what_ran_in_meanwhile_and_no_more(
    project: Project, database: Database
) -> None:
    await configure(project, 6000)  # 100 a second; the bucket holds 1,000
    clients = [await database.connect("ingest_worker") for _ in range(CLIENTS)]

    async def race(client: asyncpg.Connection) -> int:
        waits = [await client.fetchval("select ingest.take_tokens('vendor', 1, 0)") for _ in range(TRIES)]
        return waits.count(NOTHING)

    began = await project.owner.fetchval(
        "update ingest.rate_limits set requests_left = 500, refilled_at = clock_timestamp() where provider = 'vendor'"
        " returning refilled_at"
    )
    got = sum(await asyncio.gather(*(race(client) for client in clients)))

    row = await project.owner.fetchrow(
        "select requests_left, refilled_at from ingest.rate_limits where provider = 'vendor'"
    )
    assert row is not None
    ran_in = 100 * (row["refilled_at"] - began).total_seconds()
    assert row["requests_left"] == pytest.approx(500 + ran_in - got, abs=0.01)  # none twice, none lost
    assert 500 <= got <= 500 + ran_in
    assert got < CLIENTS * TRIES


async def test_the_bucket_refills_by_the_time_that_passed_and_never_beyond_its_size(project: Project) -> None:
    await configure(project, 60)  # one a second, and ten at once
    assert await granted(project) == 10
    await pass_time(project, timedelta(seconds=3))
    assert await granted(project) == 3
    await pass_time(project, timedelta(hours=1))
    assert await granted(project) == 10


async def test_who_waits_as_long_as_told_is_granted(project: Project) -> None:
    await configure(project, 60)
    await granted(project)
    wait = await take(project, 4)
    assert timedelta(seconds=3) < wait <= timedelta(seconds=4)
    await pass_time(project, wait)
    assert await take(project, 4) == NOTHING


async def test_tokens_and_requests_are_both_limits_and_a_refusal_takes_neither(project: Project) -> None:
    await configure(project, 60, 600)  # ten requests and a minute's tokens at once
    assert await take(project, 1, 590) == NOTHING
    for _ in range(5):
        assert timedelta(seconds=7) < await take(project, 1, 90) <= timedelta(seconds=8)
    assert await take(project, 1, 10) == NOTHING
    assert await granted(project) == 8


async def test_what_is_larger_than_the_bucket_is_granted_when_it_is_full_and_leaves_it_in_debt(
    project: Project,
) -> None:
    await configure(project, None, 600)
    assert await take(project, 1, 1000) == NOTHING
    assert timedelta(seconds=39) < await take(project, 1, 1) <= timedelta(seconds=40.2)
    await pass_time(project, timedelta(seconds=41))
    assert await take(project, 1, 1) == NOTHING
    assert await take(project, 1, 1000) > timedelta(seconds=58)  # the bucket is not full


async def test_a_bucket_of_tokens_holds_a_minute_and_no_more(project: Project) -> None:
    await configure(project, None, 600)
    assert await take(project, 1, 600) == NOTHING
    await pass_time(project, timedelta(hours=1))
    assert await take(project, 1, 600) == NOTHING
    assert timedelta(seconds=9) < await take(project, 1, 100) <= timedelta(seconds=10)


async def test_a_block_stops_everybody_with_that_key_until_it_ends(project: Project) -> None:
    await configure(project, 600)
    await configure(project, 600, key="other")
    await project.worker.execute("select ingest.block_provider('vendor', '90 seconds')")
    await project.worker.execute("select ingest.block_provider('vendor', '5 seconds')")  # the longer one stays
    assert timedelta(seconds=85) < await take(project) <= timedelta(seconds=90)
    assert await take(project, key="other") == NOTHING
    await pass_time(project, timedelta(seconds=91))
    assert await take(project) == NOTHING


@pytest.mark.parametrize(("asked", "at_most"), [("10 years", 3600), ("-1 hour", 0)])
async def test_a_block_lasts_an_hour_at_most_whatever_a_server_says(project: Project, asked: str, at_most: int) -> None:
    await project.worker.execute(f"select ingest.block_provider('vendor', '{asked}')")
    assert timedelta(seconds=at_most - 10) < await take(project) <= timedelta(seconds=at_most)


async def test_a_key_that_nobody_limited_has_no_limits_also_after_a_block(project: Project) -> None:
    assert await take(project, 10**6, 10**6) == NOTHING
    await project.worker.execute("select ingest.block_provider('vendor', '1 second')")
    await pass_time(project, timedelta(seconds=2))
    assert await take(project, 10**6, 10**6) == NOTHING


async def test_new_limits_hold_at_once_and_give_nothing_away(project: Project) -> None:
    await configure(project, 600)  # a hundred at once
    await configure(project, 60)
    assert await granted(project) == 10
    await configure(project, 600)
    assert await granted(project) <= 5  # what ran in meanwhile at most
    await configure(project, None)
    assert await take(project, 10**6) == NOTHING


async def test_nobody_waits_for_another_key(project: Project, database: Database) -> None:
    await configure(project, 60)
    await configure(project, 60, key="other")
    holder = await database.connect("ingest_worker")
    async with holder.transaction():
        await holder.execute("select ingest.take_tokens('vendor')")
        await project.worker.execute("set lock_timeout = '50ms'")
        assert await take(project, key="other") == NOTHING


@pytest.mark.parametrize("amount", [-1, None])
async def test_a_senseless_amount_is_refused(project: Project, amount: int | None) -> None:
    with pytest.raises(asyncpg.InvalidParameterValueError):
        await project.worker.execute("select ingest.take_tokens('vendor', 1, $1)", amount)
