"""What goes wrong during a run, one thing after another, drawn from the seed."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Coroutine
from dataclasses import dataclass, field
from typing import Any, TypeVar

import asyncpg

from local.stack import Stack
from tests.chaos.database import QUESTIONS, Observer
from tests.chaos.proxy import AtCommit
from tests.chaos.workers import Worker, Workers

# Where a worker is killed: each in turn, so that every one comes up equally often.
POINTS = ("claim", "fetch", "parse", "chunk", "embed", "stored", "publish", "commit: kill before", "commit: kill after")
_AT_COMMIT: tuple[AtCommit, ...] = ("cut before", "lose the answer", "terminate")
_TRAP_SECONDS = 2.0
T = TypeVar("T")


@dataclass
class Faults:
    """Injects until it is cancelled, at about `rate` a second; most often a kill."""

    stack: Stack
    observer: Observer
    workers: Workers
    randomness: random.Random
    rate: float
    lease_seconds: float
    only_kills: bool = False
    done: Counter[str] = field(default_factory=Counter)
    _under_way: set[asyncio.Task[Any]] = field(default_factory=set)
    _kills: int = 0

    async def run(self) -> None:
        """Inject for ever."""
        draws = {self._kill: 45, self._at_commit: 16, self._terminate: 10, self._hold: 12, self._pause: 8,
                 self._swallow: 6, self._deafen: 4, self._crash: 2}  # fmt: skip
        if self.only_kills:
            draws = {self._kill: 1}
        # Each kind once before chance decides, so that a short run meets all of them; the crash as soon as can be: it
        # waits until no document would be hurt for the last time.
        first = [kind for kind in draws if kind not in (self._kill, self._crash)]
        self.randomness.shuffle(first)
        first += [self._crash] if self._crash in draws else []
        while True:
            await asyncio.sleep(self.randomness.expovariate(self.rate))
            if first and self.randomness.random() < 0.4:
                inject = first.pop()
            else:
                (inject,) = self.randomness.choices(list(draws), list(draws.values()))
            await inject()

    async def end(self) -> None:
        """Wait for what lasts: stopped workers go on, swallowed connections are given back."""
        if self._under_way:
            await asyncio.wait(self._under_way)
        for worker in self.workers.places:
            worker.trap = worker.proxy.at_commit = worker.proxy.hold_publish = None

    async def _kill(self) -> None:
        worker = self._anyone()
        point = POINTS[self._kills % len(POINTS)]
        self._kills += 1
        if point == "commit: kill before":
            worker.proxy.at_commit = "kill before"
        elif point == "commit: kill after":
            worker.proxy.at_commit = "kill after"
        else:
            worker.trap = point
        # The next draw waits for it: otherwise several would wait at one worker, and the last replace the first.
        async with asyncio.timeout(_TRAP_SECONDS) as patience:
            try:
                # Nobody sets an event: the worker's death is noticed by another's loop.
                while worker.trap is not None or worker.proxy.at_commit is not None:  # noqa: ASYNC110
                    await asyncio.sleep(0.02)
            except asyncio.CancelledError:
                worker.trap = worker.proxy.at_commit = None
                if not patience.expired():
                    raise
                self._kills -= 1

    async def _at_commit(self) -> None:
        self._anyone().proxy.at_commit = self.randomness.choice(_AT_COMMIT)

    async def _terminate(self) -> None:
        worker = self._anyone()

        async def end(connection: asyncpg.Connection) -> None:
            ended = await connection.fetch(QUESTIONS["end_backends"], worker.proxy.ports)
            self.done["terminated backends"] += len(ended)

        await self.workers.harm(worker, end)

    async def _pause(self) -> None:
        self._last(self.workers.pause(self._anyone(), self.lease_seconds + self.randomness.uniform(0.5, 2)))

    async def _hold(self) -> None:
        # What is being settled is not renewed: another worker has the job, and has mostly done it, when this goes on.
        self._anyone().proxy.hold_publish = 2 * self.lease_seconds + self.randomness.uniform(1, 5)

    async def _swallow(self) -> None:
        worker = self._anyone()

        async def close(_: asyncpg.Connection) -> None:
            worker.proxy.close_road()

        if await self.workers.harm(worker, close):
            self.done["black hole"] += 1
            seconds = self.lease_seconds + self.randomness.uniform(0, 2)
            self._last(worker.proxy.open_road(seconds, then_cut=self.randomness.random() < 0.5))

    async def _deafen(self) -> None:
        ended = await self.observer.fetch("end_listeners")
        self.done["dropped listeners"] += len(ended)

    async def _crash(self) -> None:
        for _ in range(50):
            # Once begun it is carried through.
            if await asyncio.shield(self._last(self._crash_unless_last())):
                return
            await asyncio.sleep(0.1)

    async def _crash_unless_last(self) -> bool:
        async def crash(_: asyncpg.Connection) -> None:
            await asyncio.to_thread(self.stack.cluster.crash)

        if not await self.workers.harm(None, crash):
            return False
        self.done["crash of Postgres"] += 1
        await self.stack.restart_server()
        return True

    def _anyone(self) -> Worker:
        able = [w for w in self.workers.places if w.lives and not w.stopped and w.id is not None]
        return self.randomness.choice(able or self.workers.places)

    def _last(self, lasting: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        task = asyncio.create_task(lasting)
        self._under_way.add(task)
        task.add_done_callback(self._under_way.discard)
        return task
