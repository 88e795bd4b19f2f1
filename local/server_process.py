"""The Deno process behind the stack's one port; it cannot outlive this one, because it ends with its stdin."""

from __future__ import annotations

from asyncio.subprocess import Process
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from local import child, deno

_SERVER = deno.REPOSITORY / "local" / "server"
# The first start downloads packages.
_READY_SECONDS = 300


class Server:
    """A running server; made by `running`."""

    def __init__(self, process: Process, port: int, log: Path) -> None:
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
    log.write_bytes(b"")
    async with child.ready("The local server", argv, environment, log, seconds=_READY_SECONDS) as (process, said):
        yield Server(process, int(said["port"]), log)
