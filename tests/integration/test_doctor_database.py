"""`sluice doctor`, layer database: each set-up breaks one thing, and that is what is found."""

from __future__ import annotations

import asyncio
import contextlib
import tempfile
import time
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from uuid import uuid4

import asyncpg
import pytest

from tests.integration.installation import Breaking, Installation, SetUp, found_as, ids
from tests.pgbouncer import MISSING, PROGRAM, pgbouncer
from tests.tls_line import database_line
from worker.db import queries
from worker.operate.doctor import migrations


def sql(breaking: str, mending: str, *, owner: bool = False) -> Breaking:
    """Break and mend by statements, of the superuser or of postgres."""
    return lambda installation: installation.sql(breaking, mending, owner=owner)


def url(**change: str) -> Breaking:
    """Change DATABASE_URL."""

    @contextlib.asynccontextmanager
    async def broken(installation: Installation) -> AsyncIterator[None]:
        installation.environment["DATABASE_URL"] = installation.at(**change)  # type: ignore[arg-type]
        yield

    return broken


@contextlib.asynccontextmanager
async def other_password(installation: Installation) -> AsyncIterator[None]:
    password = installation.stack.secrets.passwords["ingest_worker"]
    installation.environment["DATABASE_URL"] = installation.url.replace(password, "wrong-password")
    yield


def refusing(sqlstate: str, message: str) -> Breaking:
    """Put a server in the database's place that refuses every login in these words."""

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                size = int.from_bytes(await reader.readexactly(4))
                if await reader.readexactly(size - 4) == b"\x04\xd2\x16\x2f":
                    writer.write(b"N")  # no TLS
                    continue
                fields = b"SFATAL\0VFATAL\0C" + sqlstate.encode() + b"\0M" + message.encode() + b"\0\0"
                writer.write(b"E" + (len(fields) + 4).to_bytes(4) + fields)
                break
        writer.close()

    @contextlib.asynccontextmanager
    async def broken(installation: Installation) -> AsyncIterator[None]:
        server = await asyncio.start_server(accept, "127.0.0.1", 0)
        installation.environment["DATABASE_URL"] = installation.at(port=server.sockets[0].getsockname()[1])
        try:
            yield
        finally:
            server.close()

    return broken


@contextlib.asynccontextmanager
async def listener_refused(installation: Installation) -> AsyncIterator[None]:
    installation.environment["LISTEN_DATABASE_URL"] = installation.at(user="somebody")
    yield


@contextlib.asynccontextmanager
async def without_list(installation: Installation) -> AsyncIterator[None]:
    installation.monkeypatch.setattr(migrations, "_PLACES", (installation.directory,))
    migrations.files.cache_clear()
    try:
        yield
    finally:
        installation.monkeypatch.undo()
        migrations.files.cache_clear()
        migrations.rights.cache_clear()


@contextlib.asynccontextmanager
async def old_server(installation: Installation) -> AsyncIterator[None]:
    # The greeting tells the version; the line tells an older one of the same length.
    async with database_line(
        installation.url, change=lambda block: block.replace(b"server_version\x0018.", b"server_version\x0013.")
    ) as line:
        installation.environment["DATABASE_URL"] = line
        yield


@contextlib.asynccontextmanager
async def transaction_port(installation: Installation) -> AsyncIterator[None]:
    installation.environment["LISTEN_DATABASE_URL"] = installation.at(port=6543)
    yield


@contextlib.asynccontextmanager
async def other_database_to_listen(installation: Installation) -> AsyncIterator[None]:
    installation.environment["LISTEN_DATABASE_URL"] = installation.at(path="/template1")
    yield


@contextlib.asynccontextmanager
async def pooled(installation: Installation) -> AsyncIterator[None]:
    with tempfile.TemporaryDirectory(prefix="sluice-pooler-") as name:
        directory = Path(name)
        directory.chmod(0o755)
        with pgbouncer(directory, installation.url, mode="transaction", backends=3) as through:
            installation.environment["DATABASE_URL"] = through
            yield


@contextlib.asynccontextmanager
async def clock_ahead(installation: Installation) -> AsyncIterator[None]:
    installation.world = replace(installation.world, now=lambda: time.time() + 90)
    yield


@contextlib.asynccontextmanager
async def empty_database(installation: Installation) -> AsyncIterator[None]:
    await installation.admin.execute("create database empty")
    installation.environment["DATABASE_URL"] = installation.at(path="/empty")
    try:
        yield
    finally:
        await installation.admin.execute("drop database empty with (force)")


LAST = "(select max(version) from supabase_migrations.schema_migrations)"
NEXT_MONTH = "to_char(now() at time zone 'utc' + interval '1 month', '\"job_events_\"YYYY_MM')"
STUCK = str(uuid4())

LOGIN: dict[str, SetUp] = {
    "a refused password": (
        other_password, {"database_login": "database_password_refused"}, "alter role ingest_worker password"),
    "a database of another name": (
        url(path="/production"), {"database_login": "database_name_unknown"}, "There is no database production"),
    "a project that the pooler does not know": (
        refusing("XX000", "Tenant or user not found"), {"database_login": "pooler_tenant_unknown"}, "as <role>."),
    "a login that has used up its connections": (
        sql("alter role ingest_worker connection limit 0", "alter role ingest_worker connection limit -1"),
        {"database_login": "database_full"}, "takes no more connections"),
    "a database that is starting": (
        refusing("57P03", "the database system is starting up"), {"database_login": "database_login_failed"},
        "SQLSTATE 57P03"),
    "a server that is too old": (old_server, {"server": "server_too_old"}, "Postgres 13, and Sluice needs 15"),
    "a transaction pooler's port for LISTEN": (
        transaction_port, {"listen": "listen_transaction_pooler"}, "Set LISTEN_DATABASE_URL"),
    "another database for LISTEN": (
        other_database_to_listen, {"listen": "listen_deaf"}, "nothing arrives"),
    "a login to listen that is refused": (
        listener_refused, {"listen": "listen_refused"}, "LISTEN_DATABASE_URL, on which the worker listens"),
    "a clock that is ahead": (clock_ahead, {"clock": "clock_skew"}, "90 s ahead of the database's"),
    "few connections left": (
        sql("alter role ingest_worker connection limit 3", "alter role ingest_worker connection limit -1"),
        {"connections": "connections_few"}, "with SLUICE_SLOTS=4 it uses 7"),
    "commits that are not waited for": (
        sql("alter role ingest_worker set synchronous_commit = off",
            "alter role ingest_worker reset synchronous_commit"),
        {"durability": "commits_not_durable"}, "synchronous_commit is off"),
}  # fmt: skip
SCHEMA: dict[str, SetUp] = {
    "an empty database": (
        empty_database, {"extension": "extension_missing", "migrations": "migrations_behind"},
        "create extension vector with schema extensions"),
    "pgvector in another schema": (
        sql("alter extension vector set schema public", "alter extension vector set schema extensions"),
        {"extension": "extension_elsewhere"}, "is installed in the schema public"),
    "a migration that is not applied": (
        sql(f"create table public.kept as select * from supabase_migrations.schema_migrations where version = {LAST};"
            f" delete from supabase_migrations.schema_migrations where version = {LAST}",
            "insert into supabase_migrations.schema_migrations select * from public.kept; drop table public.kept"),
        {"migrations": "migrations_behind"}, "1 is missing"),
    "a package without its migrations": (
        without_list, {"migrations": "migrations_not_packaged"}, "nothing can be compared"),
    "a migration that this version does not know": (
        sql("insert into supabase_migrations.schema_migrations (version) values ('20990101000000')",
            "delete from supabase_migrations.schema_migrations where version = '20990101000000'"),
        {"migrations": "migrations_ahead"}, "the newest 20990101000000"),
    "a migration that was applied with other statements": (
        sql("update supabase_migrations.schema_migrations set statements = statements || array['select 1']"
            " where version = '20261123001000'",
            "update supabase_migrations.schema_migrations set statements = statements[:array_length(statements, 1) - 1]"
            " where version = '20261123001000'"),
        {"migrations_unchanged": "migrations_differ"}, "20261123001000"),
    "a schema that the login may not use": (
        sql("revoke usage on schema ingest from ingest_worker", "grant usage on schema ingest to ingest_worker"),
        {"migrations": "migrations_unreadable"}, "ingest_worker may not use the schema ingest"),
    "a watched bucket that is missing": (
        sql("insert into ingest.buckets (bucket_id) values ('ghosts')",
            "delete from ingest.buckets where bucket_id = 'ghosts'"),
        {"bucket": "bucket_missing"}, "The bucket ghosts is watched"),
    "no watched bucket": (
        sql("delete from ingest.buckets", "insert into ingest.buckets (bucket_id) values ('documents')"),
        {"bucket": "bucket_none"}, "No bucket is watched"),
    "a public bucket": (
        sql("update storage.buckets set public = true where id = 'documents'",
            "update storage.buckets set public = false where id = 'documents'"),
        {"bucket": "bucket_public"}, "The bucket documents is public"),
    "a trigger that is missing": (
        sql("drop trigger sluice_object_changed on storage.objects",
            "create trigger sluice_object_changed after insert or update or delete on storage.objects"
            " for each row execute function ingest.object_changed()"),
        {"storage_trigger": "trigger_missing"}, "uploads make no jobs"),
    "a trigger that is disabled": (
        sql("alter table storage.objects disable trigger sluice_object_changed",
            "alter table storage.objects enable trigger sluice_object_changed"),
        {"storage_trigger": "trigger_disabled"}, "enable trigger sluice_object_changed"),
    "a policy that is missing": (
        sql("alter policy sluice_insert on storage.objects rename to somebodys",
            "alter policy somebodys on storage.objects rename to sluice_insert"),
        {"storage_policies": "storage_policies_missing"}, "are missing: sluice_insert"),
    "row-level security that is off": (
        sql("alter table storage.objects disable row level security",
            "alter table storage.objects enable row level security"),
        {"storage_policies": "storage_rls_off"}, "Row-level security is off"),
    "Realtime's policy that is missing": (
        sql("alter policy sluice_receive on realtime.messages rename to somebodys",
            "alter policy somebodys on realtime.messages rename to sluice_receive"),
        {"realtime_policies": "realtime_policy_missing"}, "repair --status reverted 20261127001200"),
    "jobs that are not published": (
        sql("alter publication supabase_realtime drop table public.jobs",
            "alter publication supabase_realtime add table public.jobs"),
        {"realtime_policies": "realtime_not_published"}, "alter publication supabase_realtime add table"),
    "a function that the worker may not call": (
        sql("revoke execute on function ingest.claim_jobs from ingest_worker",
            "grant execute on function ingest.claim_jobs to ingest_worker"),
        {"worker_role": "worker_rights_few"}, "lacks rights that the worker needs: execute claim_jobs"),
    "a table that the worker may not write": (
        sql("revoke update on public.documents from ingest_worker",
            "grant update on public.documents to ingest_worker"),
        {"worker_role": "worker_rights_few"}, "update on public.documents"),
    "a worker under row-level security": (
        sql("alter role ingest_worker nobypassrls", "alter role ingest_worker bypassrls"),
        {"worker_role": "worker_rights_few"}, "BYPASSRLS"),
    "a worker that is a member of service_role": (
        sql("grant service_role to ingest_worker", "revoke service_role from ingest_worker"),
        {"worker_role": "worker_rights_many"}, "member of service_role"),
    "a worker that is a superuser": (
        sql("alter role ingest_worker superuser", "alter role ingest_worker nosuperuser"),
        {"worker_role": "worker_rights_many"}, "more than the worker should: superuser"),
    "a month without a partition": (
        sql(f"do $$ begin execute 'drop table ingest.' || {NEXT_MONTH}; end $$",
            "select ingest.ensure_event_partitions()"),
        {"partitions": "partition_missing"}, "ensure_event_partitions()"),
    "an object that can never be a document": (
        sql(f"insert into ingest.ignored_objects values ('{STUCK}', 'documents', 'loose.txt', 'no_tenant_folder')",
            "delete from ingest.ignored_objects"),
        {"ignored_objects": "objects_ignored"}, "never become documents: 1;"),
    "a change that the trigger could not carry over": (
        sql(f"insert into ingest.trigger_failures (object_id, operation, sqlstate, message)"
            f" values ('{STUCK}', 'INSERT', '55P03', 'lock')", "delete from ingest.trigger_failures"),
        {"trigger_failures": "trigger_failures"}, "sluice reconcile"),
    "a paused queue": (
        sql("update ingest.queues set paused_at = '2026-11-01 09:30+00'", "update ingest.queues set paused_at = null"),
        {"queue": "queue_paused"}, "paused since 2026-11-01 09:30 UTC"),
    "a queue that stands": (
        sql(f"insert into public.jobs (document_id, tenant_id, generation, scheduled_at)"
            f" values ('{STUCK}', '{STUCK}', 1, now() - interval '20 minutes')",
            f"delete from public.job_events where document_id = '{STUCK}';"
            f"delete from public.jobs where document_id = '{STUCK}'"),
        {"queue": "queue_stuck"}, "not taken: 1, the oldest for 20 minutes"),
    "no active embedding model": (
        sql("update ingest.embedding_models set active = false", "update ingest.embedding_models set active = id = 1"),
        {"embedding_model": "embedding_model_none"}, "sluice models add local all-MiniLM-L6-v2 384 --activate"),
    "another embedding model than the settings'": (
        sql("select ingest.activate_embedding_model("
            "ingest.add_embedding_model('openai', 'text-embedding-3-large', 3072))",
            "select ingest.activate_embedding_model(1::smallint)", owner=True),
        {"embedding_model": "embedding_model_differs"}, "openai/text-embedding-3-large with 3072 dimensions"),
}  # fmt: skip


@pytest.mark.parametrize("set_up", ids(LOGIN | SCHEMA))
async def test_the_doctor_finds_what_is_broken_and_nothing_else(installation: Installation, set_up: SetUp) -> None:
    await found_as(installation, set_up)


async def test_connections_of_others_are_counted_too(installation: Installation) -> None:
    # The worker's login sees that they are there, and little else of them.
    room = queries.load()["connection_room"]
    worker = await asyncpg.connect(installation.url)
    before = await worker.fetchval(room)
    others = [await asyncpg.connect(installation.stack.admin_url) for _ in range(3)]
    during = await worker.fetchval(room)
    for connection in [worker, *others]:
        await connection.close()

    assert before - during == 3


@pytest.mark.skipif(PROGRAM is None, reason=MISSING)
async def test_a_transaction_pooler_is_proven_by_what_does_not_arrive(installation: Installation) -> None:
    await found_as(installation, (pooled, {"listen": "listen_deaf"}, "a transaction pooler is in between"))
