"""What is refused, throttled and limited in the batcher, whom that ends, and what is kept all the same."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from datetime import timedelta
from math import log2

import pytest

from tests.conftest import Database as MigratedDatabase
from tests.embeddings import PATH, answer, error, texts_of
from tests.integration.batching import ONE, SLOW, World, batching_world, keys, run, until
from tests.provider_double import Reply, Request
from worker.errors import Misconfigured, OverBudget, Rejected, StaleClaim, Superseded, Throttled, Transient, Unavailable
from worker.model import TenantId
from worker.pipeline import limits
from worker.pipeline.embed.embedder import Batching


@pytest.fixture
async def world(database: MigratedDatabase) -> AsyncIterator[World]:
    async with batching_world(database) as made:
        yield made


def refusing(*bad: str) -> Callable[[Request], Reply]:
    return lambda request: Reply(400, error()) if set(bad) & set(request.json["input"]) else answer(request)


@pytest.mark.parametrize(("sql", "raised"), [
    ("delete from ingest.leases", StaleClaim),
    ("update public.documents set generation = generation + 1", Superseded),
])  # fmt: skip
async def test_nothing_is_asked_for_a_claim_that_no_longer_stands(
    world: World, sql: str, raised: type[Exception]
) -> None:
    batcher, claim = world.batcher(), await world.claim()
    await world.sql.admin.execute(sql)
    with pytest.raises(raised):
        await run(batcher, claim, "a")
    assert world.double.requests == []


async def test_a_claim_without_budget_asks_for_nothing_and_what_has_vectors_needs_none(world: World) -> None:
    async def allow(_tenant: TenantId) -> None:
        raise OverBudget("budget_exhausted", "Today's budget is used up.", retry_after=3600)

    claim = await world.claim()
    with pytest.raises(OverBudget):
        await run(world.batcher(allow=allow), claim, "a")
    assert world.double.requests == []
    await run(world.batcher(), claim, "a")
    assert await run(world.batcher(allow=allow), claim, "a") == 0


async def test_one_bad_text_among_256_is_found_by_halving_and_all_the_others_are_kept(world: World) -> None:
    many = [f"text {n}" for n in range(255)]
    world.double.on("POST", PATH, refusing("bad"))
    batcher, good, bad = world.batcher(replace(SLOW, at_once=1)), await world.claim(), await world.claim()
    innocent = run(batcher, good, *many[:200])
    guilty = run(batcher, bad, *many[200:], "bad")

    assert await innocent == 200
    with pytest.raises(Rejected, match="embedding_refused"):
        await guilty
    await batcher.aclose()
    assert await world.kept(good.tenant_id) == keys(*many[:200])
    assert await world.kept(bad.tenant_id) == keys(*many[200:])
    assert len(world.double.requests) <= 2 * log2(256) + 1
    sent = texts_of(request for request in world.double.requests if "bad" not in request.json["input"])
    assert sorted(sent) == sorted(many)  # no innocent was paid twice


@pytest.mark.parametrize(
    ("place", "requests", "kept"),
    [
        (15, 6, 15),
        (0, 6, 0),  # the last is the probe: nothing was taken yet. Nobody pays for more of a rejected document.
    ],
)
async def test_a_half_that_must_hold_the_bad_text_is_not_asked_as_a_whole(
    world: World, place: int, requests: int, kept: int
) -> None:
    texts = [f"text {n}" for n in range(16)]
    world.double.on("POST", PATH, refusing(texts[place]))
    batcher, claim = world.batcher(), await world.claim()
    with pytest.raises(Rejected):
        await run(batcher, claim, *texts)
    await batcher.aclose()
    assert len(world.double.requests) == requests
    assert len(await world.kept(claim.tenant_id)) == kept


async def test_a_request_that_is_refused_for_its_size_alone_loses_nobody(world: World) -> None:
    world.double.on(
        "POST", PATH, lambda request: Reply(413, error()) if len(request.json["input"]) > 3 else answer(request)
    )
    claim = await world.claim()
    assert await run(world.batcher(), claim, *[f"text {n}" for n in range(20)]) == 20


async def test_a_429_blocks_the_provider_for_all_workers_and_snoozes_the_documents(world: World) -> None:
    world.double.on("POST", PATH, Reply(429, error(), {"retry-after": "86400"}))
    claim, other = await world.claim(), await world.claim()
    with pytest.raises(Throttled) as caught:
        await run(world.batcher(), claim, "a")
    assert caught.value.retry_after == 3600
    with pytest.raises(Throttled):
        await run(world.batcher(), other, "b")
    assert len(world.double.requests) == 1


async def test_a_429_with_a_short_wait_is_waited_for_and_nobody_snoozes(world: World) -> None:
    world.double.on("POST", PATH, Reply(429, error(), {"retry-after": "0.2"}), answer)
    claim = await world.claim()
    assert await run(world.batcher(), claim, "a", "b") == 2
    assert [len(request.json["input"]) for request in world.double.requests] == [2, 2]


async def test_who_leaves_while_a_429_is_waited_for_is_not_asked_for_again(world: World) -> None:
    world.double.on("POST", PATH, Reply(429, error(), {"retry-after": "0.5"}), answer)
    batcher, first, second = world.batcher(SLOW), await world.claim(), await world.claim()
    leaver, stayer = run(batcher, first, "mine"), run(batcher, second, "theirs")
    await until(lambda: len(world.double.requests) == 1 and not any(t.sent for t in batcher._known.values()))
    leaver.cancel()
    assert await stayer == 1
    assert texts_of(world.double.requests[1:]) == ["theirs"]
    assert batcher._known == {}


@pytest.mark.parametrize(("reply", "raised"), [
    (Reply(401, error()), Misconfigured), (Reply(500, error()), Transient), (Reply(503), Unavailable),
    (Reply(cut=0), Unavailable), (Reply(body={"data": []}), Transient),
])  # fmt: skip
async def test_an_error_ends_every_document_of_its_request_and_no_other(
    world: World, reply: Reply, raised: type[Exception]
) -> None:
    world.double.on("POST", PATH, lambda request: reply if "b" in request.json["input"] else answer(request))
    batcher, claim = world.batcher(replace(ONE, at_once=2)), await world.claim()
    other = await world.claim()
    fails, works = run(batcher, claim, "b"), run(batcher, other, "c")
    with pytest.raises(raised):
        await fails
    assert await works == 1
    assert batcher._known == {}


async def test_requests_wait_for_the_token_bucket_one_after_the_other_and_none_waits_in_vain(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "IN_PLACE_SECONDS", 0.9)  # half a second each fits, the others' turns do not
    await world.sql.owner.execute("select ingest.configure_rate_limit('openai', null, 1200)")  # 20 a second
    await world.sql.owner.execute("update ingest.rate_limits set tokens_left = 0, refilled_at = clock_timestamp()")
    batcher = world.batcher(Batching(texts=256, tokens=10, at_once=8, linger=0))
    claim = await world.claim()
    loop = asyncio.get_running_loop()
    began = loop.time()
    assert await run(batcher, claim, *[f"{n} is five tokens long" for n in range(12)]) == 12
    assert 2.5 < loop.time() - began < 6


async def test_a_document_that_gets_further_between_its_429s_is_not_given_up(world: World) -> None:
    claim = await world.claim()
    for number in range(3):
        await world.sql.owner.execute("update public.jobs set snoozing_since = now() - interval '23 hours 59 minutes'")
        world.double.on("POST", PATH, answer, Reply(429, error(), {"retry-after": "0"}))
        with pytest.raises(Throttled):
            await run(world.batcher(ONE), claim, *[f"text {n}" for n in range(9)])
        assert len(await world.kept(claim.tenant_id)) == number + 1
        assert (await world.sql.job(claim.job_id))["snoozing_since"] is None
        await world.db.fetchval(
            "snooze_job", claim.job_id, claim.number, timedelta(0), "code", "Wait.", "raw", True, False
        )
        await world.sql.owner.execute("update ingest.rate_limits set blocked_until = null")
        claim = await world.claim_again()

    # An attempt that gets nowhere does not count.
    await world.sql.owner.execute("update public.jobs set snoozing_since = now() - interval '1 hour'")
    world.double.on("POST", PATH, Reply(429, error(), {"retry-after": "0"}))
    with pytest.raises(Throttled):
        await run(world.batcher(ONE), claim, *[f"text {n}" for n in range(9)])
    assert (await world.sql.job(claim.job_id))["snoozing_since"] is not None
