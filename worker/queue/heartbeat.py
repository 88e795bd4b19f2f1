"""The heartbeat: every few seconds this worker says that it lives, and asks the services whose turn it has.

    beat ──► take turns ──► one task a service ──► write what it answered
     │           (the database gives each service to one worker at a time)
     └── also: how long the database took, and how late our own loop was

It has a connection of its own, so that a pool whose connections are all at work says nothing about health, and
health takes nothing from the work.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any
from uuid import UUID

from loguru import logger

from worker.db.connect import Pooler
from worker.db.pool import Database
from worker.errors import IngestError
from worker.queue.probes import Outcome, Probes

_CALL_SECONDS = 5.0
_FRESH_SECONDS = 15.0
_LEAVE_SECONDS = 2.0


@dataclass(frozen=True, slots=True)
class HeartbeatPace:
    """How often, in seconds: with these a service is asked every 9.5 s at the latest, by one of any number of workers.

    The database calls what is older than 25 s unknown.
    """

    beat: float = 3.0
    probe: float = 6.5


@dataclass(frozen=True, slots=True)
class About:
    """What does not change in a worker's row."""

    worker_id: UUID
    version: str
    git_sha: str | None
    pid: int
    host: str
    slots: int
    embedder: str
    model: str
    parser: str


@dataclass(frozen=True, slots=True)
class Now:
    """What does."""

    running: int
    wake_way: str
    sandbox: str | None


class Heartbeat:
    """One worker's heartbeat; `beating` runs it and takes the row away at the end. Nothing here ends the worker."""

    def __init__(
        self, url: str, about: About, now: Callable[[], Now], probes: Probes,
        *, pooler: Pooler = "auto", pace: HeartbeatPace | None = None,
    ) -> None:  # fmt: skip
        self._url = url
        self._about = about
        self._now = now
        self._probes = probes
        self._pooler: Pooler = pooler
        self._pace = pace or HeartbeatPace()
        self._db: Database | None = None
        self._asking: dict[str, asyncio.Task[None]] = {}
        self._codes: dict[str, str | None] = {}
        self._opening = asyncio.Lock()
        self._ending = asyncio.Event()
        self._answered: float | None = None
        self._late = 0.0

    @property
    def fresh(self) -> bool:
        """Whether the database answered lately."""
        return self._answered is not None and asyncio.get_running_loop().time() - self._answered < _FRESH_SECONDS

    @property
    def late(self) -> float:
        """By how many seconds our loop came late to the last beat."""
        return self._late

    @contextlib.asynccontextmanager
    async def beating(self) -> AsyncIterator[Heartbeat]:
        """Beat until the block ends."""
        task = asyncio.create_task(self._run(), name="heartbeat")
        try:
            yield self
        finally:
            # Not cancelled under way: a beat that is carried out after the row was taken away would bring it back.
            self._ending.set()
            await asyncio.wait([task], timeout=_LEAVE_SECONDS)
            for ending in (task, *self._asking.values()):
                ending.cancel()
            await asyncio.gather(task, *self._asking.values(), return_exceptions=True)
            with contextlib.suppress(IngestError, TimeoutError):
                await self.call("leave_worker", self._about.worker_id, seconds=_LEAVE_SECONDS)
            if self._db is not None:
                await self._db.close()

    async def call(self, name: str, *arguments: Any, seconds: float = _CALL_SECONDS) -> list[Any]:
        """Run a named call on the heartbeat's connection; raises IngestError, and TimeoutError after `seconds`."""
        async with asyncio.timeout(seconds):
            async with self._opening:
                if self._db is None:
                    self._db = await Database.open(self._url, size=1, pooler=self._pooler)
            return await self._db.fetch(name, *arguments)

    async def _run(self) -> None:
        clock = asyncio.get_running_loop().time
        due = clock()
        while not self._ending.is_set():
            self._late = max(0.0, clock() - due)
            try:
                await self._beat()
            except Exception as exc:  # noqa: BLE001 - a heartbeat that ends would say that a worker is dead that works
                logger.opt(exception=exc).error("internal error")
            due = clock() + self._pace.beat
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._pace.beat):
                    await self._ending.wait()

    async def _beat(self) -> None:
        about, now, clock = self._about, self._now(), asyncio.get_running_loop().time
        try:
            await self.call(
                "beat", about.worker_id, about.version, about.git_sha, about.pid, about.host, about.slots, now.running,
                now.wake_way, about.embedder, about.model, about.parser, now.sandbox,
            )  # fmt: skip
            every = timedelta(seconds=self._pace.probe)
            services = ["database", "worker", *self._probes.services]
            turns = [row["service"] for row in await self.call("take_probes", about.worker_id, services, every)]
            if "database" in turns:
                began = clock()
                await self.call("backend_pid")
                await self._write("database", Outcome((clock() - began) * 1000))
            if "worker" in turns:
                await self._write("worker", Outcome(self._late * 1000))
        except (IngestError, TimeoutError) as exc:
            code = exc.code if isinstance(exc, IngestError) else "timeout"
            self._told("database", code, "the heartbeat was not written")
            return
        self._answered = clock()
        self._told("database", None, None)
        for service in turns:
            if service in self._probes.services and service not in self._asking:
                task = asyncio.create_task(self._probe(service), name=f"probe {service}")
                self._asking[service] = task

    async def _probe(self, service: str) -> None:
        try:
            outcome = await self._probes.ask(service)
        except Exception as exc:  # noqa: BLE001 - one service's surprise must not silence the others
            logger.bind(service=service).opt(exception=exc).error("internal error")
            outcome = Outcome(0.0, "internal", "The probe itself failed; the worker's log has the traceback.")
        self._told(service, outcome.code, outcome.message)
        try:
            await self._write(service, outcome)
        except (IngestError, TimeoutError) as exc:
            logger.bind(service=service, error=type(exc).__name__).debug("probe not written")
        finally:
            self._asking.pop(service, None)

    async def _write(self, service: str, outcome: Outcome) -> None:
        await self.call(
            "record_probe", self._about.worker_id, service, outcome.milliseconds, outcome.code, outcome.message
        )

    def _told(self, service: str, code: str | None, message: str | None) -> None:
        """Log a service that fails or is well again, once each time."""
        before = self._codes.get(service)
        self._codes[service] = code
        if code is not None and code != before:
            logger.bind(service=service, code=code, why=message).warning("service fails")
        elif code is None and before is not None:
            logger.bind(service=service).info("service is well again")
