"""Parse webhooks in SQL: who may expect one, what a hint does, and that none works twice."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator
from dataclasses import dataclass

import asyncpg
import pytest

from tests.callers import as_anonymous, as_service, as_user
from tests.conftest import Database as MigratedDatabase
from tests.database.project import Project
from worker.db.pool import Database
from worker.errors import StaleClaim
from worker.model import Claim, ParseId
from worker.pipeline.parse.webhook import Webhook, Webhooks

URL = "https://" + "a" * 51 + ".supabase.co/functions/v1/parse-webhook"
DUE = "select next_poll_at <= clock_timestamp() from ingest.parses where id = $1"


@pytest.fixture
async def db(database: MigratedDatabase) -> AsyncIterator[Database]:
    opened = await Database.open(database.url("ingest_worker"), size=2)
    yield opened
    await opened.close()


def sha256(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()


@dataclass
class Sent:
    """A parse that was sent away with a webhook."""

    project: Project
    claim: Claim
    parse: int
    webhook: Webhook

    @property
    def token(self) -> str:
        return self.webhook.url.partition("&token=")[2]

    async def hint(self, message: str = "one", token: str | None = None) -> str:
        async with as_service(self.project.admin):
            said: str = await self.project.admin.fetchval(
                "select public.parse_hint($1, $2, $3)",
                self.parse, sha256(token or self.token).hex(), sha256(message).hex(),
            )  # fmt: skip
        return said

    async def wait(self) -> None:
        await self.project.owner.execute(
            "update ingest.parses set state = 'waiting', remote_ref = 'r', next_poll_at = now() + interval '1 hour'"
            " where id = $1",
            self.parse,
        )


@pytest.fixture
async def sent(project: Project, db: Database) -> Sent:
    await project.upload(await project.user())
    row = await project.claim_one()
    await project.begin(row)
    parse = (await project.begin_parse(row, "bytes", "llama-parse"))["parse_id"]
    values = dict(row)
    claim = Claim(number=values.pop("claim"), **values)
    return Sent(project, claim, parse, await Webhooks(db, URL).expect(claim, ParseId(parse)))


async def test_the_url_fits_and_its_secret_is_kept_as_a_digest_only(sent: Sent, project: Project) -> None:
    assert sent.webhook.url.startswith(f"{URL}?parse={sent.parse}&token=")
    assert len(URL) + len(f"?parse={2**63 - 1}&token={sent.token}") < 200
    assert sent.token not in repr(sent.webhook)
    assert len(sent.token) == 43
    row = await project.owner.fetchrow("select * from ingest.parses")
    assert row is not None
    assert row["hook_secret_sha256"] == sha256(sent.token)
    assert sent.token not in str(dict(row))


async def test_a_hint_makes_a_waiting_parse_due_and_wakes_the_workers(sent: Sent, project: Project) -> None:
    await sent.wait()
    listener = await project.database.connect("ingest_worker")
    woken: list[str] = []
    await listener.add_listener("ingest_wake", lambda *said: woken.append(str(said[-1])))
    assert not await project.owner.fetchval(DUE, sent.parse)
    assert await sent.hint() == "accepted"
    assert await project.owner.fetchval(DUE, sent.parse)
    await listener.fetchval("select 1")
    assert len(woken) == 1


async def test_a_hint_that_is_faster_than_our_own_note_of_the_submit_counts(sent: Sent, project: Project) -> None:
    assert await sent.hint() == "accepted"
    assert await project.owner.fetchval(DUE, sent.parse)


async def test_one_message_is_accepted_once_however_many_arrive_at_once(sent: Sent, project: Project) -> None:
    await sent.wait()
    connections = [await project.database.connect("supabase_admin") for _ in range(8)]

    async def hint(connection: asyncpg.Connection) -> str:
        async with as_service(connection):
            said: str = await connection.fetchval(
                "select public.parse_hint($1, $2, $3)", sent.parse, sha256(sent.token).hex(), sha256("one").hex()
            )
        return said

    said = await asyncio.gather(*(hint(connection) for connection in connections))
    assert sorted(said) == ["accepted", *["replayed"] * 7]
    assert await sent.hint("another") == "accepted"


async def test_a_wrong_secret_an_unknown_and_an_ended_parse_are_the_same_and_change_nothing(
    sent: Sent, project: Project
) -> None:
    await sent.wait()
    everything = "select (select row(p.*, p.xmin)::text from ingest.parses p), count(*) from ingest.webhook_deliveries"
    before = await project.owner.fetchrow(everything)
    assert await sent.hint(token="x" * 43) == "unknown"
    sent.parse += 1
    assert await sent.hint() == "unknown"
    sent.parse -= 1
    assert await project.owner.fetchrow(everything) == before
    await project.owner.execute("update ingest.parses set state = 'failed', error_code = 'x', finished_at = now()")
    assert await sent.hint() == "unknown"


async def test_a_parse_without_a_webhook_takes_no_hint(sent: Sent, project: Project) -> None:
    await project.owner.execute("update ingest.parses set hook_secret_sha256 = null")
    assert await sent.hint() == "unknown"


async def test_another_submit_voids_the_secret_of_the_one_before(sent: Sent, db: Database) -> None:
    await Webhooks(db, URL).expect(sent.claim, ParseId(sent.parse))
    assert await sent.hint() == "unknown"


async def test_only_the_claim_that_submits_may_expect_a_webhook(sent: Sent, project: Project, db: Database) -> None:
    hooks = Webhooks(db, URL, "a signing secret")
    assert (await hooks.expect(sent.claim, ParseId(sent.parse))).signing_secret == "a signing secret"
    assert "signing secret" not in repr(hooks)
    with pytest.raises(StaleClaim):
        await hooks.expect(sent.claim, ParseId(sent.parse + 1))
    await sent.wait()
    with pytest.raises(StaleClaim):
        await hooks.expect(sent.claim, ParseId(sent.parse))
    await project.owner.execute("delete from ingest.leases")
    with pytest.raises(StaleClaim):
        await hooks.expect(sent.claim, ParseId(sent.parse))


async def test_old_deliveries_are_forgotten_with_the_next_ones(sent: Sent, project: Project) -> None:
    for message in ("one", "two"):
        await sent.hint(message)
    await project.owner.execute("update ingest.webhook_deliveries set at = at - interval '31 days'")
    await sent.hint("three")
    assert await project.owner.fetchval("select array_agg(digest) from ingest.webhook_deliveries") == [sha256("three")]


async def test_nobody_but_service_role_gives_hints(sent: Sent, project: Project) -> None:
    user = await project.user()
    for acting in (as_anonymous(project.admin), as_user(project.admin, user)):
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            async with acting:
                await project.admin.fetchval("select public.parse_hint(1, '', '')")
    with pytest.raises(asyncpg.InsufficientPrivilegeError):
        async with as_service(project.admin):
            await project.admin.fetchval("select ingest.hint_parse(1, '', '')")
