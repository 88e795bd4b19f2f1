"""`/live`, `/ready` and `/metrics` of one worker, served by its own event loop.

On the loop on purpose: an answer to /live is the proof that it turns. What is asked of the database goes over the
heartbeat's connection, so a scrape takes none from the work.
"""

from __future__ import annotations

import json
import os
import resource
import sys
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from typing import get_args

from prometheus_client import generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST

from worker import metrics
from worker.errors import IngestError
from worker.operate.http import Answer, Request, answering
from worker.queue.heartbeat import Heartbeat
from worker.queue.leases import Leases
from worker.queue.runner import Runner
from worker.queue.wakeups import Wakeups, Way

_REQUEST_SECONDS = 10.0
_DATABASE_SECONDS = 2.0
_CONNECTIONS = 16


@dataclass(frozen=True, slots=True)
class Report:
    """What one worker tells about itself, by path."""

    heartbeat: Heartbeat
    runner: Runner
    leases: Leases
    wakeups: Wakeups
    slots: int

    async def answer(self, request: Request) -> Answer:
        """Answer a GET or a HEAD; anything else is told so."""
        if request.method not in ("GET", "HEAD"):
            return _json(HTTPStatus.METHOD_NOT_ALLOWED, {"message": "Send a GET."})
        match request.path:
            case "/live":
                return _json(HTTPStatus.OK, {"live": True, "loop_late_seconds": round(self.heartbeat.late, 3)})
            case "/ready":
                status = HTTPStatus.OK if self._ready() else HTTPStatus.SERVICE_UNAVAILABLE
                return _json(status, {"ready": self._ready(), **self._conditions()})
            case "/metrics":
                await self._measure()
                return _answer(HTTPStatus.OK, generate_latest(metrics.REGISTRY), CONTENT_TYPE_LATEST)
        return _json(HTTPStatus.NOT_FOUND, {"message": "Ask for /live, /ready or /metrics."})

    def _conditions(self) -> dict[str, bool]:
        return {
            "database": self.heartbeat.fresh,
            "claiming": self.runner.claiming,
            "draining": self.runner.draining,
        }

    def _ready(self) -> bool:
        return self.heartbeat.fresh and self.runner.claiming

    async def _measure(self) -> None:
        metrics.LEASES.set(len(self.leases))
        metrics.SLOTS.set(self.slots)
        metrics.READY.set(self._ready())
        metrics.LOOP_LATE.set(self.heartbeat.late)
        metrics.MEMORY.set(resident_bytes())
        for way in get_args(Way):
            metrics.WAKEUP_WAY.labels(way).set(way == self.wakeups.way)
        try:
            (row,) = await self.heartbeat.call("queue_depth", seconds=_DATABASE_SECONDS)
        except (IngestError, TimeoutError):
            metrics.DATABASE_UP.set(0)
            metrics.QUEUE_OLDEST.set(float("nan"))
            metrics.QUEUE_JOBS.clear()
            return
        queue = json.loads(row["queue_depth"])
        metrics.DATABASE_UP.set(1)
        metrics.QUEUE_OLDEST.set(queue["oldest_seconds"] or 0)
        metrics.QUEUE_PAUSED.set(queue["paused"])
        for state, count in queue["states"].items():
            metrics.QUEUE_JOBS.labels(state).set(count)


def resident_bytes() -> int:
    """Return the resident memory now; where the system does not tell, the most that it was."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        # macOS counts bytes here, everybody else kilobytes; on Linux statm answers.
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else peak * 1024


def serving(report: Report, host: str, port: int) -> AbstractAsyncContextManager[int]:
    """Serve until the block ends; gives the port, which matters for port 0. Raises OSError where it cannot listen."""
    # A connection for each request: a scrape comes every few seconds at most.
    return answering(report.answer, host, port, connections=_CONNECTIONS, seconds=_REQUEST_SECONDS, keep_alive=False)


def _json(status: HTTPStatus, body: dict[str, object]) -> Answer:
    return _answer(status, json.dumps(body).encode(), "application/json")


def _answer(status: HTTPStatus, body: bytes, content_type: str) -> Answer:
    return Answer(status, body, {"content-type": content_type, "cache-control": "no-store"})
