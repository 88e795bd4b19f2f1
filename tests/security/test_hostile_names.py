"""Names are data: 500 that would harm SQL, paths or URLs become documents of the right tenant, each with its text."""

from __future__ import annotations

import asyncio
import json
import re
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path
from urllib.parse import quote
from uuid import uuid4

import asyncpg
import httpx
import pytest

from local.stack import Stack
from local.worker_process import working
from tests import hostile_names
from tests.conftest import Counted
from tests.integration.supabase_js import Caller, Refusal, blob, supabase_js
from tests.people import Person, Project
from worker.errors import Rejected
from worker.pipeline.fetch import ObjectStore

BUCKET = "documents"
# What the worker calls the files it works on, and the folder of its parsers' children.
_OURS = re.compile(r"sluice-[\w-]+|children|[0-9a-f-]{36}-\d+|\d+-\d+")


def text_of(number: int) -> bytes:
    return f"# File {number}\n\nThis is what only file number {number} says.\n".encode()


def has_dots(name: str) -> bool:
    return not {".", ".."}.isdisjoint(name.split("/"))


async def insert(stack: Stack, connection: asyncpg.Connection, name: str, content: bytes) -> None:
    """Make an object as Storage's final write does, under a name that its API does not take."""
    version = str(uuid4())
    (stack.directory / "storage" / version).write_bytes(content)
    metadata = {"size": len(content), "mimetype": "text/markdown", "contentLength": len(content)}
    async with connection.transaction():
        await connection.execute("set local role service_role")
        await connection.execute(
            "insert into storage.objects (bucket_id, name, version, metadata) values ($1, $2, $3, $4)",
            BUCKET, name, version, json.dumps(metadata),
        )  # fmt: skip


@pytest.fixture
async def her(stack: Stack, ada: Person) -> AsyncIterator[httpx.AsyncClient]:
    """A plain HTTP client with Ada's token, which sends a path as it is."""
    session = await ada.client.auth.get_session()
    assert session is not None
    headers = {"apikey": stack.publishable_key, "authorization": f"Bearer {session.access_token}"}
    async with httpx.AsyncClient(base_url=f"{stack.api_url}/storage/v1/object", headers=headers, timeout=30) as made:
        yield made


async def test_500_names_become_documents_of_the_right_tenant_with_the_text_of_their_own_file(
    stack: Stack, project: Project, ada: Person, her: httpx.AsyncClient, tmp_path: Path, counted: Counted
) -> None:
    db, folder = project.connection, ada.folder
    names, rootless = hostile_names.below(folder), hostile_names.outside(folder)
    failures = await db.fetchval("select count(*) from ingest.trigger_failures")
    by_http = 0
    for number, name in enumerate(names):
        if not has_dots(name):
            answer = await her.post(f"/{BUCKET}/{quote(name)}", content=text_of(number))
            assert answer.status_code == 200 or answer.json()["code"] == "InvalidKey", (name, answer.text)
            if answer.status_code == 200:
                by_http += 1
                continue
        await insert(stack, db, name, text_of(number))
    for name in rootless:
        await insert(stack, db, name, b"nobody's")

    rows = await db.fetch("select name, tenant_id::text, generation from public.documents where name = any ($1)", names)
    assert {row["name"]: (row["tenant_id"], row["generation"]) for row in rows} == dict.fromkeys(names, (ada.id, 1))
    assert await db.fetchval("select count(*) from public.documents where name = any ($1)", rootless) == 0
    ignored = "select count(*) from ingest.ignored_objects where name = any ($1) and reason = 'no_tenant_folder'"
    assert await db.fetchval(ignored, rootless) == len(rootless)
    assert await db.fetchval("select count(*) from ingest.trigger_failures") == failures

    seen: set[str] = set()
    unread = "select count(*) from public.documents where tenant_id = $1::uuid and state in ('pending', 'processing')"

    async def watch() -> None:
        while True:
            seen.update(part for path in tmp_path.rglob("*") for part in path.relative_to(tmp_path).parts)
            await asyncio.sleep(0.01)

    log = tmp_path.parent / f"{tmp_path.name}.log"
    async with working(stack, log, SLUICE_TEMP_DIR=str(tmp_path), SLUICE_TENANT_CAP="8"):
        watching = asyncio.create_task(watch())
        await project.until(unread, ada.id, when=lambda row: row["count"] == 0, seconds=90)
        watching.cancel()

    ended = await db.fetch(
        "select d.name, d.state::text, d.error_code, string_agg(c.content, ' ' order by c.ordinal) as text"
        " from public.documents d left join public.chunks c on c.document_id = d.id where d.tenant_id = $1::uuid"
        " group by d.id",
        ada.id,
    )
    numbers = {name: number for number, name in enumerate(names)}
    wrong = {
        row["name"]: dict(row)
        for row in ended
        if (
            row["error_code"] != "name_unreadable"
            if has_dots(row["name"])
            else row["state"] != "ready" or f"only file number {numbers[row['name']]} says" not in row["text"]
        )
    }
    assert wrong == {}
    assert len(ended) == len(names)
    assert seen
    assert {part for part in seen if not _OURS.fullmatch(part)} == set()
    # No name broke a line of the log, or it would no longer be one record a line.
    assert all(line.startswith("{") for line in log.read_text().splitlines())
    counted("hostile names", len(names) + len(rootless))
    counted("of them taken over HTTP", by_http)


async def test_what_supabase_js_uploads_is_one_document_of_that_object_or_a_plain_refusal(
    stack: Stack, project: Project, bob: Person, counted: Counted
) -> None:
    session = await bob.client.auth.get_session()
    assert session is not None
    failures = await project.connection.fetchval("select count(*) from ingest.trigger_failures")
    taken, refused = 0, Counter[str | None]()
    async with supabase_js(stack.api_url) as js:
        caller = Caller(js, stack.publishable_key, session.access_token)
        for name in hostile_names.below(bob.folder):
            try:
                made = await caller.storage(BUCKET, "upload", name, blob(b"x"), {"upsert": True})
            except Refusal as exc:
                refused[exc.status] += 1
                continue
            # It sends a name as it is, so that ? and # end it: what counts is the object that came of it.
            row = await project.connection.fetchrow(
                "select o.name, d.name as document, d.tenant_id::text, i.name as ignored from storage.objects o"
                " left join public.documents d on d.id = o.id left join ingest.ignored_objects i on i.object_id = o.id"
                " where o.id = $1::uuid",
                made["id"],
            )
            assert row is not None, name
            if row["name"] == f"{bob.folder}/":
                assert (row["document"], row["ignored"]) == (None, row["name"])
            else:
                assert (row["document"], row["tenant_id"], row["ignored"]) == (row["name"], bob.id, None), name
            taken += 1
    # Not a name; not Bob's folder any more, once the client resolved the dots; no route.
    assert set(refused) <= {"400", "403", "404"}
    assert taken > 100
    assert await project.connection.fetchval("select count(*) from ingest.trigger_failures") == failures
    counted("hostile names taken from supabase-js", taken)


async def test_no_name_leads_the_workers_key_to_anothers_file(
    stack: Stack, project: Project, ada: Person, bob: Person, tmp_path: Path
) -> None:
    await bob.upload("secret.md", b"the secret of Bob")
    store = ObjectStore(stack.api_url, stack.secret_key)
    for way in ("../{}", "x/../../{}", "./../{}", "..//../{}"):
        name = f"{ada.folder}/{way.format(f'{bob.folder}/secret.md')}"
        await insert(stack, project.connection, name, b"Ada's own")
        with pytest.raises(Rejected) as caught:
            await store.download(BUCKET, name, tmp_path / "file", max_bytes=1000)
        assert caught.value.code == "name_unreadable"
    for way in ("%2e%2e/{}", "..%2f{}", "%252e%252e/{}", "..\\{}", "\u2025/{}"):
        name = f"{ada.folder}/{way.format(f'{bob.folder}/secret.md')}"
        await insert(stack, project.connection, name, b"Ada's own")
        await store.download(BUCKET, name, tmp_path / "file", max_bytes=1000)
        assert (tmp_path / "file").read_bytes() == b"Ada's own"
    await store.close()


async def test_reconcile_asks_storage_for_the_very_name(stack: Stack, project: Project, ada: Person) -> None:
    store = ObjectStore(stack.api_url, stack.secret_key)
    for number, piece in enumerate(("100%25.md", "a%2Fb.md", "what?.md", "#1.md", "ü%.md", "x/../y.md")):
        name = f"{ada.folder}/{number}/{piece}"
        await insert(stack, project.connection, name, b"here")
        document = await project.document(name)
        assert not await store.lacks(document["id"], BUCKET, name), name
    await store.close()
