"""Two users of one project, and every way in which the one might reach what the other owns. None may lead across.

Each test first shows that the way is open to the owner, so that a refusal means what it says.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import asyncpg
import httpx
import pytest

from local.stack import Stack
from tests.callers import as_user
from tests.security.http_world import TEXT, VECTOR, HttpWorld, http_world

TABLES = ("documents", "jobs", "job_events", "chunks", "pages", "usage", "tenants")
OBJECT = "/storage/v1/object"


@pytest.fixture(scope="module")
async def shared(stack: Stack, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[HttpWorld]:
    async with http_world(stack, Path(tmp_path_factory.mktemp("worker")) / "worker.log") as made:
        yield made


@pytest.fixture
async def world(shared: HttpWorld) -> AsyncIterator[HttpWorld]:
    """Ada's document is as it was, whatever was tried."""
    before = await shared.state()
    assert len(before) >= 4
    yield shared
    assert await shared.state() == before
    assert await shared.bytes_of(shared.name) == TEXT


class Attack:
    """The same request by Ada, who may, and by Bob."""

    def __init__(self, world: HttpWorld) -> None:
        self.world = world

    async def ada(self, method: str, path: str, body: Any = None, **headers: str) -> httpx.Response:
        return await self.world.send(method, path, body, token=self.world.tokens["A"], **headers)

    async def bob(self, method: str, path: str, body: Any = None, **headers: str) -> httpx.Response:
        return await self.world.send(method, path, body, token=self.world.tokens["B"], **headers)

    def leaks(self, answer: httpx.Response) -> bool:
        """Whether an answer holds anything of Ada's that was not in Bob's request."""
        world = self.world
        secrets = (world.document, "tide gauge", "harbour.md")
        text = answer.text
        for sent in (str(answer.request.url), (answer.request.content or b"").decode(errors="replace")):
            secrets = tuple(secret for secret in secrets if secret not in sent)
        return any(secret in text for secret in secrets)


@pytest.fixture
def attack(world: HttpWorld) -> Attack:
    return Attack(world)


@pytest.mark.parametrize("table", [*(f"public.{name}" for name in TABLES), "ingest.usage", "ingest.embeddings"])
async def test_direct_sql_as_the_other_user_sees_no_row(world: HttpWorld, table: str) -> None:
    column = "id" if table == "public.tenants" else "tenant_id"
    statement = f"select count(*) from {table} where {column} = $1::uuid"
    connection = world.project.connection
    for person, sees in ((world.ada, True), (world.bob, False)):
        async with as_user(connection, person.id):
            assert (await connection.fetchval(statement, world.ada.id) > 0) == sees
            # A condition of the attacker's own is not run on rows that the policy hides.
            assert await connection.fetchval(f"select count(*) from {table} t where t::text <> '' and {column} <> $1",
                                             person.id) == 0  # fmt: skip


async def test_direct_sql_with_a_leaky_function_learns_nothing(world: HttpWorld) -> None:
    connection = world.project.connection
    # An error that quotes what it was given, run before the policy, would tell.
    leaky = "select 1 from public.chunks where content::int = 1"
    with pytest.raises(asyncpg.InvalidTextRepresentationError, match="tide gauge"):
        async with as_user(connection, world.ada.id):
            await connection.fetch(leaky)
    async with as_user(connection, world.bob.id):
        assert await connection.fetch(leaky) == []


FILTERS = [
    "select=*",
    "select=*&tenant_id=eq.{tenant}",
    "select=*&tenant_id=in.({tenant},{other})",
    "select=*&tenant_id=neq.{other}",
    "select=*&or=(tenant_id.eq.{tenant},tenant_id.eq.{other})",
    "select=*&not.and=(tenant_id.eq.{other})",
    "select=*&tenant_id=not.is.null",
    "select=*&tenant_id=gt.00000000-0000-0000-0000-000000000000",
    "select=tenant_id&order=tenant_id.desc&limit=1000",
    "select=*&limit=1000&offset=0",
]


@pytest.mark.parametrize("filter_", FILTERS)
@pytest.mark.parametrize("table", [name for name in TABLES if name != "tenants"])
async def test_rest_filters_find_no_row(attack: Attack, table: str, filter_: str) -> None:
    query = filter_.replace("{tenant}", attack.world.ada.id).replace("{other}", attack.world.bob.id)
    own = await attack.ada("GET", f"/rest/v1/{table}?select=*&tenant_id=eq.{attack.world.ada.id}")
    assert len(own.json()) >= 1
    answer = await attack.bob("GET", f"/rest/v1/{table}?{query}", prefer="count=exact")
    rows = answer.json()
    assert rows == [] if answer.status_code < 300 else "code" in rows
    assert answer.headers.get("content-range", "*/0").endswith("/0")
    assert not attack.leaks(answer)


@pytest.mark.parametrize(
    "path",
    [
        "documents?select=*,chunks(*)",
        "chunks?select=*,documents!inner(*)&documents.tenant_id=eq.{tenant}",
        "chunks?select=content,documents(name)",
        "tenants?select=*,tenant_members(*)",
        "tenant_members?select=*,tenants!inner(*)&tenants.id=eq.{tenant}",
        "documents?select=id,chunks!inner(content)&chunks.content=like.*tide*",
    ],
)
async def test_embedded_resources_bring_no_row_along(attack: Attack, path: str) -> None:
    target = f"/rest/v1/{path.replace('{tenant}', attack.world.ada.id)}"
    own = await attack.ada("GET", target)
    assert own.status_code < 300 or "members" in path, own.text
    answer = await attack.bob("GET", target)
    assert attack.world.ada.id not in answer.text
    assert not attack.leaks(answer)


@pytest.mark.parametrize("method", ["POST", "PATCH", "PUT", "DELETE"])
@pytest.mark.parametrize("table", TABLES)
async def test_rest_writes_nothing_anywhere(attack: Attack, table: str, method: str) -> None:
    column = "id" if table == "tenants" else "tenant_id"
    body = None if method == "DELETE" else {column: attack.world.ada.id}
    query = "" if method == "POST" else f"?{column}=eq.{attack.world.ada.id}"
    prefer = "return=representation,resolution=merge-duplicates"
    for caller in (attack.ada, attack.bob):  # what people own here they read; the worker writes it
        answer = await caller(method, f"/rest/v1/{table}{query}", body, prefer=prefer)
        assert answer.status_code in (400, 401, 403, 404, 405), f"{answer.status_code} {answer.text}"


async def test_rpc_arguments_with_foreign_ids_reach_nothing(attack: Attack) -> None:
    world = attack.world
    calls: list[tuple[str, Any]] = [
        ("rename_organisation", {"tenant": world.ada.id, "name": "Mine"}),
        ("change_role", {"tenant": world.ada.id, "member": world.bob.id, "role": "admin"}),
        ("remove_member", {"tenant": world.ada.id, "member": world.ada.id}),
        ("invite_member", {"tenant": world.ada.id, "role": "admin", "member": world.bob.id}),
        ("accept_invitation", {"invitation": str(uuid4())}),
        ("job_details", {"job": world.job}),
        ("retry_jobs", {"tenant": world.ada.id}),
        ("cancel_jobs", {"tenant": world.ada.id}),
        ("admit_search", {"user_id": world.ada.id}),
        ("record_search", {"request": str(uuid4()), "payer": world.ada.id, "provider": "x", "model": "m", "tokens": 1}),
        ("health", {}),
        ("parse_hint", {"parse_id": world.parse, "secret_sha256": "00" * 32, "digest": "00" * 32}),
    ]
    for name, arguments in calls:
        answer = await attack.bob("POST", f"/rest/v1/rpc/{name}", arguments)
        assert answer.status_code in (400, 401, 403, 404), f"{name}: {answer.status_code} {answer.text}"
        assert not attack.leaks(answer)
    spent = "select count(*) from ingest.usage where kind = 'search' and tenant_id = $1::uuid"
    assert await world.project.connection.fetchval(spent, world.ada.id) == 0


@pytest.mark.parametrize("verb", ["retry_job", "cancel_job"])
async def test_a_foreign_job_is_neither_retried_nor_cancelled_and_looks_like_none(attack: Attack, verb: str) -> None:
    world = attack.world
    foreign = await attack.bob("POST", f"/rest/v1/rpc/{verb}", {"job": world.job})
    missing = await attack.bob("POST", f"/rest/v1/rpc/{verb}", {"job": 2**40})
    assert foreign.json()["code"] == "42501"
    assert (foreign.status_code, foreign.text.replace(f"job {world.job} ", "")) == (
        missing.status_code, missing.text.replace(f"job {2**40} ", ""),
    )  # fmt: skip
    # The owner is let through, and told that there is nothing to do: the job is completed.
    own = await attack.ada("POST", f"/rest/v1/rpc/{verb}", {"job": world.job})
    assert own.text == "false" if verb == "cancel_job" else "cannot be retried" in own.text, own.text


@pytest.mark.parametrize(
    "filters",
    [
        {},
        {"tenant_ids": ["{tenant}"]},
        {"tenant_ids": ["{tenant}", "{other}"]},
        {"document_ids": ["{document}"]},
        {"name_prefix": "{tenant}/"},
        {"mime_types": ["text/markdown"]},
        {"tenant_ids": ["{tenant}"], "document_ids": ["{document}"], "language": "simple"},
    ],
    ids=json.dumps,
)
async def test_search_filters_with_foreign_ids_find_nothing(attack: Attack, filters: dict[str, Any]) -> None:
    world, text = attack.world, json.dumps(filters)
    for name, value in (("tenant", world.ada.id), ("other", world.bob.id), ("document", world.document)):
        text = text.replace("{" + name + "}", value)
    body = {"query": "tide gauge", "query_embedding": VECTOR, "match_count": 100, "filters": json.loads(text)}
    own = await attack.ada("POST", "/rest/v1/rpc/search", body)
    assert [row["document_id"] for row in own.json()] == [world.document]
    answer = await attack.bob("POST", "/rest/v1/rpc/search", body)
    assert (answer.status_code, answer.json()) == (200, [])


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("sign/documents/{name}", {"expiresIn": 60}),
        ("sign/documents/{name}", {"expiresIn": 60, "transform": {"width": 10}}),
        ("upload/sign/documents/{name}", {}),
        ("upload/sign/documents/{folder}/new.txt", {}),
    ],
)
async def test_a_signed_url_of_a_foreign_object_is_not_given(attack: Attack, path: str, body: Any) -> None:
    target = f"{OBJECT}/{path.replace('{name}', attack.world.name).replace('{folder}', attack.world.ada.id)}"
    if path.startswith("sign") and "transform" not in body:
        assert (await attack.ada("POST", target, body)).status_code == 200
    answer = await attack.bob("POST", target, body, **{"x-upsert": "true"})
    assert answer.status_code >= 400
    assert "token" not in answer.text


async def test_signed_urls_in_a_batch_name_no_foreign_object(attack: Attack) -> None:
    mine = await attack.world.fresh(owner=attack.world.bob)
    body = {"expiresIn": 60, "paths": [attack.world.name, mine, "../" + attack.world.name]}
    answers = (await attack.bob("POST", f"{OBJECT}/sign/documents", body)).json()
    assert [bool(one.get("signedURL")) for one in answers] == [False, True, False]


async def test_a_signed_url_opens_no_other_object(attack: Attack) -> None:
    mine = await attack.world.fresh(owner=attack.world.bob)
    signed = (await attack.bob("POST", f"{OBJECT}/sign/documents/{mine}", {"expiresIn": 60})).json()["signedURL"]
    assert (await attack.world.send("GET", f"/storage/v1{signed}")).status_code == 200
    stolen = f"/storage/v1{signed.replace(mine, attack.world.name)}"
    answer = await attack.world.send("GET", stolen)
    assert answer.status_code >= 400
    assert not attack.leaks(answer)
    upload = await attack.bob("POST", f"{OBJECT}/upload/sign/documents/{attack.world.bob.id}/new.txt", {})
    token = upload.json()["url"].partition("token=")[2]
    target = f"{OBJECT}/upload/sign/documents/{attack.world.name}?token={token}"
    assert (await attack.world.send("PUT", target, b"overwritten")).status_code >= 400


@pytest.mark.parametrize("verb", ["move", "copy"])
async def test_no_object_crosses_to_another_tenant(attack: Attack, verb: str) -> None:
    world = attack.world
    mine = await world.fresh(owner=world.bob)
    crossings = [
        (world.name, f"{world.bob.id}/taken.md"),
        (mine, f"{world.ada.id}/planted.txt"),
        (mine, world.name),
        (mine, "no-tenant/planted.txt"),
        (mine, f"{world.bob.id}/../{world.ada.id}/planted.txt"),
        (mine, f"{world.ada.id.upper()}/planted.txt"),
        (mine, f"/{world.ada.id}/planted.txt"),
    ]
    for source, target in crossings:
        body = {"bucketId": "documents", "sourceKey": source, "destinationKey": target}
        answer = await attack.bob("POST", f"{OBJECT}/{verb}", body, **{"x-upsert": "true"})
        assert answer.status_code >= 400, f"{source} → {target}"
        assert not attack.leaks(answer)
    assert await world.bytes_of(f"{world.bob.id}/taken.md") is None
    assert await world.bytes_of(f"{world.ada.id}/planted.txt") is None
    # Inside one's own folder it works: what was refused is the crossing.
    own = {"bucketId": "documents", "sourceKey": mine, "destinationKey": f"{world.bob.id}/{uuid4()}.txt"}
    assert (await attack.bob("POST", f"{OBJECT}/{verb}", own)).status_code == 200


@pytest.mark.parametrize("method", ["POST", "PUT"])
async def test_an_upsert_onto_a_foreign_name_changes_nothing(attack: Attack, method: str) -> None:
    world = attack.world
    for name in (world.name, f"{world.ada.id}/new.txt"):
        answer = await attack.bob(
            method, f"{OBJECT}/documents/{name}", b"overwritten", **{"x-upsert": "true", "content-type": "text/plain"}
        )
        assert answer.status_code >= 400
    assert await world.bytes_of(f"{world.ada.id}/new.txt") is None
    fresh = await world.fresh()
    assert (await attack.ada(method, f"{OBJECT}/documents/{fresh}", b"x", **{"x-upsert": "true"})).status_code == 200


async def test_lists_and_reads_show_no_foreign_object(attack: Attack) -> None:
    world = attack.world
    for prefix in ("", world.ada.id, f"{world.ada.id}/", world.ada.id[:8]):
        listed = await attack.bob("POST", f"{OBJECT}/list/documents", {"prefix": prefix, "search": "harbour"})
        assert "harbour.md" not in listed.text
        assert world.ada.id not in listed.text
    for path in ("authenticated/documents", "documents", "public/documents", "info/documents"):
        answer = await attack.bob("GET", f"{OBJECT}/{path}/{world.name}")
        assert answer.status_code >= 400
        missing = await attack.bob("GET", f"{OBJECT}/{path}/{world.ada.id}/there-is-none.md")
        # What is there and what is not look the same.
        assert (answer.status_code, answer.text.replace(world.name, "")) == (
            missing.status_code, missing.text.replace(f"{world.ada.id}/there-is-none.md", ""),
        )  # fmt: skip


async def test_a_removal_of_foreign_objects_removes_nothing(attack: Attack) -> None:
    world = attack.world
    answer = await attack.bob("DELETE", f"{OBJECT}/documents", {"prefixes": [world.name, world.ada.id]})
    assert answer.json() == [] or answer.status_code >= 400
    assert (await attack.bob("DELETE", f"{OBJECT}/documents/{world.name}")).status_code >= 400
    assert (await attack.bob("POST", "/storage/v1/bucket/documents/empty")).status_code >= 400


@pytest.mark.parametrize("joined", ["document:{document}", "document:{other}", "ops:jobs", "document:", "*"])
async def test_a_foreign_documents_topic_is_neither_heard_nor_spoken_on(world: HttpWorld, joined: str) -> None:
    connection, topic = world.project.connection, f"document:{world.document}"
    joined = joined.replace("{document}", world.document).replace("{other}", str(uuid4()))
    heard = "select count(*) from realtime.messages where topic = $1"
    spoken = (
        "insert into realtime.messages (topic, extension, event, payload, private)"
        " values ($1, 'broadcast', 'progress', '{\"state\": \"completed\"}', true)"
    )
    for person, hears in ((world.ada, joined == topic), (world.bob, False)):
        async with as_user(connection, person.id):
            await connection.execute("select set_config('realtime.topic', $1, true)", joined)
            assert (await connection.fetchval(heard, topic) > 0) == hears
            assert await connection.fetchval("select count(*) from realtime.messages where topic <> $1", topic) == 0
    for person in (world.ada, world.bob):  # progress is the database's to tell
        async with as_user(connection, person.id):
            await connection.execute("select set_config('realtime.topic', $1, true)", joined)
            with pytest.raises(asyncpg.InsufficientPrivilegeError):
                await connection.execute(spoken, topic)


@pytest.mark.parametrize("schema", ["ingest", "storage", "auth", "realtime", "pg_catalog", "extensions"])
async def test_no_other_schema_is_reached_through_the_api(attack: Attack, schema: str) -> None:
    for table in ("objects", "usage", "embeddings", "users", "messages", "pg_authid"):
        answer = await attack.bob("GET", f"/rest/v1/{table}?select=*", **{"accept-profile": schema})
        assert answer.status_code >= 400
    for function in ("my_tenants", "text_hits", "claim_jobs", "admit_search"):
        answer = await attack.bob("POST", f"/rest/v1/rpc/{function}", {}, **{"content-profile": schema})
        assert answer.status_code >= 400
