"""A project in plain SQL: users, objects as Storage writes them, and what the worker does with a claim."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import asyncpg
import numpy as np
from pgvector import HalfVector
from pgvector.asyncpg import register_vector

from tests.callers import as_service, as_user
from tests.conftest import Database

LEASE = timedelta(seconds=60)
DIMENSIONS = 384
MODEL = 1
STALE, SUPERSEDED, NO_VECTOR, WRONG_ISOLATION = "IG001", "IG002", "IG003", "IG004"
Pair = tuple[asyncpg.Record, asyncpg.Record]
"""Claims on two documents."""


def digest(text: str) -> bytes:
    """Return the key under which a text's vector and a file's parse are kept here."""
    return hashlib.sha256(text.encode()).digest()


def key_of(content: str, context: str = "") -> bytes:
    """Return a chunk's content_sha256."""
    return digest(f"{context}\0{content}")


def vector_of(text: str) -> list[float]:
    """Return a deterministic unit vector for a text."""
    seed = int.from_bytes(digest(text)[:4], "big")
    vector = np.random.default_rng(seed).standard_normal(DIMENSIONS)
    return [float(number) for number in vector / np.linalg.norm(vector)]


class Project:
    """`admin` is the superuser, `owner` is postgres, `worker` is ingest_worker; each a connection of its own."""

    migrations = Path(__file__).parents[2] / "supabase" / "migrations"

    def __init__(self, database: Database) -> None:
        self.database = database
        self._placed: dict[asyncpg.Connection, list[list[object]]] = {}

    async def open(self) -> Project:
        """Connect the three roles."""
        self.admin = await self.database.connect("supabase_admin")
        self.owner = await self.database.connect("postgres")
        self.worker = await self.database.connect("ingest_worker")
        await register_vector(self.worker, schema="extensions")
        return self

    async def user(self) -> UUID:
        """Sign a user up; their own tenant has the same id."""
        user = uuid4()
        await self.admin.execute("insert into auth.users (id, email) values ($1, $2)", user, f"{user}@example.org")
        return user

    async def organisation(self, **members: UUID) -> UUID:
        """Make an organisation; members by role."""
        tenant: UUID = await self.owner.fetchval("insert into public.tenants (name) values ('Acme') returning id")
        for role, user in members.items():
            await self.join(tenant, user, role)
        return tenant

    async def join(self, tenant: UUID, user: UUID, role: str) -> None:
        """Make `user` a member."""
        await self.owner.execute(
            "insert into public.tenant_members (tenant_id, user_id, role) values ($1, $2, $3)", tenant, user, role
        )

    async def upload(self, tenant: UUID | str, name: str = "a.txt", size: int = 5, bucket: str = "documents") -> UUID:
        """Store an object as Storage finally does, and return its id."""
        metadata = json.dumps({"eTag": '"x"', "size": size, "mimetype": "text/plain", "contentLength": size})
        async with as_service(self.admin):
            stored: UUID = await self.admin.fetchval(
                "insert into storage.objects (bucket_id, name, version, metadata) values ($1, $2, $3, $4) returning id",
                bucket, f"{tenant}/{name}", str(uuid4()), metadata,
            )  # fmt: skip
        return stored

    async def overwrite(self, object_id: UUID, size: int = 6) -> None:
        """Store other bytes under the same name."""
        async with as_service(self.admin):
            await self.admin.execute(
                "update storage.objects set version = $2, metadata = metadata || jsonb_build_object('size', $3::int)"
                " where id = $1",
                object_id, str(uuid4()), size,
            )  # fmt: skip

    async def move(self, object_id: UUID, name: str, bucket: str = "documents") -> None:
        """Rename an object or carry it to another bucket; the version changes too."""
        async with as_service(self.admin):
            await self.admin.execute(
                "update storage.objects set name = $2, bucket_id = $3, version = $4 where id = $1",
                object_id, name, bucket, str(uuid4()),
            )  # fmt: skip

    async def remove(self, user: UUID, *objects: UUID) -> int:
        """Delete objects as Storage does for `user`: with their rights, in one transaction."""
        async with as_user(self.admin, user):
            await self.admin.execute("set local storage.allow_delete_query = 'true'")
            gone = await self.admin.fetch("delete from storage.objects where id = any($1) returning id", list(objects))
        return len(gone)

    async def enqueue(self, tenant: UUID, count: int = 1, priority: int = 2, document: UUID | None = None) -> list[int]:
        """Make jobs without documents, which is all that claiming looks at."""
        rows = await self.owner.fetch(
            "select ingest.enqueue_job(coalesce($4, gen_random_uuid()), $1, n, $3::smallint) as id"
            "  from generate_series(1, $2::int) n",
            tenant, count, priority, document,
        )  # fmt: skip
        return [row["id"] for row in rows]

    async def enqueue_rescued(self, tenant: UUID) -> list[int]:
        """Make a job as one rescue leaves it, due now."""
        rows = await self.owner.fetch(
            "with job as (insert into public.jobs (document_id, tenant_id, generation, attempt, claim, rescues)"
            "  values (gen_random_uuid(), $1, 1, 1, 1, 1) returning id)"
            " select id, ingest.take_turn($1), pg_notify('ingest_wake', '') from job",
            tenant,
        )
        return [row["id"] for row in rows]

    async def until(self, sql: str, *arguments: Any) -> None:
        """Ask again until the answer is true; the caller bounds the time."""
        while not await self.owner.fetchval(sql, *arguments):  # noqa: ASYNC110 - the database tells nobody
            await asyncio.sleep(0.01)

    async def claim(
        self, limit: int = 10, cap: int = 1000, connection: asyncpg.Connection | None = None
    ) -> list[asyncpg.Record]:
        """Claim a batch, in the order in which it is returned."""
        rows: list[asyncpg.Record] = await (connection or self.worker).fetch(
            "select * from ingest.claim_jobs($1, $2, $3, $4)", uuid4(), limit, LEASE, cap
        )
        return rows

    async def waits(self, task: asyncio.Task[Any], connection: asyncpg.Connection) -> bool:
        """Say whether what `task` runs on `connection` waits for somebody's lock, or ends without."""
        watcher = await self.database.connect("supabase_admin")
        while not task.done():
            if await watcher.fetchval("select cardinality(pg_blocking_pids($1))", connection.get_server_pid()):
                return True
            await asyncio.wait({task}, timeout=0.005)
        return False

    async def claim_one(self) -> asyncpg.Record:
        """Claim the only job that waits."""
        (claimed,) = await self.claim()
        return claimed

    async def job(self, job_id: int) -> asyncpg.Record:
        """Return a job's row."""
        row = await self.owner.fetchrow("select * from public.jobs where id = $1", job_id)
        assert row is not None
        return row

    async def document(self, document_id: UUID) -> asyncpg.Record | None:
        """Return a document's row."""
        return await self.owner.fetchrow("select * from public.documents where id = $1", document_id)

    async def told(self, document_id: UUID) -> asyncpg.Record:
        """Return the row of a document that is there."""
        row = await self.document(document_id)
        assert row is not None
        return row

    async def events(self, job_id: int) -> list[str]:
        """Return the names of a job's events in order."""
        rows = await self.owner.fetch("select event from public.job_events where job_id = $1 order by id", job_id)
        return [row["event"] for row in rows]

    async def begin_parse(self, claim: asyncpg.Record, content: str, parser: str = "local") -> asyncpg.Record:
        """Ask what to do about these bytes."""
        row = await self.worker.fetchrow(
            "select * from ingest.begin_parse($1, $2, $3, $4, 'text/plain', $5, '1', '{}')",
            claim["job_id"], claim["claim"], digest(content), len(content), parser,
        )  # fmt: skip
        assert row is not None
        return row

    async def finish_parse(self, claim: asyncpg.Record, parse_id: int, pages: Sequence[str]) -> None:
        """Store the pages in one fenced transaction."""
        async with self.worker.transaction():
            await self.worker.execute("select ingest.hold_claim($1, $2)", claim["job_id"], claim["claim"])
            await self.worker.copy_records_to_table(
                "pages", schema_name="public", columns=["parse_id", "page", "tenant_id", "markdown"],
                records=[(parse_id, number, claim["tenant_id"], page) for number, page in enumerate(pages, 1)],
            )  # fmt: skip
            await self.worker.execute(
                "select ingest.finish_parse($1, $2, $3, $4, 'Title', 'text/plain', '{}')",
                claim["job_id"], claim["claim"], parse_id, len(pages),
            )  # fmt: skip

    async def embed(self, tenant: UUID, texts: Sequence[str]) -> None:
        """Store the vectors of these contents."""
        await self.store_vectors(tenant, [(key_of(text), HalfVector(vector_of(text))) for text in texts])

    async def store_vectors(self, tenant: UUID, records: Sequence[tuple[bytes, HalfVector]]) -> None:
        """Store vectors by key."""
        async with self.worker.transaction():
            await self.worker.execute(
                "create temp table if not exists incoming_embeddings (tenant_id uuid, content_sha256 bytea,"
                " embedding extensions.halfvec) on commit delete rows"
            )
            await self.worker.copy_records_to_table(
                "incoming_embeddings", records=[(tenant, *record) for record in records]
            )
            await self.worker.execute("select ingest.store_embeddings($1::smallint)", MODEL)

    async def place_chunks(self, texts: Sequence[str], connection: asyncpg.Connection | None = None) -> None:
        """Keep these texts, each a page of its own, as the chunks that this connection publishes next."""
        records: list[tuple[object, ...]] = []
        offset = 0
        for page, text in enumerate(texts, 1):
            records.append((page, page, offset, offset + len(text), 3, "", "", text, key_of(text)))
            offset += len(text) + 2
        self._placed[connection or self.worker] = [list(column) for column in zip(*records, strict=True)]

    async def publish(self, claim: asyncpg.Record, parse_id: int, texts: Sequence[str]) -> str:
        """Publish these chunks in one transaction."""
        async with self.worker.transaction():
            await self.place_chunks(texts)
            return await self.publish_placed(claim, parse_id)

    async def publish_placed(
        self, claim: asyncpg.Record, parse_id: int, connection: asyncpg.Connection | None = None
    ) -> str:
        """Publish the chunks that were placed in this transaction."""
        said: str = await (connection or self.worker).fetchval(
            "select ingest.publish($1, $2, $3::smallint, $4, 'Title', '[]', null,"
            " $5, $6, $7, $8, $9, $10, $11, $12, $13)",
            claim["job_id"], claim["claim"], MODEL, parse_id, *self._placed[connection or self.worker],
        )  # fmt: skip
        return said

    async def begin(self, claim: asyncpg.Record) -> asyncpg.Record:
        """Begin the attempt."""
        row = await self.worker.fetchrow("select * from ingest.begin_fetch($1, $2)", claim["job_id"], claim["claim"])
        assert row is not None
        return row

    async def prepare(self, claim: asyncpg.Record, texts: Sequence[str]) -> int:
        """Go through every stage but the last, and return the parse's id."""
        await self.begin(claim)
        parse = await self.begin_parse(claim, "\n\n".join(texts))
        if parse["outcome"] == "parse":
            await self.finish_parse(claim, parse["parse_id"], texts)
        await self.embed(claim["tenant_id"], texts)
        found: int = parse["parse_id"]
        return found

    async def ingest(self, claim: asyncpg.Record, texts: Sequence[str]) -> None:
        """Carry a claim through to its publication."""
        assert await self.publish(claim, await self.prepare(claim, texts), texts) == "published"

    async def ready(self, tenant: UUID, name: str, *texts: str) -> UUID:
        """Upload a file and have its chunks published."""
        stored = await self.upload(tenant, name)
        claims = {row["document_id"]: row for row in await self.claim()}
        await self.ingest(claims[stored], texts)
        return stored
