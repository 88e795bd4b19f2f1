"""The batcher between documents and a provider: what is joined, what is paid for, and what is kept."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from dataclasses import replace

import numpy as np
import pytest

from tests.conftest import Database as MigratedDatabase
from tests.embeddings import FEW, MODEL, PATH, answer, embedder, texts_of, vector_of
from tests.integration.batching import ONE, SLOW, World, batching_world, chunks, keys, run, until
from tests.provider_double import Reply
from worker.db.pool import Database
from worker.errors import Transient
from worker.model import Claim, TenantId
from worker.pipeline.embed.batcher import Batcher
from worker.pipeline.embed.embedder import Batching
from worker.pipeline.embed.shares import shares
from worker.pipeline.embed.vectors import Vectors
from worker.pipeline.limits import Limits


@pytest.fixture
async def world(database: MigratedDatabase) -> AsyncIterator[World]:
    async with batching_world(database) as made:
        yield made


async def test_two_documents_of_two_tenants_are_one_request_and_each_gets_its_own_vectors(world: World) -> None:
    batcher, first, second = world.batcher(SLOW), await world.claim(), await world.claim()

    done = await asyncio.gather(run(batcher, first, "a one", "b two"), run(batcher, second, "c three words"))

    assert done == [2, 1]
    (request,) = world.double.requests
    assert sorted(request.json["input"]) == ["a one", "b two", "c three words"]
    assert await world.kept(first.tenant_id) == keys("a one", "b two")
    assert await world.kept(second.tenant_id) == keys("c three words")
    stored = await world.sql.worker.fetch("select content_sha256, embedding from ingest.embeddings")
    expected = {chunk.content_sha256: vector_of(chunk.content) for chunk in chunks("a one", "b two", "c three words")}
    for row in stored:
        assert np.allclose(row["embedding"].to_numpy(), expected[row["content_sha256"]], atol=1e-3)


async def test_a_lone_document_does_not_linger_and_two_wait_no_longer_than_that(world: World) -> None:
    batcher, first, second = world.batcher(replace(FEW, linger=2)), await world.claim(), await world.claim()
    loop = asyncio.get_running_loop()
    began = loop.time()
    assert await run(batcher, first, "alone") == 1
    assert loop.time() - began < 1.5

    began = loop.time()
    with batcher.order(first):  # another document is under way
        assert await run(batcher, second, "in company") == 1
    assert 1.9 < loop.time() - began < 10


async def test_a_full_request_does_not_linger(world: World) -> None:
    batcher, claim = world.batcher(replace(FEW, texts=3, linger=30)), await world.claim()
    assert await asyncio.wait_for(run(batcher, claim, *"abc"), 10) == 3


async def test_a_request_is_full_by_tokens_or_by_texts_and_so_many_are_under_way(world: World) -> None:
    batcher, claim = world.batcher(Batching(texts=4, tokens=10, at_once=2, linger=0)), await world.claim()
    world.double.on("POST", PATH, lambda request: replace(answer(request), seconds=0.05))

    await run(batcher, claim, *[f"{n} has four tokens" for n in range(6)], *[f"{n}" for n in range(8)])

    sizes = [len(request.json["input"]) for request in world.double.requests]
    assert sum(sizes) == 14
    assert max(sizes) <= 4
    assert all(len(" ".join(request.json["input"]).split()) <= 10 for request in world.double.requests)
    assert world.double.most_at_once == 2


async def test_a_small_document_does_not_wait_behind_a_large_one(world: World) -> None:
    reply = asyncio.Event()
    world.double.on("POST", PATH, lambda request: replace(answer(request), until=reply))
    batcher, large, small = world.batcher(replace(FEW, at_once=1)), await world.claim(), await world.claim()
    running = [run(batcher, large, *[f"large {n}" for n in range(600)])]
    await world.double.arrived(1)
    running.append(run(batcher, small, "small"))
    await until(lambda: (small.tenant_id, next(iter(keys("small")))) in batcher._known)
    reply.set()
    await asyncio.gather(*running)
    assert "small" in world.double.requests[1].json["input"]


async def test_the_same_text_in_flight_is_paid_once_in_a_tenant_and_by_each_tenant(world: World) -> None:
    reply = asyncio.Event()
    world.double.on("POST", PATH, lambda request: replace(answer(request), until=reply))
    batcher, first = world.batcher(), await world.claim()
    second, other = await world.claim(first.tenant_id), await world.claim()
    running = [run(batcher, first, "same", "mine")]
    await world.double.arrived(1)
    running += [run(batcher, second, "same", "theirs"), run(batcher, other, "same")]
    await world.double.arrived(2)
    reply.set()

    assert await asyncio.gather(*running) == [2, 1, 1]
    assert sorted(texts_of(world.double.requests)) == ["mine", "same", "same", "theirs"]


async def test_a_text_that_is_stored_while_another_document_looks_for_it_is_not_asked_again(world: World) -> None:
    batcher, first = world.batcher(), await world.claim()
    second = await world.claim(first.tenant_id)
    with batcher.order(second) as order:
        missing = await batcher.vectors.begin(second, list(keys("same")), 0.3, None)
        assert missing == keys("same")
        await run(batcher, first, "same")
        order.ask([(key, "same", 1) for key in missing])
        assert not order.texts
    assert len(world.double.requests) == 1


async def test_vectors_that_another_worker_stored_meanwhile_stay_and_the_others_are_kept(world: World) -> None:
    tenant = await world.sql.user()
    (first,) = keys("first")
    (second,) = keys("second")
    width = MODEL.dimensions
    vectors = Vectors(world.db, world.model_id)
    await vectors.store([(TenantId(tenant), first)], np.eye(1, width, 0, dtype=np.float32))
    await vectors.store([(TenantId(tenant), second), (tenant, first)], np.eye(2, width, 1, dtype=np.float32))
    assert await world.kept(tenant) == {first, second}
    ones = await world.sql.owner.fetch(
        "select content_sha256, (embedding::extensions.vector::real[])[1] as one from ingest.embeddings"
        " where tenant_id = $1", tenant,
    )  # fmt: skip
    assert {row["content_sha256"]: row["one"] for row in ones} == {first: 1.0, second: 0.0}


async def test_two_workers_that_store_the_same_vectors_in_another_order_both_succeed(world: World) -> None:
    tenant = TenantId(await world.sql.user())
    texts = sorted(keys(*(f"text {n}" for n in range(9))))
    vectors = Vectors(world.db, world.model_id)
    rows = np.eye(len(texts), MODEL.dimensions, dtype=np.float32)
    # A third one holds the key in the middle until both wait: in orders of their own each would have half of the keys.
    holding = world.sql.owner.transaction()
    await holding.start()
    await world.sql.owner.execute(
        "insert into ingest.embeddings (model_id, tenant_id, content_sha256, embedding)"
        " values ($1, $2, $3, array_fill(1::real, array[$4::int])::extensions.vector::extensions.halfvec)",
        world.model_id, tenant, texts[4], MODEL.dimensions,
    )  # fmt: skip
    storing = asyncio.gather(
        vectors.store([(tenant, key) for key in texts], rows),
        vectors.store([(tenant, key) for key in reversed(texts)], rows[::-1]),
    )
    waiting = (
        "select count(*) from pg_stat_activity where wait_event_type = 'Lock' and application_name = 'sluice worker'"
    )
    async with asyncio.timeout(20):
        while await world.sql.admin.fetchval(waiting) < 2:  # noqa: ASYNC110 - the database tells nobody
            await asyncio.sleep(0.01)
    await holding.rollback()
    await storing
    assert await world.kept(tenant) == set(texts)


async def test_the_first_reader_of_a_text_may_leave_and_the_next_one_pays(world: World) -> None:
    batcher, first = world.batcher(SLOW), await world.claim()
    second = await world.claim(first.tenant_id)
    leaving, staying = run(batcher, first, "same", "only the first"), run(batcher, second, "same")
    await until(lambda: [len(text.orders) for text in batcher._known.values()] == [2, 1])
    leaving.cancel()

    assert await staying == 1
    assert texts_of(world.double.requests) == ["same"]
    assert [(share.job_id, share.tokens) for share in world.spent] == [(second.job_id, 1)]
    assert batcher._known == {}


async def test_what_an_ended_job_has_not_sent_is_never_sent_and_what_it_sent_is_kept(world: World) -> None:
    reply = asyncio.Event()
    world.double.on("POST", PATH, lambda request: replace(answer(request), until=reply))
    batcher, claim = world.batcher(ONE), await world.claim()
    task = run(batcher, claim, "sent", "not sent", "nor this")
    await world.double.arrived(1)
    task.cancel()
    await asyncio.wait([task])
    reply.set()
    await batcher.aclose()

    assert len(world.double.requests) == 1
    assert len(await world.kept(claim.tenant_id)) == 1


async def test_each_documents_share_of_a_bill_adds_up_to_it(world: World) -> None:
    batcher, first, second = world.batcher(SLOW), await world.claim(), await world.claim()
    world.double.on("POST", PATH, lambda request: _billed(answer(request), 11))

    await asyncio.gather(run(batcher, first, "one two three", "four"), run(batcher, second, "five six seven"))

    assert sum(share.tokens for share in world.spent) == 11
    assert {share.job_id: share.tokens for share in world.spent} == {first.job_id: 6, second.job_id: 5}
    assert {(share.provider, share.model, share.pages) for share in world.spent} == {("openai", MODEL.name, 0)}
    assert {(share.claim, share.document_id, share.tenant_id) for share in world.spent} == {
        (claim.number, claim.document_id, claim.tenant_id) for claim in (first, second)
    }


async def test_an_answer_of_no_use_is_written_down_all_the_same(world: World) -> None:
    world.double.on("POST", PATH, Reply(body={"data": [], "usage": {"prompt_tokens": 7}}))
    claim = await world.claim()
    with pytest.raises(Transient):
        await run(world.batcher(), claim, "a")
    assert [(share.job_id, share.tokens) for share in world.spent] == [(claim.job_id, 7)]


def _billed(reply: Reply, tokens: int) -> Reply:
    return replace(reply, body={**reply.body, "usage": {"prompt_tokens": tokens}})


@pytest.mark.parametrize("billed", [0, 1, 2, 99, 100, 101, None])
def test_shares_add_up_whatever_was_billed(billed: int | None) -> None:
    claims = [Claim(n, 1, n, n, 1, 1, 5, 0) for n in range(7)]  # type: ignore[arg-type]
    counts = [(claims[n % 7], 3 * n + 1) for n in range(21)]
    divided = shares(MODEL, counts, billed)
    assert sum(share.tokens for share in divided) == (sum(n for _, n in counts) if billed is None else billed)
    assert all(share.tokens >= 0 for share in divided)
    assert len(divided) == 7


async def test_vectors_that_cannot_be_stored_at_once_are_stored_a_moment_later_and_not_asked_again(
    world: World,
) -> None:
    hasty = await Database.open(f"{world.sql.database.url('ingest_worker')}?lock_timeout=100ms", size=2)
    claim = await world.claim()
    batcher = Batcher(embedder(world.double), Vectors(hasty, world.model_id), Limits(hasty, random.Random(1)))
    async with world.sql.owner.transaction():
        await world.sql.owner.execute("lock table ingest.embeddings in share mode")
        task = run(batcher, claim, "a")
        await world.double.arrived(1)
        await asyncio.sleep(0.3)
        assert not task.done()

    assert await task == 1
    assert len(world.double.requests) == 1
    assert await world.kept(claim.tenant_id) == keys("a")
    await batcher.aclose()
    await batcher._embedder.aclose()
    await hasty.close()
