"""Wake-ups: hears the database's NOTIFY, so that a job starts at once; the table remains the truth.

A notification is a hint. Whoever waits here claims after every wake-up, after every reconnect, and
when the time is up, so that one that was lost costs at most a poll.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import secrets
import socket
from typing import Any

import asyncpg
from loguru import logger

from worker.db import queries
from worker.db.pool import connect_options

CHANNEL = "ingest_wake"
_PROOF_SECONDS = 2.0
_ALIVE_SECONDS = 30.0
_RECONNECT_CAP_SECONDS = 15.0
_DEAF_POLL_SECONDS = 1.0


class Wakeups:
    """A listener on a connection of its own, kept alive and rebuilt when it dies.

    The URL must be a session or direct connection: through a transaction pooler LISTEN is accepted
    and nothing ever arrives. Therefore each connection proves itself by hearing its own NOTIFY;
    while none does, `wait` returns every second instead.
    """

    def __init__(self, url: str, *, poll_seconds: float, randomness: random.Random) -> None:
        self._url = url
        self._poll = poll_seconds
        self._randomness = randomness
        self._woken = asyncio.Event()
        self._woken.set()  # the first wait is none: what is there at the start is claimed at once
        self.hearing = False

    def wake(self) -> None:
        """Let the next or present `wait` return."""
        self._woken.set()

    async def wait(self) -> None:
        """Return at the next wake-up, or after the poll interval give or take a fifth."""
        seconds = self._poll if self.hearing else min(self._poll, _DEAF_POLL_SECONDS)
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._woken.wait(), seconds * self._randomness.uniform(0.8, 1.2))
        self._woken.clear()

    async def run(self) -> None:
        """Listen for ever, until cancelled; reconnects with growing, jittered pauses."""
        failures = 0
        while True:
            try:
                if await self._listen():
                    failures = 0
                failures += 1
            except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError, TimeoutError) as exc:
                failures += 1
                logger.bind(error=type(exc).__name__, failures=failures).warning("listener lost")
            finally:
                self.hearing = False
            pause = min(_RECONNECT_CAP_SECONDS, 0.25 * 2 ** min(failures, 10))
            await asyncio.sleep(pause * self._randomness.uniform(0.5, 1.0))

    async def _listen(self) -> bool:
        """Hold one connection until it dies; return whether it ever heard anything."""
        connection = await asyncpg.connect(
            **connect_options(self._url), server_settings={"application_name": "sluice listener"}
        )
        calls, died = queries.load(), asyncio.Event()
        proof, proven = f"proof {secrets.token_hex(8)}", asyncio.Event()

        def heard(_connection: Any, _pid: int, _channel: str, payload: object) -> None:
            (proven if payload == proof else self._woken).set()

        try:
            connection.add_termination_listener(lambda _connection: died.set())
            _keep_alive(connection)
            await connection.add_listener(CHANNEL, heard)
            await connection.fetchval(calls["notify"], CHANNEL, proof)
            try:
                await asyncio.wait_for(proven.wait(), _PROOF_SECONDS)
            except TimeoutError:
                logger.bind(poll_seconds=_DEAF_POLL_SECONDS).warning(
                    "LISTEN hears nothing on this connection: polling instead. "
                    "Set LISTEN_DATABASE_URL to a direct or session-mode connection"
                )
                await asyncio.sleep(60)
                return False
            self.hearing = True
            self._woken.set()  # what was notified before we listened
            logger.info("listening")
            while not died.is_set():
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(died.wait(), _ALIVE_SECONDS)
                if not died.is_set():  # a half-open socket says nothing by itself
                    await connection.fetchval(calls["ping"], timeout=5)
            return True
        finally:
            connection.terminate()


def _keep_alive(connection: asyncpg.Connection) -> None:
    transport = getattr(connection, "_transport", None)
    sock = transport.get_extra_info("socket") if transport is not None else None
    if sock is not None:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
