"""Shapes a bare cluster as a hosted project is: its roles, its schemas, and who may do what.

Roles belong to the cluster and are made once. Schemas belong to a database and are copied by
`create database … template`; privileges on the database itself are not, so `open_database` follows
every such copy. All of it runs as supabase_admin.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import asyncpg

from local import deno

_BOOTSTRAP = Path(__file__).parent / "bootstrap"
LOGIN_ROLES = (
    "postgres", "authenticator", "supabase_auth_admin", "supabase_storage_admin", "lite_api", "realtime_bridge",
)  # fmt: skip


def version() -> str:
    """Return what names this shape; data made by another one is not migrated but made anew."""
    digest = hashlib.sha256()
    for file in sorted(_BOOTSTRAP.iterdir()):
        digest.update(file.name.encode() + b"\0" + file.read_bytes() + b"\0")
    # The Auth server's tables come from its package.
    imports = json.loads((deno.REPOSITORY / "deno.json").read_text())["imports"]
    digest.update(imports["@supabase/lite"].encode())
    return digest.hexdigest()[:12]


async def make_roles(admin: asyncpg.Connection, passwords: dict[str, str]) -> None:
    """Make the platform's roles and set the passwords of those that log in."""
    async with admin.transaction():
        await admin.execute(_sql("roles.sql"))
        for role in LOGIN_ROLES:
            await set_password(admin, role, passwords[role])


async def set_password(admin: asyncpg.Connection, role: str, password: str) -> None:
    """Set a role's password; utility statements take no parameters, so the server quotes both."""
    await admin.execute(
        await admin.fetchval("select format('alter role %I password %L', $1::text, $2::text)", role, password)
    )


async def make_schemas(admin: asyncpg.Connection) -> None:
    """Make the platform's schemas in the database that `admin` is connected to."""
    auth_tables = deno.run(_BOOTSTRAP / "auth.ts", "--allow-env", "--allow-read")
    async with admin.transaction():
        await admin.execute(_sql("schemas.sql"))
        await admin.execute(auth_tables)
        for name in ("auth.sql", "storage.sql", "realtime.sql"):
            await admin.execute(_sql(name))
    await open_database(admin, await admin.fetchval("select current_database()"))


async def open_database(admin: asyncpg.Connection, database: str) -> None:
    """Grant what a database copied from a template lacks: the privileges on the database itself."""
    await admin.execute(
        await admin.fetchval("select format('grant all on database %I to postgres', $1::text)", database)
    )


def _sql(name: str) -> str:
    return (_BOOTSTRAP / name).read_text()
