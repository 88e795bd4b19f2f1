"""Connections to the database, and in one sentence why there is none."""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from urllib.parse import urlsplit

import asyncpg

from local.deploy.target import Target
from local.errors import StackError
from worker.db.connect import connect_options


class LoginRefused(StackError):
    """The database, or the pooler before it, does not know this user with this password."""


@asynccontextmanager
async def connected(target: Target, url: str | None = None) -> AsyncIterator[asyncpg.Connection]:
    """Connect as the owner, or with `url`; raises LoginRefused, or StackError where nothing answers."""
    url = url or target.database_url
    user, host = urlsplit(url).username, urlsplit(url).hostname or ""
    options = connect_options(url) | {"server_settings": {"application_name": "sluice deploy"}}
    if target.ca_file:
        options["ssl"] = ssl.create_default_context(cafile=target.ca_file)
    try:
        connection = await asyncpg.connect(**options)
    except (asyncpg.InvalidAuthorizationSpecificationError, asyncpg.InvalidCatalogNameError) as exc:
        raise LoginRefused(f"The database at {host} refused {user}: wrong password, or another project's URL.") from exc
    except (OSError, TimeoutError, asyncpg.PostgresConnectionError, asyncpg.TooManyConnectionsError) as exc:
        remedy = (
            "It is IPv6 only: from a network without IPv6 take the session pooler's URL."
            if host.startswith("db.")
            else "Check host and port of SUPABASE_DB_URL, and that the project is not paused."
        )
        raise StackError(f"The database at {host} did not answer ({type(exc).__name__}). {remedy}") from exc
    except asyncpg.PostgresError as exc:  # what a pooler says of a project that it does not know
        raise LoginRefused(f"The database at {host} refused {user}: {exc}") from exc
    try:
        yield connection
    finally:
        await connection.close(timeout=5)
