"""The Deno process behind the stack's one port; it cannot outlive this one, because it ends with its stdin."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from local import deno
from local.errors import StackError

_SERVER = deno.REPOSITORY / "local" / "server"
# The first start downloads packages.
_READY_SECONDS = 300
_STOP_SECONDS = 5


class Server:
    """A running server; made by `running`."""

    def __init__(self, process: asyncio.subprocess.Process, port: int, log: Path) -> None:
        self.port = port
        self.log = log
        self._process = process

    @property
    def pid(self) -> int:
        """The process id."""
        return self._process.pid

    async def ended(self) -> int:
        """Wait until the process ends by itself and return its exit status."""
        return await self._process.wait()


@asynccontextmanager
async def running(
    settings: dict[str, str], *, port: int, storage: Path, functions: Path, log: Path
) -> AsyncIterator[Server]:
    """Run the server on `port` of 127.0.0.1 (0: a free one) and stop it at the end.

    `settings` are the environment variables that main.ts reads; secrets travel in them, never as arguments.
    Raises StackError with the log's last lines when it does not become ready.
    """
    readable = ",".join(str(path) for path in (_SERVER, functions, storage, deno.cache_directory()))
    argv = deno.command(
        _SERVER / "main.ts",
        "--allow-net=127.0.0.1",
        # The environment holds only what is given here.
        "--allow-env",
        "--allow-sys=hostname,osRelease,cpus,homedir,uid",
        f"--allow-read={readable}",
        f"--allow-write={storage}",
    )
    environment = deno.environment(
        settings
        | {
            "SLUICE_PORT": str(port),
            "SLUICE_STORAGE_DIRECTORY": str(storage),
            "SLUICE_FUNCTIONS_DIRECTORY": str(functions),
        }
    )
    with log.open("wb") as stream:
        process = await asyncio.create_subprocess_exec(
            *argv, env=environment, cwd=deno.REPOSITORY, stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE, stderr=stream, start_new_session=True,
        )  # fmt: skip
    try:
        yield Server(process, await _ready(process, log), log)
    finally:
        await _stop(process)


async def _ready(process: asyncio.subprocess.Process, log: Path) -> int:
    if process.stdout is None:
        raise AssertionError("the server was started without a pipe")
    line = b""
    with contextlib.suppress(TimeoutError):
        line = await asyncio.wait_for(process.stdout.readline(), _READY_SECONDS)
    if not line:
        raise StackError(f"The local server did not start. What it wrote to {log}:\n{_last_words(log)}")
    return int(json.loads(line)["port"])


async def _stop(process: asyncio.subprocess.Process) -> None:
    if process.stdin is not None:
        process.stdin.close()
    try:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(process.wait(), _STOP_SECONDS)
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


def _last_words(log: Path) -> str:
    return log.read_text(errors="replace")[-2000:].strip()
