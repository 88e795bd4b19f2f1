"""The edge function parse-webhook, served by Deno before the stack: what it takes, refuses and leaves alone."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import json
import statistics
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any
from uuid import UUID, uuid4

import asyncpg
import httpx
import pytest

from local.stack import Stack
from tests.functions import serving
from worker.db.pool import Database
from worker.model import Claim, DocumentId, JobId, ParseId, TenantId
from worker.pipeline.parse.webhook import Webhooks

OLD_SECRET, SECRET = "whs-of-last-year-0123456789", "whs-of-this-year-0123456789"
MEGABYTES = 1024 * 1024
DUE = "select next_poll_at <= clock_timestamp() from ingest.parses where id = $1"


@dataclass
class Parse:
    """A parse at a remote parser, with its webhook's address."""

    id: int
    url: str

    @property
    def token(self) -> str:
        return self.url.partition("&token=")[2]


class World:
    """Parses on the stack's database, and what the function did to them."""

    def __init__(self, admin: asyncpg.Connection, db: Database, url: str) -> None:
        self.admin = admin
        self.db = db
        self.url = url
        self.parses: list[int] = []

    async def parse(self) -> Parse:
        tenant, document = uuid4(), uuid4()
        # A claim as claim_jobs leaves it; claiming itself would take the other tests' jobs.
        job: int = await self.admin.fetchval("select ingest.enqueue_job($1, $2, 1, 4::smallint)", document, tenant)
        await self.admin.execute(
            "update public.jobs set state = 'running', claim = 1, attempt = 1, started_at = now() where id = $1", job
        )
        await self.admin.execute("delete from ingest.turns where tenant_id = $1", tenant)
        await self.admin.execute(
            "insert into ingest.leases values ($1, 1, $2, $3, now(), now() + interval '1 hour')", job, uuid4(), tenant
        )
        parse: int = await self.admin.fetchval(
            "insert into ingest.parses (tenant_id, content_sha256, parser, parser_version, submitted_job, submitted_by)"
            " values ($1, sha256('x'), 'llama-parse', '1', $2, 1) returning id",
            tenant, job,
        )  # fmt: skip
        self.parses.append(parse)
        claim = Claim(JobId(job), 1, DocumentId(document), TenantId(UUID(str(tenant))), 1, 1, 5, 0)
        webhook = await Webhooks(self.db, self.url).expect(claim, ParseId(parse))
        await self.admin.execute(
            "update ingest.parses set state = 'waiting', remote_ref = 'pjb', next_poll_at = now() + interval '1 hour'"
            " where id = $1",
            parse,
        )
        return Parse(parse, webhook.url)

    async def rows(self) -> list[str]:
        """Everything that the function could change, with xmin, which any write changes."""
        rows = await self.admin.fetch(
            "select row(p.*, p.xmin)::text as it from ingest.parses p where id = any ($1)"
            " union all select row(w.*, w.xmin)::text from ingest.webhook_deliveries w order by 1",
            self.parses,
        )
        return [row["it"] for row in rows]

    async def due(self, parse: Parse) -> bool:
        return bool(await self.admin.fetchval(DUE, parse.id))


@pytest.fixture
async def world(stack: Stack) -> AsyncIterator[World]:
    """The function as the stack serves it, without a signing secret: the token in the URL is all there is."""
    async with _world(stack, f"{stack.api_url}/functions/v1/parse-webhook") as made:
        yield made


@pytest.fixture
async def signing(stack: Stack) -> AsyncIterator[World]:
    """The function with two signing secrets, and the project's key under its legacy name."""
    async with (
        serving(
            "parse-webhook",
            SUPABASE_URL=stack.api_url,
            SUPABASE_SERVICE_ROLE_KEY=stack.secret_key,
            SLUICE_WEBHOOK_SECRET=f"{SECRET} {OLD_SECRET}",
        ) as (url, _),
        _world(stack, url) as made,
    ):
        yield made


@asynccontextmanager
async def _world(stack: Stack, url: str) -> AsyncIterator[World]:
    admin = await asyncpg.connect(stack.admin_url)
    db = await Database.open(stack.worker_database_url, size=1)
    made = World(admin, db, url)
    yield made
    for table, column in (("public.jobs", "id"), ("ingest.leases", "job_id")):
        await admin.execute(
            f"delete from {table} where {column} in (select submitted_job from ingest.parses where id = any ($1))",
            made.parses,
        )
    await admin.execute("delete from ingest.parses where id = any ($1)", made.parses)
    await db.close()
    await admin.close()


async def post(url: str, body: bytes = b"{}", **headers: str) -> httpx.Response:
    async with httpx.AsyncClient(timeout=30) as client:
        return await client.post(url, content=body, headers={name.replace("_", "-"): v for name, v in headers.items()})


def signature(body: bytes, secret: str = SECRET) -> str:
    return "sha256=" + hmac.new(secret.encode(), body, hashlib.sha256).hexdigest()


async def test_the_callback_makes_its_own_parse_due_and_wakes_the_workers(world: World, stack: Stack) -> None:
    mine, other = await world.parse(), await world.parse()
    listener = await asyncpg.connect(stack.worker_database_url)
    woken = asyncio.Event()
    await listener.add_listener("ingest_wake", lambda *_said: woken.set())

    answer = await post(mine.url, b'{"md": "whatever it says", "status": "SUCCESS"}')

    assert (answer.status_code, answer.json()) == (202, {"status": "accepted"})
    async with asyncio.timeout(5):
        await woken.wait()
    assert [await world.due(parse) for parse in (mine, other)] == [True, False]
    await listener.close()


async def test_the_same_callback_again_is_refused_whatever_its_body(world: World) -> None:
    parse = await world.parse()
    assert (await post(parse.url, b'{"one": 1}')).status_code == 202
    before = await world.rows()
    again = [await post(parse.url, body) for body in (b'{"one": 1}', b'{"two": 2}')]
    assert [answer.status_code for answer in again] == [409, 409]
    assert await world.rows() == before


async def test_a_wrong_token_an_unknown_parse_and_anothers_id_cannot_be_told_apart(world: World) -> None:
    mine, other = await world.parse(), await world.parse()
    before = await world.rows()
    urls = [
        mine.url[:-1] + ("A" if mine.url[-1] != "A" else "B"),
        mine.url.replace(f"parse={mine.id}", f"parse={other.id}"),
        mine.url.replace(f"parse={mine.id}", "parse=999999999999999999"),
        mine.url.partition("&")[0],
        mine.url.replace(f"parse={mine.id}", f"parse={mine.id}%20or%201=1"),
        world.url,
        f"{world.url}?parse=&token=",
        f"{world.url}?parse={mine.id}&token={'%00' * 43}",
    ]
    answers = [await post(url) for url in urls]
    assert {answer.status_code for answer in answers} == {404}
    assert len({answer.content for answer in answers}) == 1
    assert len({str(sorted(set(answer.headers) - {"date"})) for answer in answers}) == 1
    assert await world.rows() == before


async def test_a_parse_that_has_ended_is_an_unknown_one(world: World) -> None:
    parse = await world.parse()
    await world.admin.execute(
        "update ingest.parses set state = 'failed', error_code = 'x', finished_at = now() where id = $1", parse.id
    )
    assert (await post(parse.url)).status_code == 404


@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE", "PATCH", "OPTIONS", "HEAD"])
async def test_other_methods_are_refused(world: World, method: str) -> None:
    parse = await world.parse()
    before = await world.rows()
    async with httpx.AsyncClient() as client:
        answer = await client.request(method, parse.url)
    assert (answer.status_code, answer.headers["allow"]) == (405, "POST")
    assert await world.rows() == before


async def test_a_body_that_says_it_has_ten_megabytes_is_refused_before_any_of_it_was_sent(world: World) -> None:
    parse = await world.parse()
    before = await world.rows()
    reader, writer = await _open(parse.url, f"content-length: {10 * MEGABYTES}")
    async with asyncio.timeout(5):
        assert b" 413 " in await reader.readline()
    writer.close()
    assert await world.rows() == before


async def test_a_body_without_a_declared_length_is_read_to_the_bound_only(world: World) -> None:
    parse = await world.parse()
    before = await world.rows()
    reader, writer = await _open(parse.url, "transfer-encoding: chunked")
    answered = asyncio.create_task(reader.readline())
    sent, piece = 0, b"a" * 65536
    async with asyncio.timeout(20):
        while not answered.done() and sent < 40 * MEGABYTES:
            writer.write(b"10000\r\n" + piece + b"\r\n")
            try:
                await writer.drain()
            except ConnectionError:
                break
            sent += len(piece)
            await asyncio.sleep(0)
        assert b" 413 " in await answered
    writer.close()
    assert 7 * MEGABYTES < sent < 20 * MEGABYTES
    assert await world.rows() == before


async def test_a_large_result_is_no_reason_to_lose_the_hint(world: World) -> None:
    parse = await world.parse()
    assert (await post(parse.url, b"x" * (7 * MEGABYTES))).status_code == 202


async def test_what_claims_to_be_signed_is_refused_where_no_secret_is_known(world: World) -> None:
    parse = await world.parse()
    before = await world.rows()
    assert (await post(parse.url, b"{}", lc_signature=signature(b"{}"))).status_code == 401
    assert await world.rows() == before


@pytest.mark.parametrize("secret", [SECRET, OLD_SECRET])
async def test_a_signed_event_is_accepted_with_either_secret_of_a_rotation(signing: World, secret: str) -> None:
    parse, body = await signing.parse(), b'{"event_type": "parse.success"}' + uuid4().bytes
    assert (await post(parse.url, body, lc_signature=signature(body, secret))).status_code == 202
    assert await signing.due(parse)


async def test_a_signed_event_counts_once_and_another_event_of_the_parse_again(signing: World) -> None:
    parse, other = await signing.parse(), await signing.parse()
    first, second = (json.dumps({"event_id": str(uuid4())}).encode() for _ in range(2))
    statuses = [
        (await post(url, body, lc_signature=signature(body))).status_code
        for url, body in ((parse.url, first), (parse.url, first), (other.url, first), (parse.url, second))
    ]
    assert statuses == [202, 409, 409, 202]
    assert not await signing.due(other)


async def test_every_bad_signature_is_refused_alike_also_with_the_right_token(signing: World) -> None:
    parse, body = await signing.parse(), b'{"a": 1}'
    before = await signing.rows()
    good = signature(body)
    refused: list[dict[str, str]] = [
        {},
        {"lc_signature": ""},
        {"lc_signature": good[:-1] + ("0" if good[-1] != "0" else "1")},
        {"lc_signature": good[:-2]},
        {"lc_signature": good.removeprefix("sha256=")},
        {"lc_signature": signature(body, "another secret of sixteen")},
        {"lc_signature": signature(body + b" ")},
        {"lc_signature": signature(body, "")},
        {"lc_signature": good, "webhook_timestamp": str(int(time.time()) - 301)},
        {"lc_signature": good, "webhook_timestamp": str(int(time.time()) + 330)},
        {"lc_signature": good, "webhook_timestamp": "soon"},
    ]
    answers = [await post(parse.url, body, **headers) for headers in refused]
    assert [answer.status_code for answer in answers] == [401] * len(refused)
    assert len({answer.content for answer in answers}) == 1
    assert await signing.rows() == before


async def test_a_good_signature_opens_no_parse_without_its_token(signing: World) -> None:
    mine, other = await signing.parse(), await signing.parse()
    before = await signing.rows()
    url = mine.url.replace(f"parse={mine.id}", f"parse={other.id}")
    for target in (url, mine.url.partition("&")[0]):
        assert (await post(target, b"{}", lc_signature=signature(b"{}"))).status_code == 404
    assert await signing.rows() == before


def standard(body: bytes, *, at: float | None = None, message: str | None = None) -> dict[str, str]:
    stamp, message = str(int(time.time() if at is None else at)), message or f"msg_{uuid4()}"
    signed = hmac.new(SECRET.encode(), f"{message}.{stamp}.".encode() + body, hashlib.sha256).digest()
    return {
        "webhook_id": message, "webhook_timestamp": stamp,
        "webhook_signature": f"v1,bm90IHRoaXMgb25l v1,{base64.b64encode(signed).decode()}",
    }  # fmt: skip


async def test_standard_webhooks_are_accepted_once_while_they_are_fresh(signing: World) -> None:
    parse, body = await signing.parse(), b'{"type": "parse.success"}'
    headers = standard(body)
    assert [(await post(parse.url, body, **headers)).status_code for _ in range(2)] == [202, 409]
    before = await signing.rows()
    old, early = standard(body, at=time.time() - 301), standard(body, at=time.time() + 330)
    other_id = standard(body) | {"webhook_id": "msg_of_another"}
    unstamped = {name: value for name, value in standard(body).items() if name != "webhook_timestamp"}
    for refused in (old, early, other_id, unstamped):
        assert (await post(parse.url, body, **refused)).status_code == 401
    assert await signing.rows() == before


@pytest.mark.parametrize("wrong", ["SUPABASE_URL", "SUPABASE_SECRET_KEYS", "nothing is set"])
async def test_a_project_that_does_not_answer_is_a_503_that_tells_nobody_why(
    world: World, stack: Stack, wrong: str
) -> None:
    parse = await world.parse()
    before = await world.rows()
    key = "sb_secret_of-another-project-0123456789"
    settings = {
        "SUPABASE_URL": {"SUPABASE_URL": "http://127.0.0.1:1", "SUPABASE_SECRET_KEY": stack.secret_key},
        "SUPABASE_SECRET_KEYS": {"SUPABASE_URL": stack.api_url, "SUPABASE_SECRET_KEYS": json.dumps({"default": key})},
    }.get(wrong, {})
    async with serving("parse-webhook", **settings) as (url, process):
        answer = await post(f"{url}?{parse.url.partition('?')[2]}")
        process.kill()
        assert process.stdout is not None
        log = (await process.stdout.read()).decode()
    assert answer.status_code == 503
    assert answer.json() == {
        "code": "unavailable", "message": "The service does not answer at the moment. Try again later.",
    }  # fmt: skip
    assert answer.headers["retry-after"] == "30"
    assert "parse-webhook: " in log
    assert not [secret for secret in (parse.token, key, stack.secret_key) if secret in log]
    assert await world.rows() == before


async def test_it_answers_in_milliseconds(world: World) -> None:
    parses = [await world.parse() for _ in range(100)]
    took: list[float] = []
    async with httpx.AsyncClient() as client:
        await client.post(world.url)
        for parse in parses:
            began = time.perf_counter()
            answer = await client.post(parse.url, content=b'{"status": "SUCCESS"}')
            took.append((time.perf_counter() - began) * 1000)
            assert answer.status_code == 202
    p95 = statistics.quantiles(took, n=20)[-1]
    print(f"\nparse-webhook, 100 calls: median {statistics.median(took):.1f} ms, p95 {p95:.1f} ms")
    assert p95 < 500


async def _open(url: str, length: str) -> tuple[asyncio.StreamReader, Any]:
    parts = httpx.URL(url)
    reader, writer = await asyncio.open_connection(parts.host, parts.port)
    target = parts.raw_path.decode()
    writer.write(f"POST {target} HTTP/1.1\r\nhost: {parts.host}\r\n{length}\r\n\r\n".encode())
    await writer.drain()
    return reader, writer
