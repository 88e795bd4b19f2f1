"""Acting as the API's callers in plain SQL, the way PostgREST does it: a role and claims, for one transaction."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from uuid import UUID

import asyncpg


@asynccontextmanager
async def as_role(connection: asyncpg.Connection, role: str, claims: dict[str, object]) -> AsyncIterator[None]:
    """Run what follows as `role` with the request's claims, in one transaction that commits at the end."""
    async with connection.transaction():
        await connection.execute(f'set local role "{role}"')
        await connection.execute("select set_config('request.jwt.claims', $1, true)", json.dumps(claims))
        yield


@asynccontextmanager
async def as_user(connection: asyncpg.Connection, user_id: UUID | str) -> AsyncIterator[None]:
    """Act as the signed-in user `user_id`; the connection's role must be `postgres` or the superuser."""
    async with as_role(connection, "authenticated", {"sub": str(user_id), "role": "authenticated"}):
        yield


@asynccontextmanager
async def as_anonymous(connection: asyncpg.Connection) -> AsyncIterator[None]:
    """Act as a caller who has not signed in."""
    async with as_role(connection, "anon", {"role": "anon"}):
        yield


@asynccontextmanager
async def as_service(connection: asyncpg.Connection) -> AsyncIterator[None]:
    """Act as a server with the secret key; the claims have no `sub`, so auth.uid() is null."""
    async with as_role(connection, "service_role", {"role": "service_role"}):
        yield
