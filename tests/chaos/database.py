"""The harness's own way to the database: past every proxy, and back after every crash of Postgres."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import asyncpg

from local.stack import Stack
from tests.chaos.vectors import MODEL

_PATIENCE_SECONDS = 30.0
LOST = (
    OSError, TimeoutError, asyncpg.InterfaceError, asyncpg.InternalClientError, asyncpg.PostgresConnectionError,
    asyncpg.CannotConnectNowError, asyncpg.AdminShutdownError, asyncpg.CrashShutdownError,
)  # fmt: skip
"""What a lost connection may look like."""

# What a run notes about itself. `publications` has no unique key: a second effect must show.
_SCHEMA = f"""
create schema chaos;
create table chaos.publications (at timestamptz default clock_timestamp(), document_id uuid, generation bigint);
create table chaos.kills (at timestamptz, point text, job_id bigint, claim bigint);
create function chaos.log_publication() returns trigger language plpgsql security definer as $$ begin
  insert into chaos.publications (document_id, generation) values (new.id, new.published_generation); return null; end $$;
create trigger chaos_publication after update of published_at on public.documents for each row
  when (new.published_at is distinct from old.published_at) execute function chaos.log_publication();
create table chaos.completions (at timestamptz default clock_timestamp(), job_id bigint, claim bigint);
create function chaos.log_completion() returns trigger language plpgsql security definer as $$ begin
  insert into chaos.completions (job_id, claim) values (new.id, new.claim); return null; end $$;
create trigger chaos_completion after update of state on public.jobs for each row
  when (new.state = 'completed') execute function chaos.log_completion();
-- The cluster does not wait for disks; a commit that was answered must outlive a crash of its processes all the same.
alter database postgres set synchronous_commit = on;
select ingest.activate_embedding_model(ingest.add_embedding_model('{MODEL.provider}', '{MODEL.name}', {MODEL.dimensions}));
"""


class Observer:
    """Asks as the superuser; each question is repeated until it is answered, so it must bear that."""

    def __init__(self, stack: Stack) -> None:
        self._stack = stack
        self._connection: asyncpg.Connection | None = None
        self._turn = asyncio.Lock()

    async def prepare(self) -> None:
        """Install what notes effects, and make the model of the run the active one."""
        async with self._turn:
            await (await self._connected()).execute(_SCHEMA)

    async def fetch(self, sql: str, *arguments: Any) -> Sequence[asyncpg.Record]:
        """Return the rows of a query."""
        async with self._turn, asyncio.timeout(_PATIENCE_SECONDS):
            while True:
                try:
                    rows: list[asyncpg.Record] = await (await self._connected()).fetch(sql, *arguments, timeout=20)
                    return rows
                except LOST:
                    await self.forget()
                    await asyncio.sleep(0.05)

    async def value(self, sql: str, *arguments: Any) -> Any:
        """Return the first value of the first row, None where there is no row."""
        rows = await self.fetch(sql, *arguments)
        return rows[0][0] if rows else None

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[asyncpg.Connection]:
        """Give a connection in one transaction; TimeoutError, or what asyncpg raises, when it is lost."""
        async with self._turn, asyncio.timeout(_PATIENCE_SECONDS):
            connection = await self._connected()
            try:
                async with connection.transaction():
                    yield connection
            except LOST:
                await self.forget()
                raise

    async def forget(self) -> None:
        """Drop the connection; the next question makes a new one."""
        if self._connection is not None:
            self._connection.terminate()
            self._connection = None

    async def _connected(self) -> asyncpg.Connection:
        if self._connection is None:
            self._connection = await asyncpg.connect(self._stack.admin_url, timeout=5)
        return self._connection
