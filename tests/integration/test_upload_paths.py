"""Every way into Storage, by every client that has it, has exactly one effect on documents and jobs."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any, cast
from uuid import uuid4

import pytest
from storage3.exceptions import StorageApiError
from supabase import AsyncClientOptions, acreate_client

from local.stack import Stack
from tests.conftest import Counted
from tests.integration.supabase_js import Caller, Refusal, SupabaseJs, supabase_js
from tests.integration.tus_js import TusJs, tus_js
from tests.integration.upload_clients import Js, Python, Tus, Uploads
from tests.people import Person, Project

FIRST, SECOND = b"# First\n\nedition\n", b"# Second\n\nedition, longer\n"
NEW, OLD = "available", "cancelled"


@dataclass(frozen=True)
class Way:
    """What is done, and all that is there afterwards: documents by name, and the jobs of all of them."""

    act: Callable[[Any], Awaitable[object]]
    documents: dict[str, tuple[int, bytes]]
    jobs: list[tuple[int, str]]
    before: dict[str, bytes] = field(default_factory=dict)
    refused: str | None = None


# What every client can do.
INTO: dict[str, Way] = {
    "upload": Way(lambda c: c.upload("a.md", FIRST), {"a.md": (1, FIRST)}, [(1, NEW)]),
    "upload of a taken name": Way(
        lambda c: c.upload("a.md", SECOND), {"a.md": (1, FIRST)}, [(1, NEW)], {"a.md": FIRST}, "409"
    ),
    "upsert": Way(
        lambda c: c.upload("a.md", SECOND, upsert=True), {"a.md": (2, SECOND)}, [(1, OLD), (2, NEW)], {"a.md": FIRST}
    ),
    "upsert of a new name": Way(lambda c: c.upload("a.md", FIRST, upsert=True), {"a.md": (1, FIRST)}, [(1, NEW)]),
    "upsert of the same bytes": Way(
        lambda c: c.upload("a.md", FIRST, upsert=True), {"a.md": (2, FIRST)}, [(1, OLD), (2, NEW)], {"a.md": FIRST}
    ),
    "signed URL": Way(lambda c: c.upload_signed("a.md", FIRST), {"a.md": (1, FIRST)}, [(1, NEW)]),
    "signed URL of a taken name": Way(
        lambda c: c.upload_signed("a.md", SECOND), {"a.md": (1, FIRST)}, [(1, NEW)], {"a.md": FIRST}, "409"
    ),
}
# What the clients of the whole API can.
WITHIN: dict[str, Way] = {
    "update": Way(lambda c: c.update("a.md", SECOND), {"a.md": (2, SECOND)}, [(1, OLD), (2, NEW)], {"a.md": FIRST}),
    "copy": Way(
        lambda c: c.copy("a.md", "b.md"), {"a.md": (1, FIRST), "b.md": (1, FIRST)}, [(1, NEW), (1, NEW)],
        {"a.md": FIRST},
    ),
    "copy onto a taken name": Way(
        lambda c: c.copy("a.md", "b.md"), {"a.md": (1, FIRST), "b.md": (1, SECOND)}, [(1, NEW), (1, NEW)],
        {"a.md": FIRST, "b.md": SECOND}, "409",
    ),
    "move": Way(lambda c: c.move("a.md", "b/c.md"), {"b/c.md": (1, FIRST)}, [(1, NEW)], {"a.md": FIRST}),
    "move onto a taken name": Way(
        lambda c: c.move("a.md", "b.md"), {"a.md": (1, FIRST), "b.md": (1, SECOND)}, [(1, NEW), (1, NEW)],
        {"a.md": FIRST, "b.md": SECOND}, "409",
    ),
    "move to its own name": Way(
        lambda c: c.move("a.md", "a.md"), {"a.md": (1, FIRST)}, [(1, NEW)], {"a.md": FIRST}
    ),
    "remove": Way(lambda c: c.remove("a.md"), {}, [(1, OLD)], {"a.md": FIRST}),
    "batch remove": Way(
        lambda c: c.remove("a.md", "b.md", "none.md"), {"c.md": (1, FIRST)}, [(1, OLD), (1, OLD), (1, NEW)],
        {"a.md": FIRST, "b.md": SECOND, "c.md": FIRST},
    ),
}  # fmt: skip
CELLS = [(client, way) for way in INTO for client in ("supabase-js", "python", "tus-js-client")] + [
    (client, way) for way in WITHIN for client in ("supabase-js", "python")
]


@pytest.fixture(scope="module")
async def js(stack: Stack) -> AsyncIterator[SupabaseJs]:
    """The process of supabase-js."""
    async with supabase_js(stack.api_url) as made:
        yield made


@pytest.fixture(scope="module")
async def tus(stack: Stack) -> AsyncIterator[TusJs]:
    """The process of tus-js-client."""
    async with tus_js(stack.api_url) as made:
        yield made


@pytest.fixture
async def bucket(project: Project, stack: Stack) -> AsyncIterator[str]:
    """A watched bucket of the test's own, because one path empties it."""
    name = f"paths-{uuid4()}"
    await project.connection.execute("insert into storage.buckets (id, name) values ($1, $1)", name)
    await project.connection.execute("insert into ingest.buckets (bucket_id) values ($1)", name)
    yield name
    await project.connection.execute("delete from ingest.buckets where bucket_id = $1", name)


async def token_of(person: Person) -> str:
    session = await person.client.auth.get_session()
    assert session is not None
    return session.access_token


async def clients(
    stack: Stack, js: SupabaseJs, tus: TusJs, person: Person, bucket: str, folder: str | None = None
) -> dict[str, Uploads]:
    """The three, each of them this person, in their own folder or another."""
    folder = folder or person.folder
    caller = Caller(js, stack.publishable_key, await token_of(person))
    by_js = Js(caller, bucket, folder)
    return {
        "supabase-js": by_js,
        "python": Python(person.client, bucket, folder),
        "tus-js-client": Tus(tus, caller.headers, by_js, bucket, folder),
    }


async def effects(project: Project, person: Person) -> tuple[dict[str, int], list[tuple[int, str]]]:
    """Documents by name with their generation, and every job, of this person."""
    rows = await project.connection.fetch(
        "select name, generation from public.documents where tenant_id = $1::uuid", person.id
    )
    jobs = await project.connection.fetch(
        "select generation, state::text from public.jobs where tenant_id = $1::uuid order by id", person.id
    )
    documents = {row["name"].removeprefix(f"{person.folder}/"): row["generation"] for row in rows}
    return documents, sorted((row["generation"], row["state"]) for row in jobs)


async def stored(stack: Stack, person: Person, bucket: str, names: dict[str, object]) -> dict[str, bytes]:
    """The bytes behind these names, read as the person."""
    files = person.client.storage.from_(bucket)
    return {name: await files.download(f"{person.folder}/{name}") for name in names}


async def sizes(project: Project, person: Person) -> dict[str, int]:
    rows = await project.connection.fetch(
        "select name, size from public.documents where tenant_id = $1::uuid", person.id
    )
    return {row["name"].removeprefix(f"{person.folder}/"): row["size"] for row in rows}


@pytest.mark.parametrize(("client", "way"), CELLS)
async def test_a_way_into_storage_has_exactly_one_effect(
    stack: Stack,
    js: SupabaseJs,
    tus: TusJs,
    project: Project,
    ada: Person,
    bucket: str,
    client: str,
    way: str,
    counted: Counted,
) -> None:
    expected = (INTO | WITHIN)[way]
    by = await clients(stack, js, tus, ada, bucket)
    failures = await project.connection.fetchval("select count(*) from ingest.trigger_failures")
    for name, content in expected.before.items():
        await by["python"].upload(name, content)

    if expected.refused is None:
        await expected.act(by[client])
    else:
        with pytest.raises((Refusal, StorageApiError)) as caught:
            await expected.act(by[client])
        assert str(cast(Any, caught.value).status) == expected.refused

    documents, jobs = await effects(project, ada)
    assert documents == {name: generation for name, (generation, _) in expected.documents.items()}
    assert jobs == sorted(expected.jobs)
    contents = {name: content for name, (_, content) in expected.documents.items()}
    assert await stored(stack, ada, bucket, dict.fromkeys(documents)) == contents
    assert await sizes(project, ada) == {name: len(content) for name, content in contents.items()}
    assert await project.connection.fetchval("select count(*) from ingest.trigger_failures") == failures
    counted("ways into Storage, by client")


@pytest.mark.parametrize("client", ["supabase-js", "python"])
async def test_an_emptied_bucket_has_no_documents_left_and_its_jobs_are_cancelled(
    stack: Stack, js: SupabaseJs, tus: TusJs, project: Project, ada: Person, bob: Person, bucket: str, client: str
) -> None:
    for person in (ada, bob):
        by = await clients(stack, js, tus, person, bucket)
        for name in ("a.md", "b.md"):
            await by["tus-js-client"].upload(name, FIRST)
        await person.upload("elsewhere.md", FIRST)

    if client == "supabase-js":
        await Caller(js, stack.secret_key).storage(None, "emptyBucket", bucket)
    else:
        options = AsyncClientOptions(auto_refresh_token=False, persist_session=False, httpx_client=ada.http)
        service = await acreate_client(stack.api_url, stack.secret_key, options)
        await service.storage.empty_bucket(bucket)

    for person in (ada, bob):
        documents, jobs = await effects(project, person)
        assert documents == {"elsewhere.md": 1}
        assert jobs == [(1, NEW), (1, OLD), (1, OLD)]


@pytest.mark.parametrize("client", ["supabase-js", "python", "tus-js-client"])
async def test_an_upload_into_anothers_folder_is_refused_and_has_no_effect(
    stack: Stack, js: SupabaseJs, tus: TusJs, project: Project, ada: Person, bob: Person, bucket: str, client: str
) -> None:
    by = await clients(stack, js, tus, ada, bucket, bob.folder)
    for upsert in (False, True):
        with pytest.raises((Refusal, StorageApiError)) as caught:
            await by[client].upload("a.md", FIRST, upsert=upsert)
        assert str(cast(Any, caught.value).status) == "403"
    with pytest.raises((Refusal, StorageApiError)):
        await by[client].upload_signed("a.md", FIRST)

    assert await effects(project, bob) == ({}, [])


@pytest.mark.parametrize("client", ["supabase-js", "python", "tus-js-client"])
async def test_a_file_beyond_the_buckets_limits_is_refused_and_has_no_effect(
    stack: Stack, js: SupabaseJs, tus: TusJs, project: Project, ada: Person, bucket: str, client: str
) -> None:
    by = await clients(stack, js, tus, ada, bucket)
    limit = "update storage.buckets set file_size_limit = $2, allowed_mime_types = $3 where id = $1"
    files = {path.name for path in (stack.directory / "storage").rglob("*")}
    for size, types, status in ((10, None, "413"), (None, ["application/pdf"], "415")):
        await project.connection.execute(limit, bucket, size, types)
        with pytest.raises((Refusal, StorageApiError)) as caught:
            await by[client].upload("a.md", FIRST)
        assert str(cast(Any, caught.value).status) == status

    assert await effects(project, ada) == ({}, [])
    assert {path.name for path in (stack.directory / "storage").rglob("*")} == files
