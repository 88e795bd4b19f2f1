"""`/live`, `/ready` and `/metrics` of one worker, served by its own event loop.

On the loop on purpose: an answer to /live is the proof that it turns. What is asked of the database goes over the
heartbeat's connection, so a scrape takes none from the work.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import resource
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from typing import get_args

import h11
from loguru import logger
from prometheus_client import generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST

from worker import metrics
from worker.errors import IngestError
from worker.queue.heartbeat import Heartbeat
from worker.queue.leases import Leases
from worker.queue.runner import Runner
from worker.queue.wakeups import Wakeups, Way

_REQUEST_SECONDS = 10.0
_DATABASE_SECONDS = 2.0
_CONNECTIONS = 16


@dataclass(frozen=True, slots=True)
class Answer:
    """A status, a body and its type."""

    status: HTTPStatus
    body: bytes
    content_type: str = "application/json"


@dataclass(frozen=True, slots=True)
class Report:
    """What one worker tells about itself, by path."""

    heartbeat: Heartbeat
    runner: Runner
    leases: Leases
    wakeups: Wakeups
    slots: int

    async def answer(self, path: str) -> Answer:
        """Answer a GET."""
        match path:
            case "/live":
                return _json(HTTPStatus.OK, {"live": True, "loop_late_seconds": round(self.heartbeat.late, 3)})
            case "/ready":
                status = HTTPStatus.OK if self._ready() else HTTPStatus.SERVICE_UNAVAILABLE
                return _json(status, {"ready": self._ready(), **self._conditions()})
            case "/metrics":
                await self._measure()
                return Answer(HTTPStatus.OK, generate_latest(metrics.REGISTRY), CONTENT_TYPE_LATEST)
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


@contextlib.asynccontextmanager
async def serving(report: Report, host: str, port: int) -> AsyncIterator[int]:
    """Serve until the block ends; gives the port, which matters for port 0. Raises OSError where it cannot listen."""
    connections: set[asyncio.Task[None]] = set()

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        if task is None or len(connections) >= _CONNECTIONS:
            writer.close()
            return
        connections.add(task)
        try:
            async with asyncio.timeout(_REQUEST_SECONDS):
                await _serve(report, reader, writer)
        except (OSError, TimeoutError, h11.ProtocolError):
            pass  # the client's affair: there is nobody to answer
        except Exception as exc:  # noqa: BLE001 - one request's failure is not the worker's end
            logger.opt(exception=exc).error("internal error")
        finally:
            connections.discard(task)
            writer.close()

    server = await asyncio.start_server(accept, host, port)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        for task in connections:
            task.cancel()
        await asyncio.gather(*connections, return_exceptions=True)


async def _serve(report: Report, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Answer one request; each has a connection of its own, for a scrape comes every few seconds at most."""
    http = h11.Connection(h11.SERVER, max_incomplete_event_size=16 * 1024)
    while (head := http.next_event()) is h11.NEED_DATA:
        http.receive_data(await reader.read(16 * 1024))
    if not isinstance(head, h11.Request):
        return
    if head.method in (b"GET", b"HEAD"):
        answer = await report.answer(head.target.partition(b"?")[0].decode("latin-1"))
    else:
        answer = _json(HTTPStatus.METHOD_NOT_ALLOWED, {"message": "Send a GET."})
    headers = [
        ("content-type", answer.content_type), ("content-length", str(len(answer.body))),
        ("cache-control", "no-store"), ("connection", "close"),
    ]  # fmt: skip
    body = b"" if head.method == b"HEAD" else answer.body
    for event in (h11.Response(status_code=answer.status, headers=headers), h11.Data(body), h11.EndOfMessage()):
        writer.write(http.send(event) or b"")
    await writer.drain()


def _json(status: HTTPStatus, body: dict[str, object]) -> Answer:
    return Answer(status, json.dumps(body).encode())
