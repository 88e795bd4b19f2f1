"""Wake-ups by Supabase Realtime: private broadcasts from the database on the topic `worker:ingest`.

The client of the package `realtime` can die in ways that it does not tell: its reading task ends with
an exception of a callback, it gives up for good in a background task, the server closes the channel
and it never joins again. So nothing here relies on it to come back. Callbacks only set flags; a
session that shows any sign of death is thrown away with its client and a new one is made, by whoever
calls `hear` again; and it is alive only while it hears, again and again, what the database
broadcasts for it.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING

from worker.db.pool import Database
from worker.errors import IngestError, Misconfigured
from worker.queue.source import Unheard

if TYPE_CHECKING:
    from realtime import RealtimeSubscribeStates

TOPIC = "worker:ingest"

# The client logs what it raises, addresses with the key among it; what matters is told by the chain.
logging.getLogger("realtime").setLevel(logging.CRITICAL)


@dataclass(frozen=True, slots=True)
class BroadcastPace:
    """How long to wait for what, in seconds."""

    join: float = 10
    watch: float = 3
    prove: float = 30  # at this interval the session proves itself again and broadcasts are asked for anew
    proof: float = 3  # three proofs that do not come in this time each are one too many
    recycle: float = 1800
    close: float = 2
    database: float = 10


class Broadcast:
    """Hears the database's broadcasts with the project's secret key.

    The database broadcasts only while somebody asks, so that no upload writes a row that nobody reads.
    """

    def __init__(self, db: Database, supabase_url: str, secret_key: str, *, pace: BroadcastPace | None = None) -> None:
        self._db = db
        self._url = f"{supabase_url.rstrip('/')}/realtime/v1"
        self._key = secret_key
        self._pace = pace or BroadcastPace()

    async def hear(self, hearing: Callable[[], None], woken: Callable[[], None]) -> None:
        """Hear wake-ups on one connection for half an hour; raises Unheard as soon as that is in doubt."""
        clock = asyncio.get_running_loop().time
        session = _Session(self._url, self._key, woken, self._pace)
        try:
            # Asked for before joining: what is uploaded from now on is broadcast, what was before is looked for.
            await self._ask(session)
            await session.join()
            woken()
            await self._prove(session)
            hearing()
            began = proven = clock()
            while clock() - began < self._pace.recycle:
                await session.stir(self._pace.watch)
                if clock() - proven >= self._pace.prove:
                    # A database that does not answer now is no reason to give up a channel that stands.
                    with contextlib.suppress(_NotAsked):
                        await self._prove(session)
                    proven = clock()
        finally:
            await session.close()

    async def _prove(self, session: _Session) -> None:
        """Hear a broadcast from the database; several tries, because it flows some time after the join only."""
        for _ in range(3):
            session.proven = False
            await self._ask(session)
            deadline = asyncio.get_running_loop().time() + self._pace.proof
            while not session.proven and (left := deadline - asyncio.get_running_loop().time()) > 0:
                await session.stir(left)
            if session.proven:
                return
        raise Unheard("its channel is joined, but nothing arrives of what the database broadcasts")

    async def _ask(self, session: _Session) -> None:
        # Four times as long as until it is asked again, so that one that fails does no harm.
        wanted = timedelta(seconds=min(600.0, max(10.0, 4 * self._pace.prove)))
        try:
            async with asyncio.timeout(self._pace.database):
                able = await self._db.fetchval("want_broadcasts", wanted, session.proof)
        except Misconfigured as exc:
            raise Unheard(f"the database lacks a migration or a right ({exc.code})", for_long=True) from exc
        except (IngestError, TimeoutError) as exc:
            raise _NotAsked("the database did not answer") from exc
        if not able:
            raise Unheard("this database has no realtime.send, or refuses it", for_long=True)


class _NotAsked(Unheard):
    """The database could not be asked for broadcasts."""


class _Session:
    """One client with one channel, from its joining to its end; never used twice."""

    def __init__(self, url: str, key: str, woken: Callable[[], None], pace: BroadcastPace) -> None:
        self.proof = secrets.token_hex(8)
        self.proven = False
        self._woken = woken
        self._pace = pace
        self._key = key
        self._stirred = asyncio.Event()
        self._state: RealtimeSubscribeStates | None = None
        self._reason = ""
        # Imported here: most workers never need it, and it takes 45 ms and 10 MB.
        from realtime import AsyncRealtimeClient

        # It must not reconnect by itself: that happens in its reading task, where a failure is seen by nobody.
        self._client = AsyncRealtimeClient(url, token=key, auto_reconnect=False, max_retries=1, timeout=int(pace.join))
        self._channel = self._client.channel(
            TOPIC,
            {
                "config": {
                    "broadcast": {"ack": False, "self": False},
                    "presence": {"key": "", "enabled": False},
                    "private": True,
                }
            },
        )
        self._channel.on_broadcast("wake", lambda _message: self._woken())
        self._channel.on_broadcast(f"proof {self.proof}", lambda _message: self._on_proof())

    def _on_proof(self) -> None:
        self.proven = True
        self._stirred.set()

    def _on_state(self, state: RealtimeSubscribeStates, error: Exception | None) -> None:
        self._state = state
        self._reason = f": {error}" if error is not None else ""
        self._stirred.set()

    async def join(self) -> None:
        """Connect and join; raises Unheard when it is refused or takes too long."""
        try:
            async with asyncio.timeout(self._pace.join):
                await self._channel.subscribe(self._on_state)
        except Exception as exc:  # noqa: BLE001 - the client raises bare Exceptions, and anything of its transport's
            raise self._unjoined(exc) from None  # what it raises may quote the address, which holds the key
        reading = getattr(self._client, "_listen_task", None)
        if reading is not None:
            reading.add_done_callback(lambda _task: self._stirred.set())  # seen at once, and not at the next look
        self._check()

    def _unjoined(self, exc: Exception) -> Unheard:
        status = getattr(getattr(exc, "response", None), "status_code", None)
        if status in (401, 403):
            return Unheard(f"it refuses SUPABASE_SECRET_KEY (HTTP {status})", for_long=True)
        if status is not None:
            return Unheard(f"SUPABASE_URL answers HTTP {status} where Realtime should be", for_long=status == 404)
        if isinstance(exc, TimeoutError):
            return Unheard(f"no answer within {self._pace.join:g} s")
        return Unheard(f"no connection ({type(exc).__name__})")

    async def stir(self, seconds: float) -> None:
        """Wait until something happens, `seconds` at most; raises Unheard when the session is not alive after it."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._stirred.wait()
        self._stirred.clear()
        self._check()

    def _check(self) -> None:
        reading = getattr(self._client, "_listen_task", None)
        if self._state == "CLOSED":
            why = "the server closed the channel"
        elif not self._client.is_connected:
            why = "the connection broke"
        elif reading is None or reading.done():
            why = "the client stopped reading"
        elif not self._channel.is_joined:
            why = "the channel is not joined"
        else:
            return
        # The server's words, which hold neither keys nor texts; ours are taken out all the same.
        raise Unheard((why + self._reason).replace(self._key, "…")[:300])

    async def close(self) -> None:
        """Leave nothing behind: no socket, no task, no timer; takes a bounded time whatever the server does."""
        socket = getattr(self._client, "_ws_connection", None)
        tasks = [getattr(self._client, name, None) for name in ("_listen_task", "_heartbeat_task")]
        left = [task for task in tasks if task is not None]
        self._channel.rejoin_timer.reset()
        self._channel.join_push.destroy()
        with contextlib.suppress(Exception):
            async with asyncio.timeout(self._pace.close):
                await self._client.close()
        if socket is not None:
            socket.transport.abort()
        for task in left:
            task.cancel()
        if left:
            await asyncio.wait(left, timeout=self._pace.close)
        for task in left:
            if task.done() and not task.cancelled():
                task.exception()  # seen, or asyncio prints it
