"""How to connect: TLS, time limits, and whether a pooler shares the backends behind the URL."""

from __future__ import annotations

import asyncio
from typing import Any, Literal
from urllib.parse import parse_qs, urlsplit

import asyncpg

from worker.db import queries
from worker.errors import Misconfigured

Pooler = Literal["auto", "session", "transaction"]

_CALL_SECONDS = 60.0
_PROBE_SECONDS = 5.0
_TRANSACTION_POOLER_PORT = 6543


def connect_options(url: str, *, shared: bool = False) -> dict[str, Any]:
    """Return asyncpg's options for a database URL; `shared` says that its backends are, see `shares_backends`.

    Without an sslmode in the URL, TLS is required except on loopback: asyncpg's own default falls
    back to plaintext in silence. An sslmode that allows plaintext raises Misconfigured there. With
    DATABASE_CA_FILE the settings write verify-full and the file into the URL.
    """
    parts = urlsplit(url)
    options: dict[str, Any] = {"dsn": url, "timeout": 15, "command_timeout": _CALL_SECONDS}
    mode = parse_qs(parts.query).get("sslmode", [None])[-1]
    loopback = is_loopback(parts.hostname)
    if mode is None:
        options["ssl"] = False if loopback else "require"
    elif mode in ("disable", "allow", "prefer") and not loopback:
        raise Misconfigured(
            "database_plaintext",
            f"The URL of the database at {parts.hostname} says sslmode={mode}, and no password is sent in plaintext. "
            "Write sslmode=require, or set DATABASE_CA_FILE.",
        )
    if shared:
        # A statement that was prepared on one backend is unknown to the next transaction's.
        options["statement_cache_size"] = 0
    return options


def is_loopback(host: str | None) -> bool:
    """Say whether a host is this machine by its name alone; nothing is looked up."""
    return host in ("127.0.0.1", "::1", "localhost")


async def shares_backends(url: str, pooler: Pooler = "auto") -> bool:
    """Say whether each transaction may run on another backend: a transaction pooler is in between.

    `pooler` decides unless it is "auto". Then port 6543 is enough, which Supabase gives to that mode;
    elsewhere two signs are looked for, and either is enough. The process id of the greeting is not
    the backend's: a pooler made the greeting up. Or a second connection gets the backend of the first.
    A pooler in session mode shows the first sign too. That mistake costs a Parse a query; the other
    one would lose statements under load (67 of 200 measured), so a probe that is not answered in
    time counts as a sign as well. Raises what connecting raises.
    """
    if pooler != "auto":
        return pooler == "transaction"
    if urlsplit(url).port == _TRANSACTION_POOLER_PORT:
        return True
    options = connect_options(url, shared=True) | {"server_settings": {"application_name": "sluice probe"}}
    ask = queries.load()["backend_pid"]
    first = await asyncpg.connect(**options)
    try:
        pid: int = await first.fetchval(ask)
        if pid != first.get_server_pid():
            return True
        second = await asyncpg.connect(**options)
        try:
            async with asyncio.timeout(_PROBE_SECONDS), second.transaction():
                # While this transaction holds a backend, the first connection must get its own again.
                same: bool = pid == await second.fetchval(ask)
                return same or bool(pid != await first.fetchval(ask))
        except TimeoutError:
            return True
        finally:
            second.terminate()
    finally:
        first.terminate()
