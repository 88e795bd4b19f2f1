"""The usage ledger in SQL: exact sums, each request once, prices by their moment, budgets by the day."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID, uuid4

import asyncpg
import pytest

from tests.callers import as_anonymous, as_service, as_user
from tests.conftest import Database
from tests.database.project import Project

RECORD = "select ingest.record_usage($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11)"
SMALL = "text-embedding-3-small"
Share = tuple[int, int, UUID, UUID, str, str, str, int, int, int]


def share(
    tenant: UUID, *, job: int = 1, claim: int = 1, document: UUID | None = None, provider: str = "openai",
    model: str = SMALL, kind: str = "embed", pages: int = 0, tokens: int = 0, requests: int = 1,
) -> Share:  # fmt: skip
    return job, claim, document or uuid4(), tenant, provider, model, kind, pages, tokens, requests


async def record(
    project: Project, *shares: Share, request: str | None = None, connection: asyncpg.Connection | None = None
) -> int:
    written: int = await (connection or project.worker).fetchval(
        RECORD, request or uuid4().hex, *(list(column) for column in zip(*shares, strict=True))
    )
    return written


async def money(project: Project) -> Any:
    return await project.owner.fetchval("select sum(money) from ingest.usage")


async def open_alerts(project: Project) -> list[tuple[str, str]]:
    rows = await project.owner.fetch("select kind, subject from ingest.alerts where resolved_at is null order by 1, 2")
    return [tuple(row) for row in rows]


async def within(project: Project, tenant: UUID) -> asyncpg.Record | None:
    return await project.worker.fetchrow("select * from ingest.within_budget($1)", tenant)


async def set_budget(project: Project, scope: str, amount: str | None, tenant: UUID | None = None) -> int:
    woken: int = await project.worker.fetchval(
        "select ingest.set_budget($1, $2, $3)", scope, tenant, None if amount is None else Decimal(amount)
    )
    return woken


async def test_sums_are_exact_for_each_tenant_and_day_and_the_money_is_not_rounded(project: Project) -> None:
    one, two = uuid4(), uuid4()
    for number in range(50):
        await record(
            project, share(one, job=number, tokens=number + 1), share(two, job=1000 + number, tokens=7, requests=0)
        )

    rows = await project.owner.fetch("select * from ingest.usage_days order by tenant_id = $1", two)

    assert [(row["tokens"], row["requests"], row["unpriced"]) for row in rows] == [(1275, 50, 0), (350, 0, 0)]
    assert [row["money"] for row in rows] == [Decimal("0.0000255"), Decimal("0.000007")]
    assert await money(project) == sum(row["money"] for row in rows)
    assert {row["day"] for row in rows} == {await project.owner.fetchval("select (now() at time zone 'UTC')::date")}


@pytest.mark.parametrize(
    ("provider", "model", "pages", "tokens", "usd"),
    [
        ("openai", "text-embedding-3-small", 0, 1_000_000, "0.02"),
        ("openai", "text-embedding-3-large", 0, 1, "0.00000013"),
        ("llama-parse", "fast", 1000, 0, "1.25"),
        ("llama-parse", "cost_effective", 1000, 0, "3.75"),
        ("llama-cloud", "agentic", 1, 0, "0.0125"),
        ("llama-cloud", "agentic_plus", 1000, 0, "56.25"),
        ("local", "whatever", 10, 10, "0"),
        ("openai", "text-embedding-3-small", 0, 0, "0"),
    ],
)
async def test_the_seeded_prices_are_the_lists_of_the_providers(
    project: Project, provider: str, model: str, pages: int, tokens: int, usd: str
) -> None:
    await record(project, share(uuid4(), provider=provider, model=model, pages=pages, tokens=tokens))
    assert await money(project) == Decimal(usd)
    assert await open_alerts(project) == []


async def test_the_same_request_counts_once_however_often_and_by_whom_it_is_told(
    project: Project, database: Database
) -> None:
    told = (share(uuid4(), job=1, tokens=100), share(uuid4(), job=2, tokens=50))
    workers = [await database.connect("ingest_worker") for _ in range(8)]

    written = await asyncio.gather(*(record(project, *told, request="one", connection=worker) for worker in workers))

    assert sum(written) == 2
    assert await project.owner.fetchval("select sum(tokens) from ingest.usage_days") == 150
    # Another claim or another request of the same job was paid again.
    assert await record(project, share(told[0][3], job=1, claim=2, tokens=100), request="one") == 1
    assert await record(project, told[0], request="two") == 1
    assert await project.owner.fetchval("select sum(tokens) from ingest.usage_days") == 350


async def test_the_parts_of_one_job_in_one_request_are_one_row(project: Project) -> None:
    tenant, document = uuid4(), uuid4()
    parts = [share(tenant, document=document, tokens=n, requests=r) for n, r in ((3, 1), (4, 0))]
    assert await record(project, *parts) == 1
    assert tuple(await project.owner.fetchrow("select tokens, requests from ingest.usage")) == (7, 1)


async def test_racing_requests_of_the_same_tenants_in_any_order_lose_nothing(
    project: Project, database: Database
) -> None:
    tenants = [uuid4() for _ in range(4)]
    workers = [await database.connect("ingest_worker") for _ in range(8)]

    async def spend(number: int, worker: asyncpg.Connection) -> None:
        for turn in range(10):
            order = tenants if (number + turn) % 2 else tenants[::-1]
            await record(
                project, *(share(t, job=number * 100 + n, tokens=1) for n, t in enumerate(order)), connection=worker
            )

    await asyncio.gather(*(spend(number, worker) for number, worker in enumerate(workers)))

    sums = await project.owner.fetch("select tokens, requests from ingest.usage_days")
    assert [tuple(row) for row in sums] == [(80, 80)] * 4


async def test_a_new_price_affects_only_what_is_spent_after_it(project: Project) -> None:
    tenant = uuid4()
    await record(project, share(tenant, tokens=1_000_000))
    await project.owner.execute("select ingest.set_price('openai', $1, 'token', 5)", SMALL)
    await record(project, share(tenant, tokens=1_000_000))

    rows = await project.owner.fetch("select money from ingest.usage order by at")

    assert [row["money"] for row in rows] == [Decimal("0.02"), Decimal(5)]
    assert await project.owner.fetchval("select money from ingest.usage_days") == Decimal("5.02")
    await project.owner.execute(
        "insert into ingest.prices values ('openai', $1, 'token', 9, null, now() + interval '1 hour')", SMALL
    )
    await record(project, share(tenant, tokens=1_000_000))  # one that is not valid yet is none
    assert await project.owner.fetchval("select money from ingest.usage_days") == Decimal("10.02")


async def test_what_has_no_price_has_no_money_and_alerts_until_it_has_one(project: Project) -> None:
    tenant = uuid4()
    for _ in range(3):
        await record(project, share(tenant, model="new-model", tokens=10))
    assert await money(project) is None
    assert await open_alerts(project) == [("price_missing", "openai/new-model")]
    assert await project.owner.fetchval("select count from ingest.alerts") == 1  # once a minute at most
    assert tuple(await project.owner.fetchrow("select money, unpriced, tokens from ingest.usage_days")) == (0, 3, 30)

    await project.owner.execute("select ingest.set_price('openai', 'new-model', 'token', 1)")
    assert await open_alerts(project) == []
    await record(project, share(tenant, model="new-model", tokens=10))
    assert await money(project) == Decimal("0.00001")


async def test_tokens_are_not_free_because_pages_have_a_price(project: Project) -> None:
    await record(project, share(uuid4(), provider="llama-parse", model="fast", tokens=10))
    assert await money(project) is None
    assert await open_alerts(project) == [("price_missing", "llama-parse/fast")]


async def test_usage_outlives_its_document_and_job(project: Project) -> None:
    user = await project.user()
    document = await project.ready(user, "a.txt", "text")
    job = await project.owner.fetchval("select id from public.jobs")
    await record(project, share(user, job=job, document=document, tokens=5))
    await project.remove(user, document)
    await project.owner.execute("delete from public.jobs")
    assert await project.owner.fetchval("select count(*) from public.documents") == 0
    assert await project.owner.fetchval("select document_id from ingest.usage") == document


async def test_nobody_can_change_what_was_written(project: Project) -> None:
    await record(project, share(uuid4(), tokens=5))
    for statement in ("update ingest.usage set money = 0", "delete from ingest.usage", "delete from ingest.usage_days"):
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            await project.worker.execute(statement)


async def test_a_tenants_members_read_their_own_usage_and_nobody_elses(project: Project) -> None:
    member, stranger = await project.user(), await project.user()
    tenant = await project.organisation(reader=member)
    await record(project, share(tenant, job=1, tokens=5), share(member, job=2, tokens=6), share(stranger, job=3))

    async def read(user: UUID, relation: str) -> set[UUID]:
        async with as_user(project.admin, user):
            return {row["tenant_id"] for row in await project.admin.fetch(f"select * from {relation}")}

    for relation in ("public.usage", "ingest.usage"):
        assert await read(member, relation) == {tenant, member}
        assert await read(stranger, relation) == {stranger}
    async with as_service(project.admin):
        assert await project.admin.fetchval("select count(*) from public.usage") == 3
    with pytest.raises(asyncpg.InsufficientPrivilegeError):
        async with as_anonymous(project.admin):
            await project.admin.fetch("select * from public.usage")
    for acting in (as_service(project.admin), as_user(project.admin, member)):
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            async with acting:
                await record(project, share(tenant), connection=project.admin)


@pytest.mark.parametrize("by", ["day", "tenant", "document", "job", "provider", "model"])
async def test_operators_see_sums_by_everything_that_a_row_names(project: Project, by: str) -> None:
    one, two = uuid4(), uuid4()
    await record(project, share(one, job=1, tokens=1_000_000), share(two, job=2, tokens=2_000_000, requests=0))
    await record(project, share(one, job=3, kind="parse", provider="llama-parse", model="fast", pages=8))
    expected = {
        "day": [Decimal("0.07")], "tenant": [Decimal("0.04"), Decimal("0.03")], "document": ["0.04", "0.02", "0.01"],
        "job": ["0.04", "0.02", "0.01"], "provider": ["0.06", "0.01"], "model": ["0.06", "0.01"],
    }  # fmt: skip

    rows = await project.worker.fetch("select * from ingest.usage_by($1)", by)

    assert [row["money"] for row in rows] == [Decimal(amount) for amount in expected[by]]
    assert (sum(row["pages"] for row in rows), sum(row["tokens"] for row in rows)) == (8, 3_000_000)
    mine = await project.worker.fetch("select * from ingest.usage_by($1, $2)", by, one)
    assert sum(row["money"] for row in mine) == Decimal("0.03")
    later = await project.worker.fetch("select * from ingest.usage_by($1, null, now() + interval '1 minute')", by)
    assert later == []


async def test_without_a_budget_nothing_is_limited(project: Project) -> None:
    tenant = uuid4()
    await record(project, share(tenant, tokens=10**12))
    assert await within(project, tenant) is None


async def test_a_budget_that_is_used_up_says_until_when_and_tells_the_operators_once_a_minute(project: Project) -> None:
    tenant = await project.user()
    await set_budget(project, "default", "0.02")
    await record(project, share(tenant, tokens=999_999))
    assert await within(project, tenant) is None

    await record(project, share(tenant, tokens=1))
    said = [await within(project, tenant) for _ in range(3)][-1]

    assert said is not None
    assert (said["code"], said["subject"]) == ("budget_exhausted", str(tenant))
    assert await project.owner.fetchval(
        "select $1 = (((now() at time zone 'UTC')::date + 1)::timestamp at time zone 'UTC')", said["resets_at"]
    )
    assert timedelta(0) < said["resets_in"] <= timedelta(days=1)
    assert await open_alerts(project) == [("budget_exhausted", str(tenant))]
    assert await project.owner.fetchval("select count from ingest.alerts") == 1
    assert await within(project, await project.user()) is None  # others have budgets of their own


async def test_the_next_day_begins_with_the_whole_budget_and_resolves_the_alert(project: Project) -> None:
    tenant = await project.user()
    await set_budget(project, "default", "0.01")
    await record(project, share(tenant, tokens=10**6))
    assert await within(project, tenant) is not None

    await project.owner.execute("update ingest.usage_days set day = day - 1")

    assert await within(project, tenant) is None
    assert await open_alerts(project) == []


async def test_the_alert_of_a_day_that_is_over_is_resolved_although_nobody_asks(project: Project) -> None:
    tenant = await project.user()
    await set_budget(project, "default", "0")
    assert await within(project, tenant) is not None
    assert await project.worker.fetchval("select ingest.tidy_alerts()") == 0
    await project.owner.execute("update ingest.alerts set last_at = last_at - interval '1 day'")
    assert await project.worker.fetchval("select ingest.tidy_alerts()") == 1


async def test_a_tenants_own_budget_goes_before_the_default_also_when_it_is_none(project: Project) -> None:
    rich, poor, free = [await project.user() for _ in range(3)]
    await set_budget(project, "default", "0.01")
    await set_budget(project, "tenant", "10", rich)
    await set_budget(project, "tenant", "0", poor)
    await set_budget(project, "tenant", None, free)
    await record(project, share(rich, job=1, tokens=10**6), share(free, job=2, tokens=10**12))
    assert [await within(project, tenant) is None for tenant in (rich, poor, free)] == [True, False, True]


async def test_the_projects_budget_stops_every_tenant(project: Project) -> None:
    one, two = await project.user(), await project.user()
    await set_budget(project, "project", "0.02")
    await set_budget(project, "tenant", None, two)
    await record(project, share(one, tokens=10**6))
    said = await within(project, two)
    assert said is not None
    assert said["subject"] == "project"
    assert await open_alerts(project) == [("budget_exhausted", "project")]
    await set_budget(project, "project", "1")
    assert await within(project, two) is None
    assert await open_alerts(project) == []


async def test_more_budget_brings_back_the_jobs_that_wait_for_the_next_day_and_no_others(project: Project) -> None:
    tenant, other = await project.user(), await project.user()
    await set_budget(project, "default", "0")
    jobs = [*await project.enqueue(tenant, 2), *await project.enqueue(other)]
    codes = ("budget_exhausted", "provider_rate_limited", "budget_exhausted")
    for claimed in await project.claim():
        code = codes[jobs.index(claimed["job_id"])]
        await project.worker.execute(
            "select ingest.snooze_job($1, $2, '8 hours', $3, 'Wait.', null, false)",
            claimed["job_id"], claimed["claim"], code,
        )  # fmt: skip
    listener = await project.database.connect("ingest_worker")
    woken: list[str] = []
    await listener.add_listener("ingest_wake", lambda *said: woken.append(str(said[-1])))

    assert await set_budget(project, "tenant", "1", tenant) == 1

    assert [row["job_id"] for row in await project.claim()] == [jobs[0]]
    await listener.fetchval("select 1")
    assert len(woken) == 1


@pytest.mark.parametrize(("scope", "of"), [("tenant", False), ("default", True), ("project", True), ("else", False)])
async def test_a_budget_of_nobody_is_refused(project: Project, scope: str, of: bool) -> None:
    with pytest.raises(asyncpg.InvalidParameterValueError):
        await set_budget(project, scope, "1", await project.user() if of else None)


async def test_the_budget_check_reads_one_row_of_sums_and_no_usage(project: Project) -> None:
    tenant = await project.user()
    await set_budget(project, "default", "1000")
    await record(project, share(tenant, tokens=10**6))
    await project.owner.execute("drop table ingest.usage cascade")
    assert await within(project, tenant) is None
    await set_budget(project, "default", "0.02")
    assert await within(project, tenant) is not None
