"""The worker's side of the ledger: nothing paid is forgotten, and a used-up budget is a snooze until tomorrow."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest
from click.testing import CliRunner, Result
from loguru import logger

from local.stack import Stack
from tests.conftest import Database as MigratedDatabase
from tests.database.project import Project
from tests.database.situations import claim_of
from tests.people import Person
from worker.__main__ import sluice
from worker.db.pool import Database
from worker.errors import OverBudget, Transient
from worker.model import Claim, DocumentId, JobId, TenantId
from worker.pipeline.ledger import Ledger, Spent
from worker.queue.attempt import Attempts
from worker.queue.leases import Held


@pytest.fixture
def lines() -> Iterator[list[dict[str, Any]]]:
    """What is logged: the message and its fields."""
    seen: list[dict[str, Any]] = []
    sink = logger.add(lambda m: seen.append({"event": m.record["message"], **m.record["extra"]}), level="DEBUG")
    yield seen
    logger.remove(sink)


class Unsteady:
    """A database that fails so many calls before it works, and counts what it is asked."""

    def __init__(self, db: Database, failures: int, code: str = "database_unreachable") -> None:
        self._db = db
        self.failures = failures
        self.code = code
        self.asked = 0

    async def _fail(self) -> None:
        self.asked += 1
        if self.failures:
            self.failures -= 1
            raise Transient(self.code, "Not now.", detail="on purpose")

    async def fetchval(self, name: str, *arguments: Any) -> Any:
        await self._fail()
        return await self._db.fetchval(name, *arguments)

    async def fetchrow(self, name: str, *arguments: Any) -> Any:
        await self._fail()
        return await self._db.fetchrow(name, *arguments)


class Clock:
    """A clock that is moved."""

    now = 1000.0

    def __call__(self) -> float:
        return self.now


async def at_once(_seconds: float) -> None:
    pass


def spent(tenant: TenantId | None = None, **more: Any) -> Spent:
    made = Spent(JobId(1), 1, DocumentId(uuid4()), tenant or TenantId(uuid4()), "openai", "text-embedding-3-small",
                 tokens=1000)  # fmt: skip
    return replace(made, **more)


async def sums(sql: Project) -> tuple[int, int, int, Decimal]:
    row = await sql.owner.fetchrow(
        "select count(*), coalesce(sum(tokens), 0)::int, coalesce(sum(requests), 0)::int, sum(money) from ingest.usage"
    )
    assert row is not None
    return tuple(row)


async def test_one_request_for_several_documents_is_counted_once_and_divided_among_them(
    sql: Project, db: Database
) -> None:
    ledger = Ledger(db)
    await ledger.spent([spent(job_id=JobId(1), tokens=700), spent(job_id=JobId(2), tokens=300)])
    await ledger.spent([spent(job_id=JobId(3), provider="llama-parse", model="agentic", tokens=0, pages=8)])
    await ledger.spent([])
    rows = await sql.owner.fetch("select job_id, kind, pages, tokens, requests from ingest.usage order by job_id")
    assert [tuple(row) for row in rows] == [(1, "embed", 0, 700, 1), (2, "embed", 0, 300, 0), (3, "parse", 8, 0, 1)]
    assert (await sums(sql))[3] == Decimal("0.10002")


async def test_a_named_request_that_is_told_twice_counts_once(sql: Project, db: Database) -> None:
    parse = spent(document_id=None, provider="llama-parse", model="fast", tokens=0, pages=3)
    for ledger in (Ledger(db), Ledger(db)):
        await ledger.spent([parse], request="parse:pjb-1")
    assert await sql.owner.fetchval("select sum(pages) from ingest.usage_days") == 3


async def test_a_write_that_fails_is_tried_again_and_counts_once(sql: Project, db: Database) -> None:
    unsteady = Unsteady(db, failures=3)
    await Ledger(unsteady, sleep=at_once).spent([spent()])  # type: ignore[arg-type]
    assert unsteady.asked == 4
    assert (await sums(sql))[:3] == (1, 1000, 1)


async def test_what_the_database_did_not_take_is_written_with_the_next_request(
    sql: Project, db: Database, lines: list[dict[str, Any]]
) -> None:
    ledger = Ledger(Unsteady(db, failures=4), sleep=at_once)  # type: ignore[arg-type]
    await ledger.spent([spent(job_id=JobId(1))])  # raises nothing
    assert (await sums(sql))[0] == 0
    assert [(line["event"], line["code"]) for line in lines] == [("usage not written", "database_unreachable")]
    await ledger.spent([spent(job_id=JobId(2))])
    assert (await sums(sql))[:3] == (2, 2000, 2)


async def test_closing_writes_what_is_owed_and_says_what_it_could_not(
    sql: Project, db: Database, lines: list[dict[str, Any]]
) -> None:
    owing = Ledger(Unsteady(db, failures=4), sleep=at_once)  # type: ignore[arg-type]
    await owing.spent([spent(job_id=JobId(1))])
    await owing.aclose()
    assert (await sums(sql))[0] == 1

    hopeless = Ledger(Unsteady(db, failures=100), sleep=at_once)  # type: ignore[arg-type]
    await hopeless.spent([spent(job_id=JobId(2), tokens=77)])
    await hopeless.aclose()
    lost = [line for line in lines if line["event"] == "usage lost"]
    assert [(line["code"], line["job"], line["tokens"]) for line in lost] == [("usage_lost", 2, 77)]


async def test_what_the_database_refuses_is_said_and_keeps_nobody_waiting(
    sql: Project, db: Database, lines: list[dict[str, Any]]
) -> None:
    ledger = Ledger(db, sleep=at_once)
    await ledger.spent([spent(tokens=-1)])
    await ledger.spent([spent(job_id=JobId(2))])
    assert (await sums(sql))[:3] == (1, 1000, 1)
    assert [line["event"] for line in lines] == ["usage lost"]


async def test_a_paid_request_is_written_although_its_job_is_cancelled_meanwhile(sql: Project, db: Database) -> None:
    ledger = Ledger(db)
    blocker = await sql.database.connect("postgres")
    transaction = blocker.transaction()
    await transaction.start()
    await blocker.execute("lock table ingest.usage in exclusive mode")
    paying = asyncio.create_task(ledger.spent([spent()]))
    await asyncio.sleep(0.05)
    paying.cancel()
    with pytest.raises(asyncio.CancelledError):
        await paying
    await transaction.rollback()
    await ledger.aclose()
    assert (await sums(sql))[:3] == (1, 1000, 1)


async def limited(sql: Project, usd: str) -> TenantId:
    tenant = TenantId(await sql.user())
    await sql.worker.execute("select ingest.set_budget('tenant', $1, $2)", tenant, Decimal(usd))
    return tenant


async def test_who_has_spent_the_budget_may_not_go_on_until_the_day_ends(sql: Project, db: Database) -> None:
    tenant = await limited(sql, "0.02")
    clock = Clock()
    ledger = Ledger(db, clock=clock)
    await ledger.spent([spent(tenant, tokens=10**6)])
    with pytest.raises(OverBudget) as caught:
        await ledger.allow(tenant)
    assert (caught.value.code, caught.value.verdict) == ("budget_exhausted", "snooze")
    now = await sql.owner.fetchval("select now() at time zone 'UTC'")
    left = datetime.combine(now.date() + timedelta(days=1), datetime.min.time()) - now
    assert caught.value.retry_after == pytest.approx(left.total_seconds(), abs=10)
    assert str(tenant) not in caught.value.public_message
    await ledger.allow(TenantId(await sql.user()))

    await sql.owner.execute("update ingest.usage_days set day = day - 1")
    clock.now += 6
    await ledger.allow(tenant)


async def test_a_thousand_questions_in_five_seconds_are_one_round_trip(sql: Project, db: Database) -> None:
    counted, clock = Unsteady(db, failures=0), Clock()
    ledger = Ledger(counted, clock=clock)  # type: ignore[arg-type]
    tenant, other = await limited(sql, "1"), await limited(sql, "0")
    await asyncio.gather(*(ledger.allow(tenant) for _ in range(1000)))
    assert counted.asked == 1
    for _ in range(3):
        with pytest.raises(OverBudget):
            await ledger.allow(other)
    assert counted.asked == 2
    clock.now += 5
    await ledger.allow(tenant)
    assert counted.asked == 3


class Paid:
    """Work that spends so many tokens, if it may."""

    def __init__(self, ledger: Ledger) -> None:
        self.ledger = ledger

    async def __call__(self, claim: Claim, path: Path, settling: Callable[[bool], None]) -> None:
        await self.ledger.allow(claim.tenant_id)
        await self.ledger.spent(
            [spent(claim.tenant_id, job_id=claim.job_id, claim=claim.number, document_id=claim.document_id)]
        )


async def test_a_used_up_budget_snoozes_the_job_until_tomorrow_uncharged_and_for_as_long_as_it_takes(
    sql: Project, db: Database, tmp_path: Path
) -> None:
    tenant = await limited(sql, "0")
    await sql.upload(tenant)
    clock = Clock()
    attempts = Attempts(db, Paid(Ledger(db, clock=clock)), tmp_path, 30, random.Random(1))
    for days in range(8):  # more than there are attempts, and than the day after which other snoozes end
        claim = claim_of(await sql.claim_one())
        await attempts.run(Held(claim))
        job = await sql.job(claim.job_id)
        assert (job["state"], job["attempt"], job["error_code"]) == ("available", 0, "budget_exhausted")
        assert job["snoozes"] == days + 1
        assert await sql.owner.fetchval(
            "select scheduled_at between reset - interval '10 seconds' and reset + interval '10 seconds'"
            "  from (select $1::timestamptz as scheduled_at, (((now() at time zone 'UTC')::date + 1)::timestamp"
            "        at time zone 'UTC') as reset) r",
            job["scheduled_at"],
        )
        await sql.owner.execute(
            "update public.jobs set scheduled_at = now(), created_at = created_at - interval '1 day',"
            " snoozing_since = snoozing_since - interval '1 day'"
        )
        await sql.owner.execute("update ingest.turns set due_at = now()")
    alerts = await sql.owner.fetch("select kind, subject, resolved_at from ingest.alerts")
    assert [tuple(row) for row in alerts] == [("budget_exhausted", str(tenant), None)]

    await sql.worker.execute("select ingest.set_budget('tenant', $1, 1)", tenant)
    clock.now += 6
    claim = claim_of(await sql.claim_one())
    await attempts.run(Held(claim))
    assert (await sums(sql))[0] == 1
    assert await sql.owner.fetchval("select resolved_at is not null from ingest.alerts")


@pytest.fixture
def command(database: MigratedDatabase, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """Run `sluice …` on the test's database, in a thread of its own."""
    monkeypatch.setenv("DATABASE_URL", database.url("ingest_worker"))
    monkeypatch.setenv("SUPABASE_URL", "http://127.0.0.1:1")
    monkeypatch.setenv("SUPABASE_SECRET_KEY", "sb_secret_unused")

    async def run(*arguments: str) -> Result:
        return await asyncio.to_thread(CliRunner().invoke, sluice, arguments)

    return run


async def test_operators_read_usage_as_a_table_and_as_json(
    sql: Project, db: Database, command: Callable[..., Any]
) -> None:
    tenant, ledger = TenantId(await sql.user()), Ledger(db)
    await ledger.spent([spent(tenant, tokens=3_000_000), spent(job_id=JobId(2), tokens=1_000_000)])

    shown = await command("usage", "--by", "provider")
    said = await command("usage", "--tenant", str(tenant), "--by", "document", "--since", "2020-01-01", "--json")
    later = await command("usage", "--since", "2999-01-01")

    assert (shown.exit_code, said.exit_code, later.exit_code) == (0, 0, 0)
    for word in ("openai", "4,000,000", "0.0800"):
        assert word in shown.output
    answer = json.loads(said.output)
    assert answer["tenant"] == str(tenant)
    assert [(row["tokens"], Decimal(row["usd"]), row["unpriced"]) for row in answer["usage"]] == [
        (3_000_000, Decimal("0.06"), 0)
    ]
    assert "Nothing was spent." in later.output


async def test_operators_set_and_list_budgets(sql: Project, command: Callable[..., Any]) -> None:
    tenant = await sql.user()
    results = [
        await command("budget", "set", "2.50"),
        await command("budget", "set", "100", "--project"),
        await command("budget", "set", "0", "--tenant", str(tenant), "--json"),
    ]
    assert [result.exit_code for result in results] == [0, 0, 0], [result.output for result in results]
    assert json.loads(results[2].output) == {"scope": "tenant", "tenant": str(tenant), "daily_usd": "0", "woken": 0}

    said = json.loads((await command("budget", "list", "--json")).output)["budgets"]
    assert [(row["scope"], row["tenant"], row["daily_usd"], row["spent_usd"]) for row in said] == [
        ("project", None, "100", "0"), ("default", None, "2.50", None), ("tenant", str(tenant), "0", "0"),
    ]  # fmt: skip
    assert (await command("budget", "set", "none")).exit_code == 0
    assert "no limit" in (await command("budget", "list")).output


@pytest.mark.parametrize(
    "arguments",
    [
        ("budget", "set", "much"), ("budget", "set", "NaN"), ("budget", "set", "--", "-1"),
        ("budget", "set", "1", "--project", "--tenant", str(uuid4())), ("usage", "--tenant", "me"),
        ("usage", "--by", "weather"),
    ],
)  # fmt: skip
async def test_wrong_usage_is_exit_status_2(command: Callable[..., Any], arguments: tuple[str, ...]) -> None:
    assert (await command(*arguments)).exit_code == 2


async def test_a_budget_of_an_unknown_tenant_is_exit_status_1(command: Callable[..., Any]) -> None:
    result = await command("budget", "set", "1", "--tenant", str(uuid4()))
    assert result.exit_code == 1
    assert "Traceback" not in result.output


async def test_people_read_their_own_usage_through_the_api(stack: Stack, ada: Person, bob: Person) -> None:
    db = await Database.open(stack.worker_database_url, size=1)
    await Ledger(db).spent([spent(TenantId(UUID(ada.id)), tokens=123), spent(TenantId(UUID(bob.id)), job_id=JobId(2))])
    await db.close()
    answer = await ada.client.table("usage").select("tenant_id, tokens, model, money").execute()
    assert [(row["tenant_id"], row["tokens"]) for row in answer.data] == [(ada.id, 123)]
