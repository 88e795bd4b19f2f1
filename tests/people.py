"""People who use a running stack through the real Python client, and what the database says of their documents."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

import asyncpg
import httpx
from supabase import AsyncClient, AsyncClientOptions, acreate_client

from local.stack import Stack

FINAL = ("ready", "failed", "cancelled")


@dataclass
class Person:
    """A signed-up user with a client of their own; `folder` is their tenant's folder."""

    client: AsyncClient
    http: httpx.AsyncClient
    id: str

    @property
    def folder(self) -> str:
        return self.id

    @classmethod
    async def sign_up(cls, stack: Stack) -> Person:
        http = httpx.AsyncClient(timeout=30)
        options = AsyncClientOptions(auto_refresh_token=False, persist_session=False, httpx_client=http)
        client = await acreate_client(stack.api_url, stack.publishable_key, options)
        answer = await client.auth.sign_up({"email": f"{uuid4()}@example.com", "password": "correct horse battery"})
        assert answer.user is not None
        return cls(client, http, answer.user.id)

    async def close(self) -> None:
        await self.http.aclose()

    async def upload(
        self, name: str, content: bytes, *, mime_type: str = "application/octet-stream", upsert: bool = False
    ) -> str:
        """Upload below the person's folder and return the object's name."""
        path = f"{self.folder}/{name}"
        options: Any = {"content-type": mime_type, "upsert": "true" if upsert else "false"}
        await self.client.storage.from_("documents").upload(path, content, options)
        return path

    async def search(self, query: str, embedding: list[float], **options: Any) -> list[dict[str, Any]]:
        answer = await self.client.rpc("search", {"query": query, "query_embedding": embedding, **options}).execute()
        rows: Any = answer.data
        return list(rows)


class Project:
    """Looks at the database as an operator would, and waits for what should happen there."""

    def __init__(self, connection: asyncpg.Connection) -> None:
        self.connection = connection

    async def document(self, path: str) -> asyncpg.Record:
        row = await self.connection.fetchrow("select * from public.documents where name = $1", path)
        assert row is not None, f"no document for {path}"
        return row

    async def settled(self, path: str, *, generation: int = 1, seconds: float = 60) -> asyncpg.Record:
        """Wait until this generation of a document has ended, well or badly, and return the row."""
        return await self.until(
            "select * from public.documents where name = $1",
            path,
            when=lambda row: row["state"] in FINAL and row["generation"] >= generation,
            seconds=seconds,
        )

    async def until(
        self, sql: str, *arguments: Any, when: Callable[[asyncpg.Record], bool], seconds: float = 60
    ) -> asyncpg.Record:
        """Ask again until the row is as wished; fails with the last row otherwise."""
        row: asyncpg.Record | None = None
        try:
            async with asyncio.timeout(seconds):
                while True:
                    row = await self.connection.fetchrow(sql, *arguments)
                    if row is not None and when(row):
                        return row
                    await asyncio.sleep(0.02)
        except TimeoutError:
            raise AssertionError(f"after {seconds} s it is still {dict(row) if row else None}") from None

    async def events(self, path: str) -> list[asyncpg.Record]:
        rows: list[asyncpg.Record] = await self.connection.fetch(
            "select e.* from public.job_events e join public.documents d on d.id = e.document_id"
            " where d.name = $1 order by e.at, e.id",
            path,
        )
        return rows

    async def count(self, table: str, tenant: str) -> int:
        number: int = await self.connection.fetchval(f"select count(*) from {table} where tenant_id = $1::uuid", tenant)
        return number

    async def embedded(self, path: str) -> int:
        """How many texts were sent to the embedder for a document, over all its generations."""
        return sum(
            json.loads(event["detail"]).get("embedded", 0)
            for event in await self.events(path)
            if event["event"] == "complete"
        )


def handbook(sections: int, *, edition: str = "first") -> bytes:
    """A Markdown handbook in which every section says something of its own."""
    title = f"# Harbour handbook, {edition} edition"
    berths = (
        f"## Berth {number}\n\nBerth {number} takes vessels up to {100 + number} metres. Its crane lifts "
        f"{number * 3} tonnes, and the berth master of pier {number} is reached on channel {number % 60}. "
        f"Mooring lines are doubled when the wind at mast {number} rises above {number % 12} Beaufort."
        for number in range(1, sections + 1)
    )
    return "\n\n".join([title, *berths]).encode()
