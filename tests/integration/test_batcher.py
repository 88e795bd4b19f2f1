"""The batcher between documents and a provider: what is joined, what is paid for, and what is kept."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import replace
from datetime import timedelta
from math import log2
from typing import Any
from uuid import UUID

import numpy as np
import pytest

from tests.conftest import Database as MigratedDatabase
from tests.database.project import Project
from tests.embeddings import FEW, MODEL, PATH, answer, embedder, error, texts_of, vector_of
from tests.provider_double import ProviderDouble, Reply, Request
from worker.db.pool import Database
from worker.errors import Misconfigured, OverBudget, Rejected, StaleClaim, Superseded, Throttled, Transient, Unavailable
from worker.model import Chunk, Claim, ModelId, TenantId
from worker.pipeline import limits
from worker.pipeline.embed.batcher import Batcher
from worker.pipeline.embed.embedder import Batching
from worker.pipeline.embed.shares import shares
from worker.pipeline.embed.stage import embed
from worker.pipeline.embed.vectors import Vectors
from worker.pipeline.ledger import Spent
from worker.pipeline.limits import Limits

SLOW = replace(FEW, linger=0.1)
ONE = replace(FEW, texts=1, at_once=1, linger=0)


@pytest.fixture
async def double() -> AsyncIterator[ProviderDouble]:
    async with ProviderDouble() as running:
        running.on("POST", PATH, answer)
        yield running


class World:
    """Tenants with claimed jobs, and the batcher that embeds for them."""

    def __init__(self, sql: Project, db: Database, model_id: ModelId, double: ProviderDouble) -> None:
        self.sql = sql
        self.db = db
        self.double = double
        self.model_id = model_id
        self.spent: list[Spent] = []
        self.batchers: list[Batcher] = []

    def batcher(self, batching: Batching = FEW, **options: Any) -> Batcher:
        async def spent(shares: Sequence[Spent]) -> None:
            self.spent.extend(shares)

        made = Batcher(
            embedder(self.double, batching), Vectors(self.db, self.model_id), Limits(self.db, random.Random(1)),
            spent=spent, **options,
        )  # fmt: skip
        self.batchers.append(made)
        return made

    async def claim(self, tenant: UUID | None = None) -> Claim:
        tenant = tenant or await self.sql.user()
        await self.sql.upload(tenant, f"{random.random()}.txt")
        return await self.claim_again()

    async def claim_again(self) -> Claim:
        values = dict(await self.sql.claim_one())
        return Claim(number=values.pop("claim"), **values)

    async def kept(self, tenant: UUID) -> set[bytes]:
        rows = await self.sql.owner.fetch(
            "select content_sha256 from ingest.embeddings where tenant_id = $1 and model_id = $2", tenant, self.model_id
        )
        return {row["content_sha256"] for row in rows}


@pytest.fixture
async def world(database: MigratedDatabase, double: ProviderDouble) -> AsyncIterator[World]:
    sql = await Project(database).open()
    model_id = await sql.owner.fetchval(
        "select ingest.add_embedding_model($1, $2, $3)", MODEL.provider, MODEL.name, MODEL.dimensions
    )
    db = await Database.open(database.url("ingest_worker"), size=6)
    made = World(sql, db, ModelId(model_id), double)
    yield made
    for batcher in made.batchers:
        await batcher.aclose()
        await batcher._embedder.aclose()
    await db.close()


def chunks(*texts: str) -> list[Chunk]:
    return [Chunk(n, 1, 1, 0, len(text), (), "", text, len(text.split())) for n, text in enumerate(texts)]


def keys(*texts: str) -> set[bytes]:
    return {chunk.content_sha256 for chunk in chunks(*texts)}


def run(batcher: Batcher, claim: Claim, *texts: str) -> asyncio.Task[int]:
    async def ignore(_share: float) -> None:
        pass

    async def begin(keys: list[bytes]) -> set[bytes]:
        return await batcher.vectors.begin(claim, keys, 0.0, None)

    return asyncio.create_task(embed(batcher, claim, chunks(*texts), begin, ignore))


async def until(true: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not true():  # noqa: ASYNC110 - it is the batcher's own state
            await asyncio.sleep(0)


def refusing(*bad: str) -> Callable[[Request], Reply]:
    return lambda request: Reply(400, error()) if set(bad) & set(request.json["input"]) else answer(request)


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
