"""Buckets, policies and callers for tests of the local Storage; everything is gone again afterwards.

A user may do everything in the folder of their own id, and nothing elsewhere.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import asyncpg
import httpx
import jwt

from local.stack import Stack
from tests.integration.storage_events import Recorder, recording
from tests.integration.supabase_js import Caller, SupabaseJs, supabase_js

A = "aaaaaaaa-0000-4000-8000-000000000001"
B = "bbbbbbbb-0000-4000-8000-000000000002"
BUCKET = "recorded"
OTHER = "recorded-other"
PUBLIC = "recorded-public"
LIMITED = "recorded-limited"
"""1,000 bytes, text and one image type."""

_OWN_FOLDER = "bucket_id like 'recorded%' and (storage.foldername(name))[1] = (select auth.uid())::text"


@dataclass(frozen=True)
class World:
    """The callers, and ways to look behind the API."""

    stack: Stack
    admin: asyncpg.Connection
    recorder: Recorder
    blobs: Path
    js: SupabaseJs
    service: Caller
    alice: Caller
    bob: Caller
    anonymous: Caller

    def http(self, caller: Caller | None = None) -> httpx.AsyncClient:
        """Return a plain HTTP client of the Storage API."""
        headers = caller.headers if caller else {}
        return httpx.AsyncClient(base_url=f"{self.stack.api_url}/storage/v1", headers=headers, timeout=30)

    def files(self) -> set[str]:
        """Return the names of all files of the store."""
        return {path.name for path in self.blobs.iterdir()}

    async def row(self, name: str, bucket: str = BUCKET) -> asyncpg.Record | None:
        """Return an object's row with its xmin, which any write changes."""
        query = "select *, xmin::text as xmin from storage.objects where bucket_id = $1 and name = $2"
        return await self.admin.fetchrow(query, bucket, name)

    @asynccontextmanager
    async def raising(self, when: str, state: str = "P0001", text: str = "hidden words") -> AsyncIterator[None]:
        """Let a row trigger raise where `when` (SQL over tg_op and the settings) is true."""
        await self.admin.execute(f"""
            create function recorded.raise() returns trigger language plpgsql as $$ begin
              if coalesce(new.bucket_id, old.bucket_id) like 'recorded%' and ({when}) then
                raise exception '{text}' using errcode = '{state}'; end if; return null; end $$;
            grant usage on schema recorded to public;
            create trigger recorded_raise after insert or update or delete on storage.objects
              for each row execute function recorded.raise();""")
        try:
            yield
        finally:
            await self.admin.execute("drop function recorded.raise() cascade")


def token(secret: str, user: str, *, algorithm: str = "HS256", **claims: object) -> str:
    """Return a user's token as the Auth server makes it, or one that is wrong in the way `claims` say."""
    every = {"sub": user, "role": "authenticated", "aud": "authenticated", "exp": int(time.time()) + 3600} | claims
    return jwt.encode(every, "" if algorithm == "none" else secret, algorithm=algorithm)


@asynccontextmanager
async def storage_world(stack: Stack) -> AsyncIterator[World]:
    """Make the buckets and the policies, and start supabase-js."""
    admin = await asyncpg.connect(stack.admin_url)
    await admin.execute(f"""
        insert into storage.buckets (id, name, public, file_size_limit, allowed_mime_types) values
          ('{BUCKET}', '{BUCKET}', false, null, null), ('{OTHER}', '{OTHER}', false, null, null),
          ('{PUBLIC}', '{PUBLIC}', true, null, null),
          ('{LIMITED}', '{LIMITED}', false, 1000, array['text/*', 'image/png']);
        create policy recorded on storage.objects for all to authenticated using ({_OWN_FOLDER});""")
    blobs = stack.directory / "storage"
    try:
        async with recording(admin, stack.cluster.log, blobs) as recorder, supabase_js(stack.api_url) as js:
            service = Caller(js, stack.secret_key)
            anonymous = Caller(js, stack.publishable_key)
            alice = Caller(js, stack.publishable_key, token(stack.jwt_secret, A))
            bob = Caller(js, stack.publishable_key, token(stack.jwt_secret, B))
            world = World(stack, admin, recorder, blobs, js, service, alice, bob, anonymous)
            yield world
            async with world.http(service) as client:
                for bucket in (BUCKET, OTHER, PUBLIC, LIMITED):
                    await client.post(f"/bucket/{bucket}/empty")
                    await client.delete(f"/bucket/{bucket}")
    finally:
        await admin.execute("drop policy recorded on storage.objects")
        await admin.close()


async def request(world: World, method: str, path: str, body: bytes = b"", *headers: str) -> tuple[int, bytes]:
    """Send a request whose path no client has tidied; return status and body."""
    reader, writer = await asyncio.open_connection("127.0.0.1", world.stack.server.port)
    lines = [f"{method} /storage/v1{path} HTTP/1.1", "host: localhost", "connection: close", *headers]
    if not any(line.startswith("transfer-encoding") for line in headers):
        lines.append(f"content-length: {len(body)}")
    writer.write("\r\n".join([*lines, "", ""]).encode() + body)
    answer = await asyncio.wait_for(reader.read(), 20)
    writer.close()
    head, _, content = answer.partition(b"\r\n\r\n")
    return int(head.split()[1]), content
