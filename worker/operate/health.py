"""What watches over one worker while it works: the watchdog, the heartbeat and its probes, and the port for metrics."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from uuid import UUID

import httpx
from loguru import logger

from worker import metrics
from worker.errors import Misconfigured
from worker.model import EmbeddingModel
from worker.operate.cli import installed_version
from worker.operate.health_port import Report, serving
from worker.pipeline.parse.sandbox import sandbox_mode
from worker.queue.heartbeat import About, Heartbeat, Now
from worker.queue.leases import Leases
from worker.queue.probes import PROBE_SECONDS, Probes, Provider
from worker.queue.runner import Runner
from worker.queue.wakeups import Wakeups
from worker.queue.watchdog import Watchdog
from worker.settings import Settings


@contextlib.asynccontextmanager
async def watched(
    settings: Settings, worker_id: UUID, directory: Path, runner: Runner, leases: Leases, wakeups: Wakeups,
    *, shared: bool, model: EmbeddingModel, parser: str, providers: Mapping[str, Provider],
) -> AsyncIterator[None]:  # fmt: skip
    """Watch over a worker until the block ends; `directory` is its own, `shared` says that a transaction pooler stands
    before the database.

    Raises Misconfigured when SLUICE_HEALTH_PORT cannot be used. Nothing else here ends a worker, but a loop that is
    stuck.
    """
    version = installed_version()
    metrics.BUILD.labels(version, settings.git_sha or "").set(1)
    async with contextlib.AsyncExitStack() as stack:
        await stack.enter_async_context(Watchdog(settings.wedged_seconds).watching())
        http = await stack.enter_async_context(
            httpx.AsyncClient(timeout=PROBE_SECONDS, follow_redirects=False, limits=httpx.Limits(max_connections=8))
        )
        # In the worker's own directory: what a kill leaves there is taken away by the next worker.
        confined = asyncio.create_task(asyncio.to_thread(_confined, directory), name="sandbox")
        stack.push_async_callback(asyncio.wait, [confined])

        def now() -> Now:
            return Now(len(leases), wakeups.way, confined.result() if confined.done() else None)

        about = About(
            worker_id, version, settings.git_sha, os.getpid(), socket.gethostname(), settings.slots, model.provider,
            model.name, parser,
        )  # fmt: skip
        probes = Probes(
            settings.supabase_url, settings.supabase_secret_key.get_secret_value(), providers,
            lambda: wakeups.way == "realtime", http,
        )  # fmt: skip
        heartbeat = Heartbeat(
            settings.database_url.get_secret_value(), about, now, probes,
            pooler="transaction" if shared else "session",
        )  # fmt: skip
        await stack.enter_async_context(heartbeat.beating())
        if settings.health_port is not None:
            report = Report(heartbeat, runner, leases, wakeups, settings.slots)
            try:
                port = await stack.enter_async_context(serving(report, settings.health_host, settings.health_port))
            except OSError as exc:
                raise Misconfigured(
                    "health_port",
                    f"Port {settings.health_port} of {settings.health_host} cannot be used: {exc.strerror}. Set "
                    "SLUICE_HEALTH_PORT to another, or to none.",
                ) from exc
            logger.bind(host=settings.health_host, port=port).info("health port is open")
        yield


def _confined(directory: Path) -> str | None:
    """Name what keeps documents' processes from the network; None where no such process can be started here."""
    try:
        return sandbox_mode(directory)
    except (OSError, RuntimeError, ValueError):
        return None
