"""The first step: tools, settings, and whether they open the doors that the other steps go through."""

from __future__ import annotations

import asyncio

import httpx

from local import deno
from local.deploy import management
from local.deploy.connection import connected
from local.deploy.step import Plan
from local.deploy.target import Target
from local.errors import StackError


async def plan(target: Target) -> Plan:
    """Try the CLI, the database as its owner, the key and the access token; StackError is for the first that fails."""
    await asyncio.to_thread(deno.supabase_cli)
    async with connected(target) as connection:
        found = await connection.fetchrow(
            "select current_setting('server_version') as version, rolcreaterole as creates,"
            " exists (select from pg_available_extensions where name = 'vector') as vector,"
            " to_regclass('storage.objects') is not null and to_regclass('auth.users') is not null as supabase"
            " from pg_roles where rolname = current_user"
        )
    if found is None or not found["supabase"]:
        raise StackError(f"The database at {target.host} is no Supabase project's: it has no storage.objects.")
    if not found["vector"]:
        raise StackError("The extension vector is not available there. Upgrade the project's Postgres.")
    if not found["creates"]:
        raise StackError("The owner of SUPABASE_DB_URL may not make roles. Take the URL of the user postgres.")
    await asyncio.to_thread(_try_key, target)
    if target.hosted:
        await management.functions(target)
    where = f"project {target.name}" if target.hosted else "the local stack"
    return Plan(f"Supabase CLI {deno.CLI_VERSION}; Postgres {found['version'].split()[0]} of {where} at {target.host}.")


def _try_key(target: Target) -> None:
    answer = ask(target, "/rest/v1/")
    if answer.status_code in (401, 403):
        raise StackError(
            f"{target.api_url} does not know SUPABASE_SECRET_KEY: it is a key of another project, or disabled."
        )
    if answer.status_code >= 500:
        raise StackError(f"{target.api_url} answers {answer.status_code}. Is the project paused, or just starting?")


def ask(target: Target, path: str, **headers: str) -> httpx.Response:
    """GET something of the project with the secret key; raises StackError where nothing answers."""
    try:
        return httpx.get(target.api_url + path, headers={"apikey": target.secret_key} | headers, timeout=20)
    except httpx.TransportError as exc:
        raise StackError(f"{target.api_url} does not answer ({type(exc).__name__}). Check SUPABASE_URL.") from exc
