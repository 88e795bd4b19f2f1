"""Reconcile on the running stack, by the command that operators use and by the real Storage's word."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from local import deno
from local.stack import Stack
from local.worker_process import working
from tests.people import Person, Project
from worker.pipeline.fetch import ObjectStore


@dataclass
class Ran:
    """How a command ended."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> dict[str, Any]:
        said: dict[str, Any] = json.loads(self.out)
        return said


async def sluice(stack: Stack, *arguments: str, environment: dict[str, str] | None = None) -> Ran:
    """Run the command as an operator does."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-P", "-m", "worker", *arguments, cwd=deno.REPOSITORY,
        env=deno.environment((stack.environment() if environment is None else environment)
                             | {"PYTHONPATH": str(deno.REPOSITORY)}),
        stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    out, err = await asyncio.wait_for(process.communicate(), 60)
    assert process.returncode is not None
    return Ran(process.returncode, out.decode(), err.decode())


@asynccontextmanager
async def broken_function(project: Project) -> AsyncIterator[None]:
    """Let the function behind the trigger raise."""
    connection = project.connection
    whole = await connection.fetchval("select pg_get_functiondef('ingest.apply_object_change'::regproc)")
    await connection.execute(
        "create or replace function ingest.apply_object_change(p_old jsonb, p_new jsonb, p_priority smallint default 2)"
        " returns void language plpgsql set search_path = '' as $$ begin raise exception 'broken on purpose'; end $$"
    )
    try:
        yield
    finally:
        await connection.execute(whole)


@asynccontextmanager
async def disabled_trigger(project: Project) -> AsyncIterator[None]:
    """Let the trigger see nothing."""
    await project.connection.execute("alter table storage.objects disable trigger sluice_object_changed")
    try:
        yield
    finally:
        await project.connection.execute("alter table storage.objects enable trigger sluice_object_changed")


async def later(project: Project) -> None:
    """Let six minutes pass for the sightings."""
    await project.connection.execute(
        "update ingest.missing_objects set first_seen_at = first_seen_at - interval '6 minutes',"
        " last_seen_at = last_seen_at - interval '6 minutes'"
    )


@pytest.mark.parametrize("broken", [broken_function, disabled_trigger])
async def test_what_happened_while_the_trigger_was_broken_is_right_after_a_reconcile(
    stack: Stack, temporary_directory: Path, project: Project, ada: Person, broken: Any
) -> None:
    changed = await ada.upload("changed.md", b"# Old\n\nThe old harbour wall.", mime_type="text/markdown")
    doomed = await ada.upload("doomed.md", b"# Doomed\n\nThe pier that goes.", mime_type="text/markdown")
    async with broken(project):
        new = [
            await ada.upload(
                f"new {number}.md", f"# New {number}\n\nPier {number}.".encode(), mime_type="text/markdown"
            )
            for number in range(5)
        ]
        await ada.upload("changed.md", b"# New\n\nThe new harbour wall.", mime_type="text/markdown", upsert=True)
        await ada.client.storage.from_("documents").remove([doomed])
    assert await project.count("public.documents", ada.id) == 2

    first = await sluice(stack, "reconcile", "--json")
    assert first.code == 0, first.err
    assert (first.json["without_document"], first.json["behind"], first.json["failed"]) == (5, 1, 0)
    assert (first.json["mended"], first.json["removed"]) == (6, 0)
    assert (await project.document(changed))["generation"] == 2

    await later(project)
    await project.connection.execute("select ingest.sweep_tombstones()")  # what the broken function left for the sweep
    second = await sluice(stack, "reconcile", "--json")
    assert second.code == 0, second.err
    assert second.json["removed"] == (1 if broken is disabled_trigger else 0)
    assert (second.json["mended"], second.json["enqueued"]) == (0, 0)

    async with working(stack, temporary_directory / "reconciled.log"):
        for path in [*new, changed]:
            assert (await project.settled(path))["state"] == "ready"
    names = await project.connection.fetch("select name from public.documents where tenant_id = $1::uuid", ada.id)
    assert {row["name"] for row in names} == {*new, changed}
    contents = await project.connection.fetch(
        "select content from public.chunks c join public.documents d on d.id = c.document_id where d.name = $1", changed
    )
    assert "new harbour wall" in "".join(row["content"] for row in contents)
    failures = await project.connection.fetchval(
        "select count(*) from ingest.trigger_failures where message like '%on purpose%'"
    )
    assert failures == 0


async def test_a_worker_reconciles_by_itself(
    stack: Stack, temporary_directory: Path, project: Project, ada: Person
) -> None:
    async with disabled_trigger(project):
        path = await ada.upload("missed.md", b"# Missed\n\nThe missed pier.", mime_type="text/markdown")
    await project.connection.execute("update ingest.reconciles set started_at = null, finished_at = null")
    async with working(stack, temporary_directory / "reconciling.log"):
        await project.until(
            "select count(*) as ready from public.documents where name = $1 and state = 'ready'",
            path,
            when=lambda row: row["ready"] == 1,
        )


@asynccontextmanager
async def bucket(project: Project, *, watched: bool) -> AsyncIterator[str]:
    """Make a bucket, and afterwards leave nothing of it watched."""
    name = f"shelf-{uuid4().hex[:8]}"
    await project.connection.execute("insert into storage.buckets (id, name) values ($1, $1)", name)
    if watched:
        await project.connection.execute("insert into ingest.buckets (bucket_id) values ($1)", name)
    try:
        yield name
    finally:
        await project.connection.execute(
            "select ingest.remove_document(id) from public.documents where bucket_id = $1", name
        )
        await project.connection.execute("delete from ingest.buckets where bucket_id = $1", name)
        await project.connection.execute("delete from ingest.missing_objects where bucket_id = $1", name)
        await project.connection.execute("delete from ingest.alerts where subject = $1", name)


async def fill(stack: Stack, shelf: str, folder: str, count: int) -> list[str]:
    """Store files with the secret key."""
    store = ObjectStore(stack.api_url, stack.secret_key)
    names = [f"{folder}/{number}.md" for number in range(count)]
    for name in names:
        await (
            (await store._client())
            .storage.from_(shelf)
            .upload(name, b"# A\n\nText.", {"content-type": "text/markdown"})
        )
    await store.close()
    return names


async def test_a_backfill_takes_in_what_a_bucket_held_before_it_was_watched(
    stack: Stack, project: Project, ada: Person
) -> None:
    async with bucket(project, watched=False) as shelf:
        await fill(stack, shelf, ada.folder, 3)

        unwatched = await sluice(stack, "backfill", shelf)
        first = await sluice(stack, "backfill", shelf, "--watch", "--json")
        second = await sluice(stack, "backfill", shelf)

        assert (unwatched.code, unwatched.out) == (2, "")
        assert "--watch" in unwatched.err
        assert (first.code, first.json) == (0, {"bucket": shelf, "objects": 3, "enqueued": 3, "failed": 0})
        assert (second.code, second.out, second.err) == (0, f"3 objects seen in {shelf}, 0 taken in.\n", "")
        rows = await project.connection.fetch(
            "select j.priority, count(*) from public.jobs j join public.documents d on d.id = j.document_id"
            " where d.bucket_id = $1 group by 1",
            shelf,
        )
        assert [tuple(row) for row in rows] == [(4, 3)]


async def test_a_bucket_that_does_not_exist_is_wrong_usage(stack: Stack) -> None:
    ran = await sluice(stack, "backfill", "no-such-bucket", "--watch")
    assert ran.code == 2
    assert "There is no bucket no-such-bucket" in ran.err


@pytest.mark.parametrize("command", [["reconcile"], ["backfill", "documents"]])
async def test_settings_that_are_missing_and_a_database_that_is_not_there_are_told(
    stack: Stack, command: list[str]
) -> None:
    missing = await sluice(stack, *command, environment={})
    assert (missing.code, missing.out) == (2, "")
    assert "DATABASE_URL: is not set" in missing.err
    wrong = stack.environment() | {"DATABASE_URL": "postgresql://ingest_worker:hunter2@127.0.0.1:1/postgres"}
    away = await sluice(stack, *command, environment=wrong)
    assert away.code == 1
    assert "did not answer. Check" in away.err
    assert "hunter2" not in away.err + away.out
    assert "Traceback" not in away.err


async def test_a_refusal_is_told_and_is_an_error_of_the_command_and_a_dry_run_changes_nothing(
    stack: Stack, project: Project, ada: Person
) -> None:
    async with bucket(project, watched=True) as shelf:
        names = await fill(stack, shelf, ada.folder, 2)
        async with disabled_trigger(project):
            store = ObjectStore(stack.api_url, stack.secret_key)
            await (await store._client()).storage.from_(shelf).remove(names)
            await store.close()

        dry = await sluice(stack, "reconcile", "--dry-run")
        assert (dry.code, dry.err) == (0, "")
        assert "2  documents without an object" in dry.out
        assert await project.connection.fetchval(
            "select count(*) from ingest.missing_objects where bucket_id = $1", shelf
        ) == 0  # fmt: skip
        assert (await sluice(stack, "reconcile")).code == 0
        await later(project)
        refused = await sluice(stack, "reconcile", "--json")

        assert refused.code == 1
        assert refused.json["refused"].keys() == {shelf}
        assert f"Storage lists nothing at all in bucket {shelf}" in refused.err
        left = await project.connection.fetchval("select count(*) from public.documents where bucket_id = $1", shelf)
        assert left == 2


async def test_storages_word_counts_only_when_it_says_plainly_that_this_object_is_not_there(
    stack: Stack, project: Project, ada: Person
) -> None:
    path = await ada.upload("here.md", b"# Here")
    document = (await project.document(path))["id"]
    store = ObjectStore(stack.api_url, stack.secret_key)
    assert not await store.lacks(document, "documents", path)
    assert await store.lacks(document, "documents", f"{ada.folder}/gone.md")
    assert await store.lacks(uuid4(), "documents", path)  # the name is another's now
    assert not await store.lacks(document, "no-such-bucket", path)
    await store.close()

    async def proxy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        body = answers.pop()
        head = f"HTTP/1.1 {body[0]} X\r\ncontent-length: {len(body[1])}\r\nconnection: close\r\n\r\n"
        writer.write(head.encode() + body[1])
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(proxy, "127.0.0.1", 0)
    elsewhere = ObjectStore(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", stack.secret_key)
    for status, body in (
        (404, b"<h1>Not Found</h1>"),
        (404, b'{"message": "Route not found", "error": "Not Found", "statusCode": "404"}'),
        (403, b'{"message": "Invalid key", "error": "Unauthorized", "statusCode": "403"}'),
        (503, b"busy"),
        (200, b"not json"),
        (200, b"[]"),
        (200, b"{}"),
    ):
        answers = [(status, body)]
        assert not await elsewhere.lacks(document, "documents", path), body
    server.close()
    await server.wait_closed()
    assert not await elsewhere.lacks(document, "documents", path)  # nobody answers
    await elsewhere.close()
