"""Wake-ups by LISTEN, on a connection of its own that must be a session's."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import socket
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import asyncpg

from worker.db import queries
from worker.db.connect import connect_options
from worker.db.pool import Database
from worker.errors import IngestError
from worker.queue.source import Unheard

CHANNEL = "ingest_wake"
_PROOF = "proof "  # such a payload wakes nobody


@dataclass(frozen=True, slots=True)
class ListenPace:
    """How long to wait for what, in seconds."""

    proof: float = 2
    alive: float = 30


class Listener:
    """Hears the database's NOTIFY.

    Through a transaction pooler LISTEN is accepted and nothing ever arrives, without an error. So
    each connection proves itself first: it must hear what the pool says, which is another
    connection (a NOTIFY of its own would be answered by its own backend, also through a pooler) and
    leads to the database where the jobs are. Later it says something to itself now and then, for a
    socket that is half-open and a backend that was changed say nothing by themselves.
    """

    def __init__(self, db: Database, url: str, *, name: str, pace: ListenPace | None = None) -> None:
        self._db = db
        self._url = url
        self._name = name
        self._pace = pace or ListenPace()

    async def hear(self, hearing: Callable[[], None], woken: Callable[[], None]) -> None:
        """Listen until the connection is lost; raises Unheard then, and when the proof does not come."""
        try:
            await self._listen(hearing, woken)
        except IngestError as exc:
            raise Unheard(f"the database could not be asked for a proof ({exc.code})") from exc
        except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError, TimeoutError) as exc:
            raise Unheard(f"the connection of {self._name} was lost or refused ({type(exc).__name__})") from exc

    async def _listen(self, hearing: Callable[[], None], woken: Callable[[], None]) -> None:
        connection = await asyncpg.connect(
            # Nothing is prepared twice here, and the proof tells a pooler from none.
            **connect_options(self._url, shared=True),
            server_settings={"application_name": "sluice listener"},
        )
        proof, proven, died = f"{_PROOF}{secrets.token_hex(8)}", asyncio.Event(), asyncio.Event()

        def heard(_connection: Any, _pid: int, _channel: str, payload: object) -> None:
            if payload == proof:
                proven.set()
            elif not str(payload).startswith(_PROOF):
                woken()

        try:
            connection.add_termination_listener(lambda _connection: died.set())
            _keep_alive(connection)
            await connection.add_listener(CHANNEL, heard)
            await self._db.fetchval("notify", CHANNEL, proof)
            if not await _comes(proven, self._pace.proof):
                raise Unheard(
                    f"{self._name} leads through a transaction pooler, or to another database: LISTEN is accepted and "
                    "nothing arrives. Set LISTEN_DATABASE_URL to a direct or session-mode connection of this database",
                    for_long=True,
                )
            hearing()
            while not await _comes(died, self._pace.alive):
                proven.clear()
                await connection.fetchval(queries.load()["notify"], CHANNEL, proof, timeout=5)
                if not await _comes(proven, self._pace.proof):
                    raise Unheard(f"the connection of {self._name} does not deliver any more")
            raise Unheard(f"the connection of {self._name} was closed")
        finally:
            connection.terminate()


async def _comes(event: asyncio.Event, seconds: float) -> bool:
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await event.wait()
    return event.is_set()


def _keep_alive(connection: asyncpg.Connection) -> None:
    transport = getattr(connection, "_transport", None)
    sock = transport.get_extra_info("socket") if transport is not None else None
    if sock is not None:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
