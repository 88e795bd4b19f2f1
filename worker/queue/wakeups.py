"""Wake-ups, so that a job starts at once: by LISTEN, else by Realtime, else by asking often.

    LISTEN is proven ─────────────────────────► listen      ask every poll_seconds besides
      │ not heard, or lost three times           ▲
      ▼                                          │ tried again every few minutes
    Realtime is proven ───────────────────────► realtime    ask every poll_seconds besides
      │ not heard, or lost                       ▲
      ▼                                          │ tried again with growing pauses
    polling                                                 ask every second

A wake-up is a hint, the table is the truth: whoever waits here claims after every wake-up, after
every change of the way, and when the time is up.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from dataclasses import dataclass
from typing import Literal

from loguru import logger

from worker.queue.source import Source, Unheard

Way = Literal["listen", "realtime", "polling"]

_UNHEARD_POLL_SECONDS = 1.0
_LOSSES_BEFORE_REALTIME = 3


@dataclass(frozen=True, slots=True)
class Patience:
    """How long to pause before a way is tried again, in seconds; each is jittered."""

    first: float = 0.25
    listen_most: float = 15
    realtime_most: float = 30
    for_long: float = 300
    settled: float = 30  # what served for so long begins with short pauses again


class Wakeups:
    """The chain of ways; says in one line which serves and why, at the start and at each change."""

    def __init__(
        self, listener: Source, broadcast: Source | None = None,
        *, poll_seconds: float, randomness: random.Random, patience: Patience | None = None,
    ) -> None:  # fmt: skip
        self._listener = listener
        self._broadcast = broadcast
        self._poll = poll_seconds
        self._randomness = randomness
        self._patience = patience or Patience()
        self._woken = asyncio.Event()
        self._woken.set()  # the first wait is none: what is there at the start is claimed at once
        self._told: tuple[Way, str] | None = None
        self._why_not_listen = ""
        self._fallback: asyncio.Task[None] | None = None

    @property
    def way(self) -> Way:
        """On which way wake-ups come now."""
        return self._told[0] if self._told else "polling"

    @property
    def hearing(self) -> bool:
        """Whether wake-ups come at all."""
        return self.way != "polling"

    def wake(self) -> None:
        """Let the next or present `wait` return."""
        self._woken.set()

    async def wait(self) -> None:
        """Return at the next wake-up, or after the poll interval give or take a fifth."""
        seconds = self._poll if self.hearing else min(self._poll, _UNHEARD_POLL_SECONDS)
        # Not wait_for: before Python 3.12 it swallows a cancellation that comes together with the event.
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds * self._randomness.uniform(0.8, 1.2)):
                await self._woken.wait()
        self._woken.clear()

    async def run(self) -> None:
        """Keep the best way that serves, for ever, until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._listen(tasks), name="wake-ups by LISTEN")

    async def _listen(self, tasks: asyncio.TaskGroup) -> None:
        losses = 0
        while True:
            try:
                await self._listener.hear(self._listening, self.wake)
            except Unheard as exc:
                self._why_not_listen = f"LISTEN does not serve: {exc.why}"
                if self.way == "listen":
                    losses = 0
                    self._turn("polling", self._why_not_listen)
                losses += 1
                if exc.for_long or losses >= _LOSSES_BEFORE_REALTIME:
                    self._fall_back(tasks)
                await self._pause(losses, self._patience.listen_most, for_long=exc.for_long)

    def _listening(self) -> None:
        if self._fallback is not None:
            self._fallback.cancel()
            self._fallback = None
        self._turn("listen", "LISTEN is proven on a connection of its own")

    def _fall_back(self, tasks: asyncio.TaskGroup) -> None:
        if self._broadcast is None:
            self._turn("polling", self._why_not_listen)
        elif self._fallback is None:
            self._fallback = tasks.create_task(self._hear_broadcasts(self._broadcast), name="wake-ups by Realtime")

    async def _hear_broadcasts(self, broadcast: Source) -> None:
        losses, clock = 0, asyncio.get_running_loop().time
        while True:
            began = clock()
            try:
                await broadcast.hear(lambda: self._turn("realtime", self._why_not_listen), self.wake)
            except Unheard as exc:
                self._turn("polling", f"{self._why_not_listen}; Realtime does not serve: {exc.why}")
                losses = 1 if clock() - began >= self._patience.settled else losses + 1
                await self._pause(losses, self._patience.realtime_most, for_long=exc.for_long)

    async def _pause(self, losses: int, most: float, *, for_long: bool) -> None:
        growing = min(most, self._patience.first * 2 ** min(losses, 10))
        await asyncio.sleep((self._patience.for_long if for_long else growing) * self._randomness.uniform(0.5, 1.0))

    def _turn(self, way: Way, why: str) -> None:
        """Take note of the way that serves now; whatever was missed in between is looked for at once."""
        self._woken.set()
        if (way, why) == self._told:
            return
        self._told = (way, why)
        every = self._poll if way != "polling" else min(self._poll, _UNHEARD_POLL_SECONDS)
        said = {
            "listen": "wake-ups come by LISTEN",
            "realtime": "wake-ups come by Supabase Realtime",
            "polling": "no wake-ups come: jobs are looked for often instead",
        }[way]
        line = logger.bind(way=way, why=why, poll_seconds=every)
        (line.info if way != "polling" else line.warning)(said)
