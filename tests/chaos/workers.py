"""The workers of a run: started again whenever they end, as a platform does, and stopped at their stages."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import signal
import sys
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path

import asyncpg

from local import deno
from local.stack import Stack
from tests.chaos.database import LOST, QUESTIONS, Observer
from tests.chaos.proxy import Proxy

SLOTS = 4
_RESTART_SECONDS = 0.2
_STOP_SECONDS = 20.0


@dataclass
class Worker:
    """One place of a worker: its proxy, and whichever process fills it now."""

    number: int
    proxy: Proxy
    process: asyncio.subprocess.Process | None = None
    id: str | None = None
    ready: bool = False
    stopped: bool = False
    trap: str | None = None
    """The point at which the process is to be killed."""

    @property
    def lives(self) -> bool:
        return self.process is not None and self.process.returncode is None


@dataclass
class Workers:
    """Starts `count` workers on a stack, each behind a proxy, and keeps them running until `stop`."""

    stack: Stack
    observer: Observer
    directory: Path
    provider_port: int
    lease_seconds: float
    randomness: random.Random
    done: Counter[str] = field(default_factory=Counter)
    pids: set[int] = field(default_factory=set)
    unexpected: list[str] = field(default_factory=list)
    places: list[Worker] = field(default_factory=list)
    _stopping: bool = False
    _keepers: list[asyncio.Task[None]] = field(default_factory=list)
    _server: asyncio.Server | None = None
    _pending: set[asyncio.Task[None]] = field(default_factory=set)

    async def start(self, count: int) -> None:
        """Start them all."""
        (self.directory / "work").mkdir()
        self._server = await asyncio.start_server(self._listen, "127.0.0.1", 0)
        for number in range(count):
            worker = Worker(number, self._proxy(number))
            await worker.proxy.start()
            self.places.append(worker)
            self._keepers.append(asyncio.create_task(self._keep(worker)))

    async def stop(self) -> None:
        """Stop them in order, and note whoever does not go."""
        # One that has only just started would end by SIGTERM before it hears it.
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_STOP_SECONDS):
                while not all(worker.ready and worker.lives for worker in self.places):  # noqa: ASYNC110
                    await asyncio.sleep(0.02)
        await asyncio.sleep(0.1)
        self._stopping = True
        for worker in self.places:
            if worker.lives and worker.process is not None:
                os.kill(worker.process.pid, signal.SIGCONT)
                worker.process.terminate()
        try:
            await asyncio.wait_for(asyncio.gather(*self._keepers), _STOP_SECONDS)
        except TimeoutError:
            self.unexpected.append("a worker did not end after SIGTERM")
            for worker in self.places:
                if worker.lives and worker.process is not None:
                    worker.process.kill()
            await asyncio.gather(*self._keepers, return_exceptions=True)
        finally:
            for worker in self.places:
                worker.proxy.stop()
            if self._server is not None:
                self._server.close()

    async def harm(
        self, worker: Worker | None, do: Callable[[asyncpg.Connection], Awaitable[object]], kill: str | None = None
    ) -> bool:
        """Do something to a worker (None: to all) unless it would be the last that some document bears.

        Returns whether it was done. `do` gets the connection whose transaction keeps all claims waiting meanwhile,
        which it may lose: a claim made between the look and the harm would not have been looked at. `kill` names the
        point at which it kills the worker.
        """
        if worker is not None and (worker.id is None or not worker.lives):
            return False
        done = False
        try:
            async with self.observer.transaction() as connection:
                await connection.execute(QUESTIONS["no_claims"])
                if await connection.fetchval(QUESTIONS["last"], worker.id if worker else None):
                    return False
                if worker is not None and not worker.lives:
                    return False
                done = True
                await do(connection)
                if worker is not None:
                    if kill is not None:
                        await connection.execute(QUESTIONS["note_kill"], worker.id, kill)
                    await connection.fetch(QUESTIONS["end_claims"], worker.proxy.ports)
        except LOST:
            return done
        return True

    async def kill(self, worker: Worker, point: str, first: Callable[[], object] | None = None) -> bool:
        """Kill -9 the process of a place, unless some document could not bear it; whether it was done."""

        async def shoot(_: asyncpg.Connection) -> None:
            if first is not None:
                first()
            if worker.process is not None:
                os.kill(worker.process.pid, signal.SIGKILL)
                self.done[f"kill: {point}"] += 1

        return await self.harm(worker, shoot, kill=point)

    async def kill_pid(self, pid: int) -> bool:
        """Kill the worker with this process id: a document did it. Whether it was done."""
        worker = next((w for w in self.places if w.process is not None and w.process.pid == pid), None)
        return worker is not None and await self.kill(worker, "by a document")

    async def pause(self, worker: Worker, seconds: float) -> None:
        """SIGSTOP a process for so long."""
        process = worker.process

        async def stop(_: asyncpg.Connection) -> None:
            if process is not None:
                process.send_signal(signal.SIGSTOP)

        if process is None or worker.stopped or not await self.harm(worker, stop):
            return
        worker.stopped = True
        self.done["stop"] += 1
        try:
            await asyncio.sleep(seconds)
        finally:
            worker.stopped = False
            if process.returncode is None:
                process.send_signal(signal.SIGCONT)

    async def terminate_port(self, port: int) -> None:
        """End the backend that a connection from this local port talks to."""
        await self.observer.fetch("end_backend", port)

    def _proxy(self, number: int) -> Proxy:
        async def harm(do: Callable[[], None]) -> bool:
            async def now(_: asyncpg.Connection) -> None:
                do()

            return await self.harm(self.places[number], now)

        return Proxy(
            self.stack.cluster.port,
            harm=harm,
            kill=lambda point, first=None: self.kill(self.places[number], point, first),
            terminate=self.terminate_port,
        )

    async def _keep(self, worker: Worker) -> None:
        with (self.directory / f"worker-{worker.number}.log").open("ab") as log:
            while not self._stopping:
                worker.id, worker.ready = None, False
                worker.process = await asyncio.create_subprocess_exec(
                    sys.executable, "-P", "-m", "tests.chaos.worker_entry",
                    self._control_port(), str(self.provider_port),
                    cwd=deno.REPOSITORY, env=self._environment(worker), stdin=asyncio.subprocess.DEVNULL,
                    stdout=log, stderr=log, start_new_session=True,
                )  # fmt: skip
                self.pids.add(worker.process.pid)
                self.done["started"] += 1
                status = await worker.process.wait()
                if self._stopping and status != 0:
                    self.unexpected.append(f"a worker ended with {status} after SIGTERM")
                if status not in (0, -signal.SIGKILL):
                    self.done[f"ended by itself with {status}"] += 1
                await asyncio.sleep(_RESTART_SECONDS)

    def _control_port(self) -> str:
        assert self._server is not None
        return str(self._server.sockets[0].getsockname()[1])

    def _environment(self, worker: Worker) -> dict[str, str]:
        url = self.stack.worker_database_url.replace(f":{self.stack.cluster.port}/", f":{worker.proxy.port}/")
        return deno.environment(
            self.stack.environment()
            | {
                "DATABASE_URL": url,
                "SLUICE_SLOTS": str(SLOTS),
                "SLUICE_TENANT_CAP": "16",
                "SLUICE_LEASE_SECONDS": str(self.lease_seconds),
                "SLUICE_RENEW_SECONDS": str(self.lease_seconds / 4),
                "SLUICE_POLL_SECONDS": "2",
                "SLUICE_JOB_SECONDS": "60",
                "SLUICE_DRAIN_SECONDS": "5",
                "SLUICE_TEMP_DIR": str(self.directory / "work"),
                "TMPDIR": str(self.directory / "work"),
                "PYTHONPATH": str(deno.REPOSITORY),
                "PYTHONUNBUFFERED": "1",
                "OMP_NUM_THREADS": "1",
                "OPENBLAS_NUM_THREADS": "1",
            }
        )

    async def _listen(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Hear where a worker is, and let it go on unless it is to be killed there."""
        with contextlib.suppress(ConnectionError):
            while line := await reader.readline():
                said = json.loads(line)
                worker = next((w for w in self.places if w.process is not None and w.process.pid == said["pid"]), None)
                if worker is not None:
                    worker.id = said["worker"] or worker.id
                    worker.ready = worker.ready or said["point"] == "ready"
                    if worker.trap == said["point"]:
                        task = asyncio.create_task(self._kill_within(worker, said["point"]))
                        self._pending.add(task)
                        task.add_done_callback(self._pending.discard)
                writer.write(b"\n")
        writer.close()

    async def _kill_within(self, worker: Worker, point: str) -> None:
        # A few milliseconds, so that it dies within the stage and not always at its beginning.
        await asyncio.sleep(self.randomness.uniform(0, 0.012))
        if worker.trap == point and await self.kill(worker, point):
            worker.trap = None
