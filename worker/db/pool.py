"""A pool, and calls by name on its connections.

What Postgres raises is translated here into the tree of errors.py: by SQLSTATE, never by text.
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator, Iterable, Iterator, Sequence
from typing import Any
from urllib.parse import urlsplit

import asyncpg

from worker.db import queries
from worker.db.connect import Pooler, connect_options, shares_backends
from worker.errors import IngestError, Misconfigured, OverQuota, StaleClaim, Superseded, Transient

_CALL_SECONDS = 60.0


class VectorsMissing(Transient):
    """Vectors that the chunks need are gone: embed again, then publish again."""


class AlreadyThere(Transient):
    """A row with this key exists: nothing of the statement was written."""


class Session:
    """Calls by name on one connection."""

    def __init__(self, connection: Any) -> None:
        self._connection = connection
        self._queries = queries.load()

    async def fetch(self, name: str, *arguments: Any) -> list[asyncpg.Record]:
        """Run a named call and return its rows."""
        rows: list[asyncpg.Record] = await self._connection.fetch(self._queries[name], *arguments)
        return rows

    async def fetchrow(self, name: str, *arguments: Any) -> asyncpg.Record | None:
        """Run a named call and return its first row, or None."""
        row: asyncpg.Record | None = await self._connection.fetchrow(self._queries[name], *arguments)
        return row

    async def fetchval(self, name: str, *arguments: Any) -> Any:
        """Run a named call and return the first value of its first row."""
        return await self._connection.fetchval(self._queries[name], *arguments)

    async def copy(
        self, table: str, columns: Sequence[str], records: Iterable[Sequence[Any]], *, schema: str | None = None
    ) -> None:
        """Copy records into a table in binary; inside a transaction of the caller's."""
        await self._connection.copy_records_to_table(table, schema_name=schema, columns=columns, records=records)


class Database:
    """A pool of connections on which calls are made by name.

    Each call runs in a transaction of its own unless it is made on the Session that `transaction`
    gives. Raises the errors of errors.py.
    """

    def __init__(self, pool: asyncpg.Pool, *, shared: bool) -> None:
        self._pool = pool
        self.shared = shared
        """True where a transaction pooler, or what may be one, stands in between."""

    @classmethod
    async def open(cls, url: str, *, size: int, pooler: Pooler = "auto") -> Database:
        """Connect; raises Misconfigured when the URL, the login or the database is wrong."""
        with translated():
            try:
                shared = await shares_backends(url, pooler)
                pool = await asyncpg.create_pool(
                    **connect_options(url, shared=shared),
                    min_size=1,
                    max_size=size,
                    init=_prepare,
                    # No session state is ever left behind: the usual reset would double the round trips of every call.
                    reset=_nothing,
                    max_inactive_connection_lifetime=300,
                    server_settings={"application_name": "sluice worker"},
                )
            except ssl.SSLError as exc:  # before the others: a refused certificate is a ValueError too
                raise Misconfigured(
                    "database_tls",
                    f"The database at {urlsplit(url).hostname} and this worker do not agree on TLS. Check "
                    "DATABASE_CA_FILE and the host's name: sluice doctor --only network says which.",
                    detail=f"{type(exc).__name__}: {exc}",
                ) from exc
            except (asyncpg.InvalidAuthorizationSpecificationError, asyncpg.InvalidCatalogNameError, ValueError) as exc:
                host = urlsplit(url).hostname
                raise Misconfigured(
                    "database_refused",
                    f"The database at {host} refused the connection. Check DATABASE_URL: user, password and name.",
                    detail=str(exc),
                ) from exc
            except (OSError, TimeoutError) as exc:
                raise Misconfigured(
                    "database_unreachable",
                    f"The database at {urlsplit(url).hostname} did not answer. Check that DATABASE_URL names the right "
                    "host and port, and that the database is up.",
                    detail=f"{type(exc).__name__}: {exc}",
                ) from exc
        return cls(pool, shared=shared)

    async def close(self) -> None:
        """Close all connections, waiting a few seconds at most for calls under way."""
        try:
            await asyncio.wait_for(self._pool.close(), timeout=5)
        except TimeoutError:
            self._pool.terminate()

    async def fetch(self, name: str, *arguments: Any) -> list[asyncpg.Record]:
        """Run a named call and return its rows."""
        async with self._session() as session:
            return await session.fetch(name, *arguments)

    async def fetchrow(self, name: str, *arguments: Any) -> asyncpg.Record | None:
        """Run a named call and return its first row, or None."""
        async with self._session() as session:
            return await session.fetchrow(name, *arguments)

    async def fetchval(self, name: str, *arguments: Any) -> Any:
        """Run a named call and return the first value of its first row."""
        async with self._session() as session:
            return await session.fetchval(name, *arguments)

    async def copy(
        self, table: str, columns: Sequence[str], records: Iterable[Sequence[Any]], *, schema: str | None = None
    ) -> None:
        """Copy records into a table in binary, all of them or, raising AlreadyThere where a key exists, none."""
        async with self._session() as session:
            await session.copy(table, columns, records, schema=schema)

    @contextlib.asynccontextmanager
    async def transaction(self) -> AsyncIterator[Session]:
        """Give a session whose calls commit together when the block ends, or not at all."""
        with translated():
            async with self._connection() as connection, connection.transaction():
                yield Session(connection)

    @contextlib.asynccontextmanager
    async def _session(self) -> AsyncIterator[Session]:
        with translated():
            async with self._connection() as connection:
                yield Session(connection)

    @contextlib.asynccontextmanager
    async def _connection(self) -> AsyncIterator[Any]:
        async with self._pool.acquire(timeout=_CALL_SECONDS) as connection:
            try:
                yield connection
            except (TimeoutError, asyncio.CancelledError):
                # Giving it back would wait for the database to answer, a minute on a line that went silent: renewals
                # that were cancelled in time would lose every lease all the same.
                connection.terminate()
                raise


async def _nothing(connection: asyncpg.Connection) -> None:
    pass


async def _prepare(connection: asyncpg.Connection) -> None:
    from pgvector.asyncpg import register_vector  # brings numpy, which `--help` has no use for

    await register_vector(connection, schema="extensions")


@contextlib.contextmanager
def translated() -> Iterator[None]:
    """Turn what the database or its connection raises into the tree of errors.py."""
    try:
        yield
    except IngestError:
        raise
    except asyncpg.PostgresError as exc:
        raise _translate(exc) from exc
    except (OSError, asyncpg.InterfaceError, asyncpg.InternalClientError, TimeoutError) as exc:
        raise Transient(
            "database_unreachable",
            "The database did not answer. It is tried again by itself; nothing needs to be done.",
            detail=f"{type(exc).__name__}: {exc}",
        ) from exc


def _translate(exc: asyncpg.PostgresError) -> IngestError:
    state = exc.sqlstate or ""
    detail = f"{state}: {exc}"
    if state == "IG001":
        return StaleClaim("stale_claim", "Another worker owns this job now.", detail=detail)
    if state == "IG002":
        return Superseded("superseded", "The file was deleted or replaced meanwhile.", detail=detail)
    if state == "IG003":
        return VectorsMissing("vectors_missing", "Some texts must be embedded again.", detail=detail)
    if state == "23505":
        return AlreadyThere("already_there", "Somebody else wrote the same just now.", detail=detail)
    if state == "IG011":
        # The text is the database's own and made for people: it names the limit and what to do.
        return OverQuota("quota_exceeded", exc.args[0], detail=state)
    if state in ("42501", "42883", "42P01", "3F000"):
        return Misconfigured(
            "database_schema",
            "The database lacks something that this worker needs. An operator must apply the migrations.",
            detail=detail,
        )
    if state[:2] in ("08", "40", "53", "55", "57"):
        return Transient(
            "database_busy",
            "The database was busy. It is tried again by itself; nothing needs to be done.",
            detail=detail,
        )
    return Transient(
        "database_error",
        "The database refused a step. It is tried again; if it stays so, contact support.",
        detail=detail,
    )
