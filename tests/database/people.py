"""Callers with claims as PostgREST sets them, and calls that say which SQLSTATE refused them."""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager
from typing import Any
from uuid import UUID, uuid4

import asyncpg

from tests.callers import as_role, as_user
from tests.database.project import Project

FORBIDDEN, WRONG, LAST_ADMIN, NOTHING_TO_RETRY = "42501", "22023", "IG010", "IG008"


def as_operator(connection: asyncpg.Connection, user: UUID | None = None) -> AbstractAsyncContextManager[None]:
    """Act as somebody whose app_metadata makes them an operator."""
    return as_role(
        connection,
        "authenticated",
        {"sub": str(user or uuid4()), "role": "authenticated", "app_metadata": {"sluice_role": "operator"}},
    )


async def call(project: Project, who: UUID | AbstractAsyncContextManager[None], sql: str, *arguments: Any) -> Any:
    """Return the first value of a call, as a user or inside the given role."""
    acting = as_user(project.admin, who) if isinstance(who, UUID) else who
    async with acting:
        return await project.admin.fetchval(sql, *arguments)


async def refused(project: Project, who: UUID | AbstractAsyncContextManager[None], sql: str, *arguments: Any) -> str:
    """Return the SQLSTATE with which a call is refused; a call that passes returns 'allowed'."""
    try:
        await call(project, who, sql, *arguments)
    except asyncpg.PostgresError as exc:
        return exc.sqlstate or ""
    return "allowed"
